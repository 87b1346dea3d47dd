"""Whole clusters in virtual time under seeded faults; after every transaction the invariants are checked.

A seed that fails is replayed with `python -m tests.sim SEED`.
"""

import pytest

from tests.sim.checker import Broken, Checker
from tests.sim.virtual_time import Deadlock, run
from tests.sim.world import KEYS, World

SEEDS = range(60)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cluster_under_faults_keeps_every_invariant(seed: int) -> None:
    world = World(seed)
    run(world.run())
    counts = world.checker.by_kind()
    assert world.faults >= 5
    assert counts["Container"] >= 5, "a run in which nothing happened proves nothing"


def test_the_same_seed_gives_the_same_log() -> None:
    digests = set()
    for _ in range(2):
        world = World(4)
        run(world.run())
        digests.add(world.checker.digest.hexdigest())
    assert len(digests) == 1


def test_the_judge_sees_a_container_that_is_created_twice() -> None:
    checker = Checker(KEYS)
    checker.container_created("w.0.1")
    with pytest.raises(Broken, match="I2"):
        checker.container_created("w.0.1")


def test_a_loop_in_which_nobody_will_wake_up_is_an_error() -> None:
    async def wait_for_nothing() -> None:
        import asyncio

        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run(wait_for_nothing())
