"""Where notices may go, and who may see where.

An address is one of three things:

    mailto:ann@example.org           a user's contact; nobody writes this one, `byEmail` means it
    https://host/path#KEY            a webhook, signed with the key; what follows the # is never sent
    tgram://TOKEN/CHAT, slack://...  what apprise knows

The last two hold secrets of whoever wrote them. To others they are shown as `tgram://***`, and a document that has such
an address keeps the one that is there, so that what `get` shows can be applied again by anybody who may.

Whoever can write an address could make a controller talk to machines that only it can reach. So addresses are checked
twice: here, by what the admin allows to be written; and by the process that sends (`delivery.guard`), which refuses
to connect to anything but public addresses and the networks that the admin named, whatever a name resolves to by then.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

from google.protobuf.message import Message

from pwm.api.v1.events_pb2 import Event
from pwm.api.v1.identity_pb2 import User
from pwm.api.v1.workload_pb2 import Notify, Workload
from pwm.controlplane.core.decide import Refusal

MAIL = "mailto:"
WEBHOOKS = ("https", "http")
HIDDEN = "***"
# Less could be guessed by whoever sees a few signed notices.
LEAST_KEY_CHARS = 16
MOST_CHARS = 2_048
# What apprise would do on the controller's own machine.
_LOCAL = frozenset({"dbus", "file", "gnome", "glib", "kde", "macosx", "qt", "syslog", "windows"})
_FORM = re.compile(r"([a-z][a-z0-9+.-]*)://[!-~]+")


def scheme_of(address: str) -> str:
    return address.partition(":")[0]


def masked(address: str) -> str:
    return f"{scheme_of(address)}://{HIDDEN}"


def shown(address: str) -> str:
    """For logs: a mail address as it is, others without what is secret in them."""
    return address.removeprefix(MAIL) if address.startswith(MAIL) else masked(address)


def sort_of(address: str) -> str:
    """For everybody: by which way, and nothing of where to."""
    return "mail" if address.startswith(MAIL) else masked(address)


def wrong(address: str) -> tuple[str, str]:
    """What is wrong with an address that somebody writes, as the end of a sentence, and what to do; or two times ""."""
    found = _FORM.fullmatch(address)
    if found is None or len(address) > MOST_CHARS:
        step = "write a URL as apprise has them, such as tgram://TOKEN/CHAT, or https://HOST/PATH#KEY"
        return "is no address to notify", step
    scheme = found[1]
    if scheme in _LOCAL:
        return f"has the scheme {scheme}, which would notify the controller's machine", "write an address elsewhere"
    if address == masked(address) or scheme not in WEBHOOKS:
        return "", ""
    if not _host(address) or len(address.partition("#")[2]) < LEAST_KEY_CHARS:
        said = f"is a webhook without a key of at least {LEAST_KEY_CHARS} characters to sign with"
        return said, "write https://HOST/PATH#KEY; the key is not sent"
    return "", ""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be written: patterns such as `tgram://*` and `https://*.example.org`, which are matched with scheme and
    host; none: anything."""

    patterns: tuple[str, ...] = ()

    def written(self, address: str) -> bool:
        if not self.patterns or address.startswith(MAIL):
            return True
        place = f"{scheme_of(address)}://{_host(address)}"
        return any(fnmatchcase(place, pattern) for pattern in self.patterns)


def _host(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


# ---- who may see them


def has_addresses(state: Any) -> bool:
    """Whether a Workload or a User may have any."""
    return bool(state.spec.HasField("notify"))


def hidden_from(state: Any, viewer: str) -> Any:
    """A Workload or a User as somebody may see it who did not create it, or is not it."""
    if not has_addresses(state):
        return state
    owner = state.metadata.created_by.name if isinstance(state, Workload) else state.metadata.name
    return state if owner == viewer else hidden(state)


def hidden(message: Any) -> Any:
    """Something with a spec, its addresses masked; itself if there are none."""
    if not message.spec.notify.to:
        return message
    copy = type(message)()
    copy.CopyFrom(message)
    _mask(copy.spec.notify)
    return copy


def hidden_in_event(event: Event, viewer: str) -> Event:
    """An event as somebody may see it. Whoever changes a workload of another's, or a user, keeps addresses that are not
    shown to him: that he did it is no reason to see them."""
    payload = event.WhichOneof("payload")
    if payload == "workload_applied":
        whole = event.version == 1 and event.actor.name == viewer
    elif payload == "user_applied":
        whole = event.name == viewer
    else:
        return event
    if whole:
        return event
    if not getattr(event, payload).spec.notify.to:
        return event
    copy = Event()
    copy.CopyFrom(event)
    _mask(getattr(copy, payload).spec.notify)
    return copy


def _mask(notify: Notify) -> None:
    to = [masked(address) for address in notify.to]
    del notify.to[:]
    notify.to.extend(to)


# ---- what a document keeps


def kept(wanted: Any, state: Message | None) -> Any:
    """What is wanted, with those addresses that it only has masked as they are in the state. Raises Refusal.

    Of several that look the same, they are kept in their order.
    """
    if not isinstance(wanted, Workload | User) or not any(map(_is_masked, wanted.spec.notify.to)):
        return wanted
    before = list(state.spec.notify.to) if isinstance(state, Workload | User) else []
    to = _filled(wanted.spec.notify.to, before)
    copy: Any = type(wanted)()
    copy.CopyFrom(wanted)
    del copy.spec.notify.to[:]
    copy.spec.notify.to.extend(to)
    return copy


def own_kept(wanted: Any, state: Message | None) -> Any:
    """What is wanted; of a User whose document does not speak of notices with what that user has set for himself."""
    if not isinstance(wanted, User) or not isinstance(state, User) or wanted.spec.HasField("notify"):
        return wanted
    if not state.spec.HasField("notify"):
        return wanted
    copy = User()
    copy.CopyFrom(wanted)
    copy.spec.notify.CopyFrom(state.spec.notify)
    return copy


def _filled(wanted: Sequence[str], before: list[str]) -> list[str]:
    left = list(before)
    filled = []
    for address in wanted:
        if _is_masked(address):
            found = next((one for one in left if masked(one) == address), None)
            if found is None:
                said = f"there is no address {address} to keep in spec.notify.to"
                raise Refusal(said, next_step="write the whole address; to others it is never shown")
            address = found
        if address in left:
            left.remove(address)
        filled.append(address)
    return filled


def _is_masked(address: str) -> bool:
    return address == masked(address)
