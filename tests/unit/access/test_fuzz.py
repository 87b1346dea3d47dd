"""A foreign tool makes requests from the OpenAPI document, in the name of everybody: nothing may fail or hang.

A few of them are among the tests; `make fuzz` makes a thousand.
"""

import asyncio
import os
import random
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from tests.unit.access.world import CALLERS, World, a_world

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

# Rpcs that are called, in somebody's name, three times each.
ROUNDS = int(os.environ.get("PWM_FUZZ_ROUNDS", "12"))
# A drill ends this very process; a shell is no request.
LEFT_OUT = ["/v1/admin/drill", "/v1/exec"]
# Without an agent they can only say so.
NEED_AN_AGENT = ("logs", "inspect", "processes")
# What takes longer hangs: the machine may be busy.
ANSWER_LIMIT_S = 30.0
# Streams end by themselves then.
STREAM_S = "200m"


async def test_no_request_makes_anything_fail_or_hang_whoever_makes_it() -> None:
    async with a_world() as world:
        answers = await asyncio.to_thread(run, world)
        assert (await world.ask("admin", "GET", "/v1/whoami")).status == 200
    assert sum(answers.values()) > ROUNDS, answers


def run(world: World) -> "Counter[int]":
    """Answers by their status."""
    schema = schemathesis.openapi.from_url(f"{world.url}/openapi.json").exclude(path=LEFT_OUT)
    operations = [result.ok() for result in schema.get_all_operations()]
    callers = [*CALLERS, "anonymous", "node"]
    answers: Counter[int] = Counter()
    first = random.randrange(1 << 32)
    for number in range(first, first + ROUNDS):
        drawn = random.Random(number)
        caller = drawn.choice(callers)
        headers = {"Grpc-Timeout": STREAM_S}
        if world.tokens[caller]:
            headers["Authorization"] = f"Bearer {world.tokens[caller]}"
        answers += ask(drawn.choice(operations), caller, headers, number)
    return answers


def ask(operation: Any, caller: str, headers: dict[str, str], number: int) -> "Counter[int]":
    answers: Counter[int] = Counter()

    @seed(number)
    @given(case=operation.as_strategy())
    @settings(
        max_examples=3, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate],
        verbosity=Verbosity.quiet,
    )  # fmt: skip
    def call(case: Any) -> None:
        began_s = time.monotonic()
        answer = case.call(headers=headers, timeout=2 * ANSWER_LIMIT_S)
        took_s = time.monotonic() - began_s
        answers[answer.status_code] += 1
        where = f"{caller} (seed {number}): {case.method} {answer.request.url} {answer.request.body!r}"
        unavailable = answer.status_code == 503 and case.path.endswith(NEED_AN_AGENT)
        assert answer.status_code < 500 or answer.status_code == 504 or unavailable, f"{where}: {answer.content!r}"
        assert took_s < ANSWER_LIMIT_S, f"{where}: {took_s:.1f} s"

    call()
    return answers
