"""Endings in words."""

import pytest

from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.workload_pb2 import ContainerSpec
from pwm.nodeagent import endings
from pwm.nodeagent.drivers.driver import Ended


@pytest.mark.parametrize(
    ("ended", "code", "message"),
    [
        (Ended(0, 1), Reason.COMPLETED, "The command ended"),
        (Ended(2, 1), Reason.EXIT_CODE, "The command ended with exit code 2"),
        (Ended(139, 1), Reason.KILLED_BY_SIGNAL, "The command was killed by SIGSEGV"),
        (Ended(128, 1), Reason.EXIT_CODE, "The command ended with exit code 128"),
        (Ended(255, 1), Reason.EXIT_CODE, "The command ended with exit code 255"),
        (Ended(1, 1, message="the disk broke"), Reason.EXIT_CODE, "The command ended with exit code 1; the disk broke"),
        (
            Ended(137, 1, oom_killed=True),
            Reason.MEMORY_LIMIT,
            "The command was killed because it used more memory than its limit of 512MiB",
        ),
    ],
)
def test_an_end_is_explained(ended: Ended, code: Reason.Code.ValueType, message: str) -> None:
    spec = ContainerSpec(resources={"memory_bytes": 512 << 20})
    assert endings.reason(ended, spec, stop=None) == Reason(code=code, message=message)


def test_a_stop_explains_more_than_how_it_ended() -> None:
    stop = Reason(code=Reason.TIME_LIMIT, message="It ran for 24h")
    assert endings.reason(Ended(137, 1, oom_killed=True), ContainerSpec(), stop=stop) == stop


def test_without_a_limit_it_was_the_machine_that_ran_out_of_memory() -> None:
    reason = endings.reason(Ended(137, 1, oom_killed=True), ContainerSpec(), stop=None)
    assert reason.message == "The command was killed because the node ran out of memory"
