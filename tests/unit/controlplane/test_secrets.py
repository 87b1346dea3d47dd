"""The values of secrets in the store: sealed, beside the log, and only there."""

import pytest

from pwm.api.v1.common_pb2 import Metadata
from pwm.api.v1.events_pb2 import GroupApplied, Removed
from pwm.api.v1.identity_pb2 import Secret, SecretValues
from pwm.api.v1.services_pb2 import ApplyResult
from pwm.controlplane.cluster_key import ClusterKey, ClusterKeyError
from pwm.controlplane.core.decide import Change, Refusal, change
from pwm.controlplane.secrets import Secrets, SecretsClosed
from pwm.controlplane.services.secrets import Held, SecretApplier
from pwm.controlplane.store.commits import StreamId
from tests.unit.controlplane.conftest import ACTOR, Plane

UID = "01secret"
PLANTED = "tell-nobody"


def wanted(**data: str) -> Secret:
    made = Secret(kind="Secret", metadata=Metadata(name="s", group="g"))
    made.spec.data.update(data)
    return made


async def apply(plane: Plane, secret: Secret, *, secrets: Secrets | None = None) -> int:
    applier = SecretApplier(view=plane.view, secrets=secrets or plane.secrets)
    held = await applier.held(secret)
    state: Secret | None = plane.view.by_name("Secret", "s", group="g")
    outcome, payloads, sealed = applier.decide(state, secret, held, uid=UID)
    await plane.commands.run(lambda: [Change("Secret", UID, "s", "g", state, payloads, sealed=sealed)], actor=ACTOR)
    return outcome


def state(plane: Plane) -> Secret:
    found = plane.view.by_name("Secret", "s", group="g")
    assert isinstance(found, Secret)
    return found


async def dump(plane: Plane) -> dict[bytes, bytes]:
    return {kv.key: kv.value async for page in plane.kv.pages(b"/test/") for kv in page.kvs}


async def test_values_are_opened_as_they_were_and_nothing_in_the_store_shows_them(plane: Plane) -> None:
    assert await apply(plane, wanted(a=PLANTED)) == ApplyResult.CREATED
    assert await plane.secrets.values(state(plane)) == (1, SecretValues(data={"a": PLANTED.encode()}))
    assert dict(state(plane).spec.data) == {"a": ""}
    assert not [key for key, value in (await dump(plane)).items() if PLANTED.encode() in key + value]
    assert await apply(plane, wanted(a="")) == ApplyResult.UNCHANGED
    assert await apply(plane, wanted(a="", b="2")) == ApplyResult.CONFIGURED
    assert await plane.secrets.values(state(plane)) == (2, SecretValues(data={"a": PLANTED.encode(), "b": b"2"}))


async def test_values_go_with_their_secret(plane: Plane) -> None:
    await apply(plane, wanted(a=PLANTED))
    await plane.commands.run(lambda: [change(state(plane), Removed())], actor=ACTOR)
    assert await plane.store.sealed(StreamId("Secret", UID)) is None
    assert not [key for key in await dump(plane) if b"sealed" in key]


async def test_a_value_that_was_replaced_does_not_come_back(plane: Plane) -> None:
    """Whoever can write to etcd cannot give containers an old value, nor that of another secret."""
    await apply(plane, wanted(a="leaked"))
    key = plane.store.keys.sealed(StreamId("Secret", UID))
    old = await plane.store.sealed(StreamId("Secret", UID))
    assert old
    await apply(plane, wanted(a="new"))
    await plane.kv.put(key, old)
    with pytest.raises(SecretsClosed, match="the values of secret s are lost; apply it again"):
        await plane.secrets.values(state(plane))
    other = plane.secrets.seal(SecretValues(data={"a": b"other's"}), uid="another", version=2)
    await plane.kv.put(key, other)
    with pytest.raises(SecretsClosed, match="cannot be read"):
        await plane.secrets.values(state(plane))
    await plane.kv.put(key, b"\xff no message at all")
    with pytest.raises(SecretsClosed, match="are lost"):
        await plane.secrets.values(state(plane))
    assert await plane.secrets.reseal() == 0
    # What cannot be opened can be replaced.
    assert await apply(plane, wanted(a="mended")) == ApplyResult.CONFIGURED
    assert (await plane.secrets.values(state(plane)))[1].data["a"] == b"mended"


async def test_without_a_key_nothing_is_kept(plane: Plane) -> None:
    keyless = Secrets(store=plane.store, view=plane.view, key=None)
    with pytest.raises(Refusal, match="nothing is kept that cannot be encrypted: this controller has no cluster key"):
        await apply(plane, wanted(a=PLANTED), secrets=keyless)
    assert plane.view.by_name("Secret", "s", group="g") is None


async def test_who_read_the_values_before_another_change_decides_again(plane: Plane) -> None:
    await apply(plane, wanted(a="1"))
    applier = SecretApplier(view=plane.view, secrets=plane.secrets)
    with pytest.raises(Refusal, match="somebody has just changed the secret") as refused:
        applier.decide(state(plane), wanted(a=""), Held(7, SecretValues()), uid=UID)
    assert refused.value.conflict


async def test_the_first_controller_says_which_key_it_is(plane: Plane) -> None:
    await plane.secrets.check_key(plane.kv)
    await plane.secrets.check_key(plane.kv)
    stranger = Secrets(store=plane.store, view=plane.view, key=ClusterKey.generate())
    with pytest.raises(ClusterKeyError, match="the cluster has another key"):
        await stranger.check_key(plane.kv)
    await Secrets(store=plane.store, view=plane.view, key=None).check_key(plane.kv)


async def test_a_new_key_takes_over_while_the_old_one_is_still_known(plane: Plane) -> None:
    old, new = ClusterKey.generate(), ClusterKey.generate()
    both = ClusterKey.parse((new.text() + old.text()).encode(), source="keys")
    first, second, last = (Secrets(store=plane.store, view=plane.view, key=key) for key in (old, both, new))
    await first.check_key(plane.kv)
    await apply(plane, wanted(a="1"), secrets=first)
    await second.check_key(plane.kv)
    assert (await second.values(state(plane)))[1].data["a"] == b"1"
    await second.reseal()
    await last.check_key(plane.kv)
    assert (await last.values(state(plane)))[1].data["a"] == b"1"
    with pytest.raises(ClusterKeyError):
        await first.check_key(plane.kv)


async def test_other_kinds_have_nothing_beside_the_log(plane: Plane) -> None:
    await plane.commands.run(lambda: [Change("Group", "01g", "g", "", None, (GroupApplied(),))], actor=ACTOR)
    group = plane.view.by_name("Group", "g")
    await plane.commands.run(lambda: [change(group, Removed())], actor=ACTOR)
    assert not [key for key in await dump(plane) if b"sealed" in key]
