"""`pwm events`: what happened, who did it, and what the system did because of it."""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import ALL_GROUPS, SCOPE, Argument, Command, Option, whole_number
from pwm.cli.errors import UNAVAILABLE, NoServerError, ServerError, UsageError
from pwm.cli.http1 import TransportError
from pwm.cli.selection import kind_and_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from pwm.cli.client import Client
    from pwm.cli.invocation import Invocation

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0


def events(
    invocation: Invocation, *, words: tuple[str, ...], follow: bool, limit: int | None, output: str | None
) -> int:
    """Events of one resource, of one kind, or of everything the caller may see."""
    query = {name: value for name, value in invocation.scope().items() if name != "zone"}
    query |= {"limit": limit, "follow": follow}
    if words:
        kind, names = kind_and_names(words)
        if len(names) > 1:
            raise UsageError("one resource at a time", next_step="pwm events [KIND [NAME]]")
        query |= {"kind": kind, "name": names[0] if names else None}
    from pwm.cli.render import harmless, to_yaml

    for message in followed(invocation.client, query) if follow else _once(invocation, query):
        if output == "json":
            from json import dumps

            invocation.say(dumps(message.get("event"), ensure_ascii=False))
        elif output == "yaml":
            invocation.out.write("---\n" + to_yaml(message.get("event")))
        else:
            invocation.say(harmless(str(message.get("text", ""))))
        if follow:
            invocation.out.flush()
    return exit_codes.DONE


def _once(invocation: Invocation, query: dict[str, Any]) -> Iterator[dict[str, Any]]:
    try:
        yield from invocation.client.stream("/v1/events", query=query)
    except TransportError as error:
        raise NoServerError(f"the connection to the server is lost ({error})", next_step="Try again.") from error


def followed(client: Client, query: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Events for ever. A connection that breaks is made anew after the last event that came: none twice, none lost."""
    import time

    reached, connected, pause_s = 0, False, FIRST_PAUSE_S
    # Events of the revision that was reached: it may hold more of them than had come when the connection broke.
    seen: set[tuple[str, str]] = set()
    while True:
        try:
            asked = {**query, "afterRevision": reached - 1, "limit": None} if reached else query
            for message in client.stream("/v1/events", query=asked, timeout_s=None):
                connected, pause_s = True, FIRST_PAUSE_S
                event = message.get("event") or {}
                revision, identity = int(event.get("revision") or 0), (str(event.get("uid")), str(event.get("version")))
                if revision == reached and identity in seen:
                    continue
                if revision > reached:
                    reached, seen = revision, set()
                seen.add(identity)
                yield message
        except (TransportError, NoServerError, ServerError) as error:
            if not connected or (isinstance(error, ServerError) and error.status != UNAVAILABLE):
                raise
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


COMMANDS = {
    "events": Command(
        "events",
        events,
        help="What happened, who did it, and what the system did because of it.",
        parameters=(
            Argument("words", metavar="[KIND [NAME]]", multiple=True, required=False, completes="kind"),
            Option("follow", "-f", "--follow", "-w", help="Go on with new ones, until Ctrl-C.", flag=True),
            Option("limit", "-n", "--limit", help="At most so many, the newest.", metavar="N", convert=whole_number),
            Option("output", "-o", "--output", help="Format.", choices=("json", "yaml")),
            ALL_GROUPS,
            *SCOPE,
        ),
    )
}
