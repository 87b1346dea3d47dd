"""What an event says, for people: in `pwm events`, `pwm get events` and `pwm describe`."""

from datetime import UTC, datetime

from pwm import lifecycle
from pwm.api.v1.common_pb2 import Actor, Reason
from pwm.api.v1.events_pb2 import Event
from pwm.api.v1.node_pb2 import NodeCertificate, NodeStatus
from pwm.api.v1.workload_pb2 import WorkloadStatus
from pwm.controlplane.core import idle
from pwm.controlplane.core.credits import notice_said
from pwm.controlplane.core.ledger import UNITS_PER_MICRO, cost_units, merged
from pwm.controlplane.core.limits import OVER_CODES
from pwm.controlplane.core.scheduling.verdicts import counted
from pwm.enums import value_name
from pwm.quantity import format_credits


def line(event: Event) -> str:
    """One line for people: when, what, who."""
    at = datetime.fromtimestamp(event.time.seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    name = f"{event.group}/{event.name}" if event.group else event.name
    by = f" by {value_name(Actor.Type.Name, event.actor.type).lower()} {event.actor.name}" if event.actor.name else ""
    return f"{at}  {event.kind:<9} {name}  {said(event)}{by}"


def said(event: Event) -> str:
    """What the event says happened."""
    payload = event.WhichOneof("payload")
    match payload:
        case "workload_applied":
            return "created" if event.version == 1 else f"configured, generation {event.workload_applied.generation}"
        case "workload_scaled":
            return f"scaled to {event.workload_scaled.count}"
        case "workload_desired":
            desired = event.workload_desired
            word = value_name(WorkloadStatus.Desired.Name, desired.desired).lower()
            return f"should {word}" + _because(desired.reason)
        case "workload_restarted":
            return "restarted"
        case "workload_held_back":
            reason = event.workload_held_back.reason
            return ("denied" if reason.code in OVER_CODES else "waits") + _because(reason)
        case "workload_idle_warned":
            return idle.warned_said(event.workload_idle_warned)
        case "workload_kept":
            return idle.kept_said(event.workload_kept)
        case "workload_idle_over":
            return idle.over_said(event.workload_idle_over)
        case "container_placed":
            return f"placed on {event.container_placed.spec.node}"
        case "container_reported":
            report = event.container_reported
            text = lifecycle.phase_word(report.phase)
            if report.HasField("exit_code"):
                text += f", exit code {report.exit_code}"
            return text + _because(report.reason)
        case "container_stop_requested":
            return "to be stopped" + _because(event.container_stop_requested.reason)
        case "node_joined":
            return "agent joined" if event.version == 1 else "told what it has"
        case "node_phase_changed":
            change = event.node_phase_changed
            return value_name(NodeStatus.Phase.Name, change.phase).lower().replace("_", " ") + _because(change.reason)
        case "node_admitted":
            return "joined with a join token" + _until(event.node_admitted.certificate)
        case "node_certified":
            return "has another certificate" + _until(event.node_certified.certificate)
        case "node_credentials_revoked":
            return "certificates revoked"
        case "period_settled":
            settled = event.period_settled
            until = datetime.fromtimestamp(settled.until.seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
            credits = format_credits(cost_units(merged(settled.lines)) // UNITS_PER_MICRO)
            return f"{credits} credits used" if settled.lines else f"settled until {until}"
        case "credit_notice":
            return notice_said(event.credit_notice)
        case "notice_given_up":
            lost = event.notice_given_up
            tried = f"given up after {counted(lost.attempts, 'attempt')}"
            return f"notice to {lost.user} {tried} ({lost.kind}, by {lost.to}): {lost.why}"
        case "removed":
            return "removed" + _because(event.removed.reason)
        case "token_issued" | "token_revoked" | None:
            return (payload or "unknown").replace("_", " ")
    return "created" if event.version == 1 else "configured"


def _until(certificate: NodeCertificate) -> str:
    until = datetime.fromtimestamp(certificate.expires_at.seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f", certificate {certificate.fingerprint[:12]} until {until}"


def _because(reason: Reason) -> str:
    text = reason.message or (value_name(Reason.Code.Name, reason.code) if reason.code else "")
    return f": {text}" if text else ""
