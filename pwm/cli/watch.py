"""Following resources as they change, through lost connections: nobody polls.

`changes` opens the server's watch and yields its messages; when the connection or the replica is lost it
opens another at whatever server answers. The server then sends what is there once more (ADDED, and SYNCED at the
end), so what was missed between shows as a difference; or, for who asks to `identify` resources, only what has
changed since the revision that was reached, if it still knows.

`until` waits for named resources and tells their way on standard error.
"""

from __future__ import annotations

import time

from pwm.cli.client import NOTICE_AFTER_S, BackOff
from pwm.cli.errors import UNAVAILABLE, CliError, NoServerError, ServerError, TimedOutError
from pwm.cli.http1 import DeadlinePassed, TransportError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from pwm.cli.client import Client
    from pwm.cli.invocation import Invocation

ADDED, MODIFIED, DELETED, SYNCED, BEAT = "ADDED", "MODIFIED", "DELETED", "SYNCED", "BEAT"
# Ours, not the server's: the connection is new, and what is there comes once more.
AGAIN = "AGAIN"

# Names that still fit a URL; more are picked out of the whole list here.
NAMES_IN_URL = 50


def changes(
    client: Client,
    kind: str,
    query: dict[str, Any],
    *,
    deadline: float | None,
    note: Callable[[str], None],
    identify: bool = False,
) -> Iterator[dict[str, Any]]:
    """Messages of a watch, for ever; `DeadlinePassed` at the deadline (monotonic).

    The first connection must succeed. After that it tries on: a control plane that fails over is back
    in a moment, and one that is not is said once.
    """
    revision, reached = max(client.revision, int(query.get("minRevision") or 0)), 0
    connected, said, lost_at, pauses = False, False, 0.0, BackOff()
    while True:
        try:
            if connected:
                yield {"type": AGAIN}
            asked = {**query, "minRevision": revision}
            if identify:
                asked |= {"identify": True, "afterRevision": reached or None}
            for message in client.stream(f"/v1/watch/{kind}", query=asked, deadline=deadline):
                connected, said, lost_at = True, False, 0.0
                pauses.reset()
                reached = int(message.get("revision") or reached)
                revision = max(revision, reached)
                yield message
        except DeadlinePassed:
            raise
        except (NoServerError, TransportError, ServerError) as error:
            passing = not isinstance(error, ServerError) or error.status == UNAVAILABLE
            if not connected or not passing:
                raise
            lost_at = lost_at or time.monotonic()
            if not said and time.monotonic() - lost_at > NOTICE_AFTER_S:
                note(f"the connection is lost ({str(error).splitlines()[0]}); trying again")
                said = True
        pause_s = pauses.next_s()
        if deadline is not None and time.monotonic() + pause_s > deadline:
            raise DeadlinePassed("the time is up")
        time.sleep(pause_s)


def until(
    invocation: Invocation,
    kind: str,
    wanted: set[tuple[str, str]],
    *,
    timeout_s: float | None,
    done: Callable[[dict[str, Any] | None], bool],
    what: str,
    show: Callable[[dict[str, Any]], str] | None = None,
) -> dict[tuple[str, str], dict[str, Any] | None]:
    """Waits until `done` is true of each wanted (group, name); returns what each was then.

    `done` gets None for a resource that is not there. `show` makes the word of a resource's state, and
    each change of it is told on standard error. `TimedOutError` names those that are not `what` in time.
    """
    open_, result = set(wanted), dict[tuple[str, str], "dict[str, Any] | None"]()
    shown: dict[tuple[str, str], str] = {}
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    names = sorted({name for _, name in wanted})
    groups = {group for group, _ in wanted}
    query: dict[str, Any] = {"group": groups.pop()} if len(groups) == 1 else {"allGroups": True}
    if len(names) <= NAMES_IN_URL:
        query["names"] = names
    seen: set[tuple[str, str]] = set()

    def settle(key: tuple[str, str], resource: dict[str, Any] | None) -> None:
        if done(resource):
            open_.discard(key)
            result[key] = resource

    try:
        for message in changes(invocation.client, kind, query, deadline=deadline, note=invocation.note):
            type_, resource = message.get("type"), message.get("resource") or {}
            metadata = resource.get("metadata") or {}
            key = (metadata.get("group", ""), metadata.get("name", ""))
            if type_ == SYNCED:
                for missing in [key for key in open_ if key not in seen]:
                    settle(missing, None)
                seen.clear()
            elif type_ == AGAIN:
                seen.clear()
            elif type_ != BEAT and key in open_:
                seen.add(key)
                word = show(resource) if show and type_ != DELETED else ""
                if word and shown.get(key) != word:
                    shown[key] = word
                    invocation.note(f"{kind}/{key[1]} {word}")
                settle(key, None if type_ == DELETED else resource)
            if not open_:
                return result
    except DeadlinePassed as error:
        left = ", ".join(sorted(name for _, name in open_)[:5]) + (" and more" if len(open_) > 5 else "")
        raise TimedOutError(
            f"not {what} within {timeout_s:g} s: {left}", next_step=f"`pwm describe {kind} NAME` shows where it stands."
        ) from error
    except TransportError as error:
        raise NoServerError(f"the connection to the server is lost ({error})") from error
    raise CliError("the server ended the watch")
