"""Bugs planted into the product are found, each by a seed that is known to find it quickly.

`python -m tests.sim --hunt` looks for them anew, from the first seed on, and says which one finds what: that is how
the seeds come into `planted.py`.
"""

import os
import subprocess
import sys

import pytest

from tests.sim.planted import BUGS, SEEDS_AT_MOST

# Seeds from the known one on: rare bugs may need some when the code has changed.
PATIENCE_SEEDS = 150


def test_there_are_at_least_twenty_planted_bugs_and_each_says_what_it_is() -> None:
    assert len(BUGS) >= 20
    assert all(bug.sentence.endswith(".") and bug.seed < SEEDS_AT_MOST for bug in BUGS.values())


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str) -> None:
    """By the seed that found it last or, if the code under it has changed since, by one of the next."""
    seed = BUGS[name].seed
    hunt = subprocess.run(
        [sys.executable, "-m", "tests.sim", str(seed), str(seed + PATIENCE_SEEDS), "--hunt", name],
        env={**os.environ, "PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert hunt.returncode == 0, f"{hunt.stdout}{hunt.stderr}"
