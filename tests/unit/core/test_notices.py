"""Which notices follow from what, and who gets them."""

from typing import Any

import pytest

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1.common_pb2 import Actor, Reason
from pwm.api.v1.credits_pb2 import CreditNotice
from pwm.api.v1.identity_pb2 import Group, User
from pwm.api.v1.workload_pb2 import ContainerStatus, Notify, Workload, WorkloadStatus
from pwm.controlplane.core import notices
from pwm.controlplane.core.notices import Happened
from tests.unit.core.builders import T0, container, workload

RUNNING, EXITED, FAILED = ContainerStatus.RUNNING, ContainerStatus.EXITED, ContainerStatus.FAILED
ENDS = {"paused", "stopped", "exited", "crashed"}
NEW = ENDS | {"running"}


def hers(**more: Any) -> Workload:
    made = workload(**more)
    made.metadata.created_by.CopyFrom(Actor(type=Actor.USER, name="eve"))
    return made


def kinds(found: list[notices.Notice]) -> list[str]:
    return [notice.kind for notice in found]


# ---- what has become true of a run


@pytest.mark.parametrize(
    ("of", "containers", "told"),
    [
        (hers(), [container(phase=ContainerStatus.PULLING)], []),
        (hers(), [container()], ["running"]),
        (hers(), [container(phase=EXITED, exit_code=0)], ["running", "exited"]),
        (hers(), [container(phase=EXITED, exit_code=3)], ["running", "crashed"]),
        (hers(), [container(phase=FAILED)], ["crashed"]),
        (hers(count=2), [container(0, phase=EXITED, exit_code=3), container(1)], ["running"]),
        (hers(count=2), [container(0, phase=EXITED, exit_code=0)], ["running"]),
        (hers(desired=WorkloadStatus.STOP), [container(phase=EXITED, exit_code=137)], ["running", "stopped"]),
        (hers(desired=WorkloadStatus.PAUSE), [container(phase=EXITED, exit_code=0)], ["running", "paused"]),
        (hers(first_attempt=2), [container(phase=EXITED, exit_code=3)], []),
        (hers(), [container(phase=EXITED, exit_code=1, stop=Reason.TIME_LIMIT)], ["running", "exited"]),
    ],
)
def test_what_is_told_of_a_workload_is_what_its_containers_say(
    of: Workload, containers: list[Any], told: list[str]
) -> None:
    assert kinds(notices.of_workload(of, containers, new=NEW, told=())) == told
    assert set(told) <= {kind for fact in NEW for kind in notices.kinds_of(fact)}


def test_what_was_told_of_a_run_is_not_told_again() -> None:
    ended = [container(phase=EXITED, exit_code=0)]
    assert not notices.of_workload(hers(), ended, new=NEW, told=("running", "exited"))


def test_what_nothing_new_was_said_of_is_not_told() -> None:
    ended = [container(phase=EXITED, exit_code=0)]
    assert kinds(notices.of_workload(hers(), ended, new=ENDS, told=())) == ["exited"]


def test_the_id_is_the_same_for_the_same_fact_of_a_run_and_no_other() -> None:
    ended = [container(phase=EXITED, exit_code=0)]
    first = notices.of_workload(hers(), ended, new=NEW, told=())
    again = notices.of_workload(hers(), ended, new=NEW, told=())
    later = notices.of_workload(hers(first_attempt=2), [container(attempt=2)], new=NEW, told=())
    assert [n.id for n in first] == [n.id for n in again]
    assert len({n.id for n in first + later}) == 3


