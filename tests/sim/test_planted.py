"""Bugs planted into the product are found, each by a seed that is known to find it quickly.

`python -m tests.sim --hunt` looks for them anew, from the first seed on, and says which one finds what: that is how
the seeds come into `planted.py`, and what has to be done when the code under a bug has changed.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.sim.planted import BUGS, SEEDS_AT_MOST


def test_there_are_at_least_twenty_planted_bugs_and_each_says_what_it_is() -> None:
    assert len(BUGS) >= 20
    assert all(bug.sentence.endswith(".") and bug.seed < SEEDS_AT_MOST for bug in BUGS.values())


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str) -> None:
    seed = BUGS[name].seed
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim", str(seed), str(seed + 1), "--plant", name, "--json", "--no-shrink"],
        env={**os.environ, "PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    (outcome,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert outcome["error"], f"`python -m tests.sim --hunt {name}` finds another seed, if there is one"
    assert "MovedOn" not in outcome["error"]
