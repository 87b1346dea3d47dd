"""`pwm admin verify`: finds a head that is not the fold, and holes."""

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1.store_pb2 import Head
from pwm.controlplane.audit import AuditLog
from pwm.controlplane.core.decide import Change, change
from pwm.controlplane.store.commits import StreamId
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.verify import verify
from tests.unit.controlplane.conftest import ACTOR, Plane

KEYS = Keys(b"/test/")


async def filled(plane: Plane) -> None:
    new = Change("Group", "a", "a", "", None, (ev.GroupApplied(),))
    await plane.commands.run(lambda: [new], actor=ACTOR)
    for text in ("x", "y"):
        state = plane.view.get("Group", "a")
        payload = ev.GroupApplied()
        payload.spec.description = text
        await plane.commands.run(lambda s=state, p=payload: [change(s, p)], actor=ACTOR)  # type: ignore[misc]


async def test_an_untouched_log_has_no_differences(plane: Plane) -> None:
    await filled(plane)
    report = await verify(plane.store, plane.view, AuditLog(plane.kv, keys=KEYS))
    assert (report.streams, report.events, list(report.differences)) == (1, 3, [])


async def test_a_head_that_was_tampered_with_is_found(plane: Plane) -> None:
    await filled(plane)
    key = KEYS.head(StreamId("Group", "a"))
    head = Head.FromString((await plane.kv.range(key)).kvs[0].value)
    head.state = head.state[:-1] + b"z"
    await plane.kv.put(key, head.SerializeToString())
    report = await verify(plane.store, plane.view, AuditLog(plane.kv, keys=KEYS))
    assert len(report.differences) == 1
    assert "Group/a" in report.differences[0]


async def test_an_event_that_is_missing_is_found(plane: Plane) -> None:
    await filled(plane)
    await plane.kv.delete(KEYS.event(StreamId("Group", "a"), 2))
    report = await verify(plane.store, plane.view, AuditLog(plane.kv, keys=KEYS))
    assert "missing [2]" in report.differences[0]