def test_of_a_crash_it_is_known_who_printed_last() -> None:
    containers = [
        container(0, attempt=1, phase=EXITED, exit_code=3), container(1, attempt=1, phase=EXITED, exit_code=0),
        container(0, attempt=2, phase=EXITED, exit_code=4),
    ]  # fmt: skip
    containers[2].status.finished_at.FromMilliseconds(containers[0].status.finished_at.ToMilliseconds() + 1)
    (crash,) = notices.of_workload(hers(count=2), containers, new=ENDS, told=())
    assert crash.container is containers[2]
    letter = notices.pending(crash, "tgram://1", now_ms=T0)
    assert (letter.container_uid, letter.node) == (containers[2].metadata.uid, containers[2].spec.node)
    (well,) = notices.of_workload(hers(), [container(phase=EXITED, exit_code=0)], new=ENDS, told=())
    assert well.container is None
    (unstarted,) = notices.of_workload(hers(), [container(phase=FAILED)], new=ENDS, told=())
    assert unstarted.container is None


def test_a_crash_tells_why_and_what_to_do_next() -> None:
    (crash,) = notices.of_workload(hers(), [container(phase=EXITED, exit_code=3)], new=ENDS, told=())
    assert crash.subject == "PWM: train has crashed: exited with code 3"
    assert crash.reason == "EXIT_CODE"
    assert crash.user == "eve"
    for part in ("of group vision has crashed", "on    n1", "1970-01-01 00:16:40 UTC", "pwm logs wk train -g vision"):
        assert part in crash.text


@pytest.mark.parametrize(("code", "kind"), [(Reason.OUT_OF_CREDITS, "credits"), (Reason.NONE, "stopped")])
def test_what_is_stopped_for_want_of_something_is_told_as_that(code: Any, kind: str) -> None:
    stopped = hers(desired=WorkloadStatus.STOP)
    stopped.status.desired_reason.CopyFrom(Reason(code=code, message="said"))
    assert kinds(notices.of_workload(stopped, [container(phase=EXITED)], new=ENDS, told=())) == [kind]
    assert kind in notices.kinds_of("stopped")


def test_a_reason_of_several_lines_makes_one_line_of_a_subject() -> None:
    failed = container(phase=FAILED)
    failed.status.reason.CopyFrom(Reason(code=Reason.PULL_FAILED, message="no\r\nBcc: everybody@example.org"))
    (notice,) = notices.of_workload(hers(), [failed], new=ENDS, told=())
    assert "\n" not in notice.subject
    assert "\r" not in notice.subject


@pytest.mark.parametrize(
    ("phase", "waited_ms", "told", "expected"),
    [
        (WorkloadStatus.DENIED, 0, (), ["denied"]),
        (WorkloadStatus.DENIED, 0, ("denied",), []),
        (WorkloadStatus.QUEUED, 59_999, (), []),
        (WorkloadStatus.QUEUED, 60_000, (), ["queued"]),
        (WorkloadStatus.QUEUED, 60_000, ("queued",), []),
        (WorkloadStatus.RUNNING, 60_000, (), []),
    ],
)
def test_who_waits_is_told_at_once_when_it_is_in_vain_and_else_after_a_minute(
    phase: Any, waited_ms: int, told: tuple[str, ...], expected: list[str]
) -> None:
    status = WorkloadStatus(phase=phase, reason=Reason(code=Reason.TOO_MANY_GPUS, message="too many"))
    status.since.FromMilliseconds(T0)
    assert kinds(notices.waits(hers(), status, told=told, now_ms=T0 + waited_ms)) == expected


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (ev.Event(container_reported=ev.ContainerReported(phase=RUNNING)), {"running"}),
        (ev.Event(container_reported=ev.ContainerReported(phase=ContainerStatus.PULLING)), ENDS),
        (ev.Event(container_reported=ev.ContainerReported(phase=EXITED)), ENDS),
        (ev.Event(workload_desired=ev.WorkloadDesired(desired=WorkloadStatus.STOP)), ENDS),
        (ev.Event(workload_applied=ev.WorkloadApplied()), set()),
    ],
)
def test_only_reports_and_wishes_are_news(event: ev.Event, expected: set[str]) -> None:
    assert notices.news([Happened(event, None)]) == expected


# ---- events that are notices


