"""Bugs planted into the product are found.

`python -m tests.sim --hunt` looks for them among ordinary seeds, as `make sim-long` does. Here there is less time, so
each is looked for with more of the faults that show it (`--sharp`), first where it was found last.
"""

import os
import subprocess
import sys

import pytest

from tests.sim.faults import KINDS
from tests.sim.planted import BUGS, SEEDS_AT_MOST

# The rarest is found by one sharp seed in forty: so many only miss it once in ten thousand changes of the code.
PATIENCE_SEEDS = 400


def test_there_are_at_least_twenty_planted_bugs_and_each_says_what_it_is() -> None:
    assert len(BUGS) >= 20
    for bug in BUGS.values():
        assert bug.sentence.endswith(".")
        assert bug.seed < SEEDS_AT_MOST
        assert all(kind in KINDS for kind in bug.more)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str) -> None:
    # One after the other: others run beside this, and what is begun in vain costs more than it saves.
    hunt = subprocess.run(
        [sys.executable, "-m", "tests.sim", "0", str(PATIENCE_SEEDS), "--hunt", name, "--sharp", "--workers", "1"],
        env={**os.environ, "PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert hunt.returncode == 0, f"{hunt.stdout}{hunt.stderr}"
