"""What was looked at once is left alone; cycles are freed all the same."""

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from pwm.controlplane import garbage
from pwm.controlplane.garbage import look_for_garbage, search
from tests.patience import PATIENCE_S


class Ring:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    gc.collect()
    yield
    gc.unfreeze()
    gc.enable()


def test_what_has_been_made_since_the_last_search_is_freed_and_the_rest_is_settled() -> None:
    kept, dropped = Ring(), weakref.ref(Ring())
    search(everything=False)
    assert dropped() is None
    assert kept not in gc.get_objects(), "it is not walked through again"


def test_a_settled_cycle_is_freed_when_everything_is_searched() -> None:
    ring = Ring()
    search(everything=False)
    later = weakref.ref(ring)
    del ring
    search(everything=False)
    assert later() is not None
    search(everything=True)
    assert later() is None


async def test_it_is_done_again_and_again_but_not_while_the_view_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "SETTLE_EVERY_S", 0.001)
    monkeypatch.setattr(garbage, "ALL_EVERY_S", 0.004)
    searches: list[bool] = []
    enough = asyncio.Event()

    def note(*, everything: bool) -> int:
        searches.append(everything)
        if len(searches) >= 3 and True in searches:
            enough.set()
        return 0

    monkeypatch.setattr(garbage, "search", note)
    before = gc.get_threshold()
    gc.disable()
    looking = asyncio.create_task(look_for_garbage())
    await asyncio.sleep(0.01)
    assert not searches
    gc.enable()
    async with asyncio.timeout(PATIENCE_S):
        await enough.wait()
    assert False in searches, "most of them are small"
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    assert gc.get_threshold() == before