def member(name: str, *groups: str) -> User:
    user = User(kind="User")
    user.metadata.name = name
    for group in groups:
        user.spec.groups.add(name=group)
    return user


def credits_of(kind: str, name: str) -> Happened:
    notice = CreditNotice(level=CreditNotice.LOW, spent_micro=8_000_000, weekly_micro=10_000_000)
    event = ev.Event(kind=kind, uid="u", name=name, version=4, credit_notice=notice)
    return Happened(event, User() if kind == "User" else Group())


def test_a_user_is_told_of_own_credits_and_all_members_of_a_groups() -> None:
    people = [member("eve", "vision"), member("ann", "audio", "vision"), member("bob", "audio")]
    (own,) = notices.of_event(credits_of("User", "eve"), people)
    assert (own.user, own.kind) == ("eve", "credits")
    assert own.subject == "PWM: user eve has spent 8 of 10 credits this week"
    of_group = notices.of_event(credits_of("Group", "vision"), people)
    assert [n.user for n in of_group] == ["eve", "ann"]
    assert len({n.id for n in of_group}) == 2
    assert not notices.of_event(credits_of("Group", "empty"), people)


def test_whoever_created_a_workload_is_told_that_it_is_idle() -> None:
    warned = ev.WorkloadIdleWarned()
    warned.stop_at.FromMilliseconds(T0)
    event = ev.Event(kind="Workload", uid="w", name="train", group="vision", version=7, workload_idle_warned=warned)
    (notice,) = notices.of_event(Happened(event, hers()), [])
    assert (notice.user, notice.kind) == ("eve", "idle")
    assert "stopped at 1970-01-01 00:16:40 UTC" in notice.text
    assert "pwm keep wk train -g vision" in notice.text


def test_there_is_a_payload_for_each_rule() -> None:
    names = {field.name for field in ev.Event.DESCRIPTOR.oneofs_by_name["payload"].fields}
    assert set(notices.RULES) <= names
    assert notices.RULES


# ---- who wants what

MAIL = "mailto:eve@example.org"
CHAT, HOOK = "tgram://token/1", "https://example.org/#key"


def eve(notify: Notify | None = None, *, mail: bool = True, active: bool | None = None) -> User:
    user = member("eve")
    if mail:
        user.spec.contact.email = "eve@example.org"
    if active is not None:
        user.spec.active = active
    if notify is not None:
        user.spec.notify.CopyFrom(notify)
    return user


@pytest.mark.parametrize(
    ("kind", "user", "own", "expected"),
    [
        ("crashed", eve(), None, []),
        ("credits", eve(), None, [MAIL]),
        ("credits", eve(mail=False), None, []),
        ("credits", eve(Notify()), None, []),
        ("crashed", eve(), Notify(by_email=True), [MAIL]),
        ("stopped", eve(), Notify(by_email=True), []),
        ("stopped", eve(), Notify(by_email=True, on=["stopped"]), [MAIL]),
        ("crashed", eve(), Notify(by_email=True, to=[CHAT]), [MAIL, CHAT]),
        ("crashed", eve(mail=False), Notify(by_email=True, to=[CHAT]), [CHAT]),
        ("crashed", eve(Notify(to=[HOOK])), Notify(to=[CHAT, HOOK]), [CHAT, HOOK]),
        ("running", eve(Notify(to=[HOOK])), Notify(to=[CHAT]), [CHAT]),
        ("running", eve(Notify(to=[HOOK], on=["running"])), None, [HOOK]),
        ("crashed", eve(active=False), Notify(by_email=True, to=[CHAT]), []),
        ("crashed", eve(active=True), Notify(to=[CHAT]), [CHAT]),
        ("crashed", None, Notify(to=[CHAT]), []),
    ],
)
def test_a_notice_goes_to_whom_the_workload_and_the_user_name(
    kind: str, user: User | None, own: Notify | None, expected: list[str]
) -> None:
    assert notices.addresses(kind, user=user, own=own) == expected
