"""Which notices follow from what happened, and who wants them: decisions on values.

There are two ways to come by a notice. Of a *workload* it is told what has become true of its present run: that it
runs, or how it ended. What is true is computed from its containers as its status is (`core.status`), so nothing is
told that `pwm get` would not show; and each thing is told once a run, however often replicas start or how many fail.
Besides, something must just have been reported that makes it true, so whoever asks to be told hears of what is to come.

Of *events* that are notices by themselves the rules are in `RULES`, by the name of the event's payload. A new kind of
notice is one more function there.

What there is to be told of, as people write it in `notify.on`, is in `KINDS`. A notice's id follows from what it tells:
one that is decided on twice, because a leader died in between, is the same.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.events_pb2 import Event
from pwm.api.v1.identity_pb2 import User
from pwm.api.v1.store_pb2 import PendingNotice
from pwm.api.v1.workload_pb2 import Container, ContainerStatus, Notify, Workload, WorkloadStatus
from pwm.controlplane.core.credits import notice_said
from pwm.controlplane.core.limits import GROUP, owner_of
from pwm.controlplane.core.status import workload_status
from pwm.controlplane.core.targets import MAIL
from pwm.enums import value_name

KINDS = ("queued", "running", "paused", "stopped", "exited", "crashed", "denied", "idle", "credits")
# Of a workload whose `notify` does not say of what.
OF_A_WORKLOAD = frozenset({"running", "exited", "crashed", "denied", "idle"})
# Of a user whose `notify` does not say of what; and of one who has none, but a mail address.
OF_A_USER = frozenset({"exited", "crashed", "denied", "idle", "credits"})
UNASKED = frozenset({"idle", "credits"})
# Who waits no longer than this need not be told of it.
QUEUED_AFTER_MS = 60_000

_ENDS = {
    WorkloadStatus.EXITED: "exited",
    WorkloadStatus.CRASHED: "crashed",
    WorkloadStatus.STOPPED: "stopped",
    WorkloadStatus.PAUSED: "paused",
}
_SAID = {
    "queued": "is waiting",
    "running": "is running",
    "paused": "is paused",
    "stopped": "was stopped",
    "exited": "has ended",
    "crashed": "has crashed",
    "denied": "cannot start",
}
_WELL = (ContainerStatus.RUNNING, ContainerStatus.EXITED)
# Who wants to hear of these hears also that something was stopped for it.
_STOPPED_FOR = {"IDLE": "idle", "OUT_OF_CREDITS": "credits", "TIME_LIMIT": "exited"}


@dataclass(frozen=True, slots=True)
class Happened:
    """An event, and its resource after it; before it, if it was its end."""

    event: Event
    state: Any


@dataclass(frozen=True, slots=True)
class Notice:
    """`about`: kind, group and name. `user`: whom it concerns. `fact`: what is remembered to have been told."""

    id: str
    kind: str
    subject: str
    text: str
    time: Timestamp
    about: tuple[str, str, str]
    user: str
    reason: str = ""
    fact: str = ""
    # Whose last output is told with it, if there is any.
    container: Container | None = None


# ---- who wants what


def addresses(kind: str, *, user: User | None, own: Notify | None = None) -> list[str]:
    """Where a notice goes: by the workload's own wishes and by those of the user that it concerns.

    A user who is gone or deactivated is told nothing more, nor are those whom he had told.
    """
    if user is None or (user.spec.HasField("active") and not user.spec.active):
        return []
    found: dict[str, None] = {}
    mail = MAIL + user.spec.contact.email if user.spec.contact.email else ""
    for wishes, unsaid in ((own, OF_A_WORKLOAD), (_wishes_of(user), OF_A_USER)):
        if wishes is not None and kind in (wishes.on or unsaid):
            found.update(dict.fromkeys([mail] if wishes.by_email and mail else []))
            found.update(dict.fromkeys(wishes.to))
    return list(found)


def _wishes_of(user: User) -> Notify:
    return user.spec.notify if user.spec.HasField("notify") else Notify(by_email=True, on=sorted(UNASKED))


def pending(notice: Notice, address: str, *, now_ms: int) -> PendingNotice:
    """A notice on its way to one address."""
    kind, group, name = notice.about
    return PendingNotice(
        id=notice.id, address=address, kind=notice.kind, subject=notice.subject, text=notice.text, time=notice.time,
        about_kind=kind, about_group=group, about_name=name, reason=notice.reason, user=notice.user,
        next_attempt=_at(now_ms), accepted=_at(now_ms),
        container_uid=notice.container.metadata.uid if notice.container is not None else "",
        node=notice.container.spec.node if notice.container is not None else "",
    )  # fmt: skip


def _id(*parts: object) -> str:
    return sha256("/".join(map(str, parts)).encode()).hexdigest()[:24]


# ---- of workloads


def run_of(workload: Workload) -> str:
    """Names the present run: what was told of an earlier one is told again."""
    return str(workload.status.first_attempt)


def news(happened: Iterable[Happened]) -> set[str]:
    """Which facts the events of one workload and its containers can have made true."""
    found: set[str] = set()
    for one in happened:
        match one.event.WhichOneof("payload"):
            case "container_reported":
                reported = one.event.container_reported
                started = reported.phase == ContainerStatus.RUNNING or reported.HasField("started_at")
                ended = reported.phase not in (ContainerStatus.RUNNING, ContainerStatus.PHASE_UNSPECIFIED)
                found |= ({"running"} if started else set()) | (set(_ENDS.values()) if ended else set())
            case "workload_desired" | "workload_scaled":
                found |= set(_ENDS.values())
    return found


def of_workload(
    workload: Workload, containers: Sequence[Container], *, new: Collection[str], told: Collection[str]
) -> list[Notice]:
    """What has become true of its run, out of `new`, and is not in `told`."""
    status = workload_status(workload, containers, waiting=None, nodes_unreachable=())
    notices = []
    if "running" in new and "running" not in told:
        started = _first_start(workload, containers)
        if started is not None:
            notices.append(_of_run(workload, "running", Reason(), started.status.started_at, _where(started)))
    fact = _ENDS.get(status.phase, "")
    if fact in new and fact not in told:
        ended = _of_run(workload, fact, status.reason, status.since, _ended(status))
        notices.append(replace(ended, container=_last_crash(workload, containers)) if fact == "crashed" else ended)
    return notices


def kinds_of(fact: str) -> set[str]:
    """The kinds of notices that a fact of a workload can come to."""
    return {fact, *_STOPPED_FOR.values()} if fact == "stopped" else {fact}


def waits(workload: Workload, shown: WorkloadStatus, *, told: Collection[str], now_ms: int) -> list[Notice]:
    """What is to be told of one that waits: `shown` is its status as people see it, with why."""
    if shown.phase == WorkloadStatus.DENIED and "denied" not in told:
        return [_of_run(workload, "denied", shown.reason, _at(now_ms))]
    long = now_ms - shown.since.ToMilliseconds() >= QUEUED_AFTER_MS
    if shown.phase == WorkloadStatus.QUEUED and long and "queued" not in told:
        return [_of_run(workload, "queued", shown.reason, _at(now_ms))]
    return []


def _first_start(workload: Workload, containers: Iterable[Container]) -> Container | None:
    run = (c for c in containers if c.spec.attempt >= workload.status.first_attempt)
    started = [c for c in run if c.status.HasField("started_at")]
    return min(started, key=lambda c: (c.status.started_at.ToMilliseconds(), c.metadata.uid), default=None)


def _last_crash(workload: Workload, containers: Iterable[Container]) -> Container | None:
    """Of the present run, the one that failed last, if it ever ran."""
    run = (c for c in containers if c.spec.attempt >= workload.status.first_attempt)
    failed = [c for c in run if c.status.HasField("started_at") and (c.status.exit_code or c.status.phase not in _WELL)]
    return max(failed, key=lambda c: (c.status.finished_at.ToMilliseconds(), c.metadata.uid), default=None)


def _of_run(workload: Workload, fact: str, reason: Reason, time: Timestamp, more: Sequence[str] = ()) -> Notice:
    metadata, code = workload.metadata, value_name(Reason.Code.Name, reason.code)
    kind = _STOPPED_FOR.get(code, "stopped") if fact == "stopped" else fact
    said = f"{metadata.name} {_SAID[fact]}"
    because = f": {reason.message}" if reason.message else ""
    place = f"{metadata.name} -g {metadata.group}"
    text = [
        f"Workload {metadata.name} of group {metadata.group} {_SAID[fact]}{because}.", "",
        f"at    {_time(time)}", *more, "",
        f"pwm describe wk {place}", f"pwm why wk {place}", f"pwm logs wk {place}",
    ]  # fmt: skip
    return Notice(
        id=_id("Workload", metadata.uid, run_of(workload), fact), kind=kind, subject=_subject(said + because),
        text="\n".join(text) + "\n", time=time, about=("Workload", metadata.group, metadata.name),
        user=owner_of(workload), reason=code if reason.code else "", fact=fact,
    )  # fmt: skip


def _where(container: Container) -> list[str]:
    return [f"on    {container.spec.node}"]


def _ended(status: WorkloadStatus) -> list[str]:
    nodes = ", ".join(status.nodes[:3]) + (", ..." if len(status.nodes) > 3 else "")
    return [f"on    {nodes}"] if nodes else []


# ---- of events that are notices


def _credits(happened: Happened, people: Iterable[User]) -> list[Notice]:
    """A user's, or a group's: then all its members are told."""
    event = happened.event
    of_group = event.kind == GROUP
    users = [u.metadata.name for u in people if any(m.name == event.name for m in u.spec.groups)] if of_group else []
    said = f"{'group' if of_group else 'user'} {event.name} {notice_said(event.credit_notice)}"
    text = f"{said[0].upper()}{said[1:]}.\n\npwm credits\npwm report\n"
    return [_of_event(event, "credits", said, text, user=user) for user in users or ([] if of_group else [event.name])]


def _idle(happened: Happened, people: Iterable[User]) -> list[Notice]:
    event, workload = happened.event, happened.state
    said = f"{event.name} does not use its GPUs"
    stop = _time(event.workload_idle_warned.stop_at)
    text = (
        f"Workload {event.name} of group {event.group} has not used any of its GPUs for a while.\n"
        f"It will be stopped at {stop} if that goes on.\n\npwm keep wk {event.name} -g {event.group}    holds it once\n"
    )
    return [_of_event(event, "idle", said, text, user=owner_of(workload))]


Rule = Callable[[Happened, Iterable[User]], list[Notice]]
RULES: dict[str, Rule] = {"credit_notice": _credits, "workload_idle_warned": _idle}


def of_event(happened: Happened, people: Iterable[User]) -> list[Notice]:
    rule = RULES.get(happened.event.WhichOneof("payload") or "")
    return rule(happened, people) if rule is not None else []


def _of_event(event: Event, kind: str, said: str, text: str, *, user: str) -> Notice:
    return Notice(
        id=_id(event.kind, event.uid, event.version, user), kind=kind, subject=_subject(said), text=text,
        time=event.time, about=(event.kind, event.group, event.name), user=user,
    )  # fmt: skip


# ---- words


def _subject(said: str) -> str:
    """One line, whatever a reason has in it."""
    return "PWM: " + " ".join(said.split())[:200]


def _time(time: Timestamp) -> str:
    return datetime.fromtimestamp(time.seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _at(now_ms: int) -> Timestamp:
    time = Timestamp()
    time.FromMilliseconds(now_ms)
    return time
