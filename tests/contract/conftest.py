"""The backends that the contract suite runs on: the same tests, in memory and on a real etcd."""

from collections.abc import AsyncIterator

import pytest

from pwm.controlplane.store.etcd import EtcdKV
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.store.guarded import GuardedKV
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV
from pwm.controlplane.store.lineage import Lineage
from pwm.controlplane.store.memory import MemoryKV
from tests.contract.answers import LostAnswers


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.etcd)])
def backend(request: pytest.FixtureRequest) -> tuple[str, Keys]:
    """The address of the backend ("" for memory), and keys that no other test uses."""
    if request.param == "memory":
        return "", Keys(b"/test/")
    etcd = request.getfixturevalue("etcd")
    return etcd.address, etcd.keys


@pytest.fixture
def keys(backend: tuple[str, Keys]) -> Keys:
    return backend[1]


@pytest.fixture
async def kv(backend: tuple[str, Keys]) -> AsyncIterator[KV]:
    kv: KV = EtcdKV([backend[0]]) if backend[0] else MemoryKV()
    yield kv
    await kv.close()


@pytest.fixture
async def store(kv: KV, keys: Keys) -> AsyncIterator[EventStore]:
    """As a replica has it: with an eye on whether the key-value store is still the same."""
    lineage = Lineage(kv, keys=keys, replica="r1", now_ms=lambda: 0, new_id=lambda: "log-1")
    async with EventStore(GuardedKV(lineage), keys=keys) as store:
        yield store


@pytest.fixture
async def lossy(kv: KV, keys: Keys) -> AsyncIterator[tuple[LostAnswers, EventStore]]:
    """A store whose transactions' answers, or the transactions themselves, can be made to get lost."""
    answers = LostAnswers(kv)
    async with EventStore(answers, keys=keys) as store:
        yield answers, store
