"""Short ways to write workloads and containers in tests."""

from typing import Any

from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.workload_pb2 import Container, ContainerStatus, Workload, WorkloadStatus

T0 = 1_000_000


def workload(*, count: int = 1, first_attempt: int = 1, desired: Any = WorkloadStatus.RUN, **config: Any) -> Workload:
    made = Workload(api_version="v1", kind="Workload")
    made.metadata.uid, made.metadata.name, made.metadata.group = "w", "train", "vision"
    made.metadata.version = 1
    made.spec.replica.count = count
    for name, value in config.items():
        setattr(made.spec.config, name, value)
    made.status.desired = desired
    made.status.first_attempt = first_attempt
    made.status.desired_at.FromMilliseconds(T0)
    return made


def container(
    replica: int = 0,
    attempt: int = 1,
    phase: Any = ContainerStatus.RUNNING,
    *,
    exit_code: int | None = None,
    started_ms: int = T0,
    ended_ms: int = T0,
    failures_before: int = 0,
    stop: Any = None,
    time_limit_ms: int = 0,
) -> Container:
    made = Container(api_version="v1", kind="Container")
    made.metadata.uid = f"w.{replica}.{attempt}"
    made.metadata.name = f"train.{replica}.{attempt}"
    made.metadata.version = 1
    spec, status = made.spec, made.status
    spec.workload_uid, spec.replica, spec.attempt, spec.node = "w", replica, attempt, "n1"
    spec.failures_before = failures_before
    spec.time_limit_ms = time_limit_ms
    status.phase = phase
    if phase in (ContainerStatus.RUNNING, ContainerStatus.EXITED):
        status.started_at.FromMilliseconds(started_ms)
    if exit_code is not None:
        status.exit_code = exit_code
    if phase in (ContainerStatus.EXITED, ContainerStatus.FAILED):
        status.finished_at.FromMilliseconds(ended_ms)
    status.since.FromMilliseconds(ended_ms)
    if stop is not None:
        status.stop_requested.CopyFrom(Reason(code=stop))
    return made
