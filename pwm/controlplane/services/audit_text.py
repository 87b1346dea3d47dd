"""What an entry of the audit says, for people."""

from datetime import UTC, datetime

from pwm.api.v1.audit_pb2 import AuditEntry
from pwm.enums import value_name

NOBODY = "-"


def line(entry: AuditEntry) -> str:
    """When, what, who, from where, with which token, about what."""
    action = value_name(AuditEntry.Action.Name, entry.action).lower().replace("_", " ")
    who = (entry.user or NOBODY, entry.address or NOBODY, entry.token or NOBODY)
    columns = "  ".join(f"{text:<{width}}" for text, width in zip(who, (12, 15, 12), strict=True))
    return f"{_time(entry.time.seconds)}  {action:<12}  {columns}  {said(entry)}{_times(entry)}".rstrip()


def said(entry: AuditEntry) -> str:
    """What it was about, and what about it."""
    name = f"{entry.group}/{entry.name}" if entry.group and entry.name else entry.group or entry.name
    about = f"{entry.kind} {name}".strip()
    match entry.action:
        case AuditEntry.CHANGE:
            return f"{about}: {entry.what.replace('_', ' ')}, version {entry.version}"
        case AuditEntry.DENIED:
            return f"{entry.what} {about}".strip() or "different things"
        case AuditEntry.LOGIN_FAILED:
            return entry.what or ("a token that has ended" if entry.user else "different tokens")
        case AuditEntry.LOST:
            return "there was more than could be written down"
    return f"{about}: {entry.what}" if about and entry.what else about or entry.what


def _times(entry: AuditEntry) -> str:
    if not entry.count:
        return ""
    return f" ({entry.count:,} times until {_time(entry.until.seconds)[11:]})"


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
