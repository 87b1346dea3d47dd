"""State is the fold of events."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1.workload_pb2 import ContainerSpec, ContainerStatus, Workload, WorkloadSpec, WorkloadStatus
from pwm.controlplane.core.evolve import _HANDLERS, STATE_TYPES, evolve, fold_all

PAYLOADS = [field.name for field in ev.Event.DESCRIPTOR.oneofs_by_name["payload"].fields]


def event(version: int, kind: str = "Workload", **payload: object) -> ev.Event:
    made = ev.Event(kind=kind, uid="u", name="n", group="g", version=version, **payload)  # type: ignore[arg-type]
    made.time.FromMilliseconds(1000 * version)
    return made


def test_every_payload_of_the_log_has_a_handler() -> None:
    assert sorted(_HANDLERS) == sorted(PAYLOADS)


def test_evolving_leaves_the_state_before_alone() -> None:
    before = evolve(None, event(1, workload_applied=ev.WorkloadApplied(spec=WorkloadSpec(driver="a"))))
    bytes_before = before.SerializeToString(deterministic=True)
    after = evolve(before, event(2, workload_scaled=ev.WorkloadScaled(count=7)))
    assert before.SerializeToString(deterministic=True) == bytes_before
    assert isinstance(after, Workload)
    assert after.spec.replica.count == 7


def test_a_stream_begins_with_its_identity_and_desire() -> None:
    state = evolve(None, event(1, workload_applied=ev.WorkloadApplied(generation=1, first_attempt=1)))
    assert isinstance(state, Workload)
    assert (state.kind, state.metadata.uid, state.metadata.group, state.metadata.version) == ("Workload", "u", "g", 1)
    assert state.status.desired == WorkloadStatus.RUN


def test_an_event_without_a_payload_is_refused() -> None:
    with pytest.raises(ValueError, match="no payload"):
        evolve(None, event(1))


reports = st.lists(
    st.builds(
        ev.ContainerReported,
        phase=st.sampled_from(ContainerStatus.Phase.values()[1:]),
        exit_code=st.none() | st.integers(0, 255),
        oom_killed=st.booleans(),
        runtime_id=st.text(max_size=4),
        pid=st.integers(0, 9),
    ),
    max_size=8,
)


@given(reports)
def test_folding_at_once_and_evolving_step_by_step_give_the_same_bytes(reported: list[ev.ContainerReported]) -> None:
    events = [event(1, "Container", container_placed=ev.ContainerPlaced(spec=ContainerSpec(node="n1")))]
    events += [event(n, "Container", container_reported=report) for n, report in enumerate(reported, start=2)]
    stepwise = None
    for each in events:
        stepwise = evolve(stepwise, each)
    folded = fold_all(events)
    assert stepwise is not None
    assert folded is not None
    assert stepwise.SerializeToString(deterministic=True) == folded.SerializeToString(deterministic=True)


def test_every_state_has_the_fields_that_the_fold_sets() -> None:
    for kind, type_ in STATE_TYPES.items():
        fields = set(type_.DESCRIPTOR.fields_by_name)
        assert {"api_version", "kind", "metadata", "spec"} <= fields, kind
