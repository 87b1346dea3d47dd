"""`pwm events`: what happened, who did it, and what the system did because of it."""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import ALL_GROUPS, SCOPE, Argument, Command, Option, seconds, whole_number
from pwm.cli.errors import OUT_OF_RANGE, UNAVAILABLE, NoServerError, ServerError, UsageError
from pwm.cli.http1 import TransportError
from pwm.cli.selection import kind_and_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from pwm.cli.client import Client
    from pwm.cli.invocation import Invocation


# As the API names them, by what people write.
ACTIONS = ("change", "denied", "login", "login_failed", "banned", "shell_began", "shell_ended", "lost")


def events(
    invocation: Invocation,
    *,
    words: tuple[str, ...],
    follow: bool,
    limit: int | None,
    output: str | None,
    audit: bool,
    **only: str | None,
) -> int:
    """Events of one resource, of one kind, or of everything the caller may see."""
    if audit:
        return _audit(invocation, words=words, follow=follow, limit=limit, output=output, **only)
    if any(only.values()):
        raise UsageError("--user, --address, --action and --since go with --audit")
    query = {name: value for name, value in invocation.scope().items() if name != "zone"}
    query |= {"limit": limit, "follow": follow}
    if words:
        kind, names = kind_and_names(words)
        if len(names) > 1:
            raise UsageError("one resource at a time", next_step="pwm events [KIND [NAME]]")
        query |= {"kind": kind, "name": names[0] if names else None}
    from pwm.cli.render import harmless, to_yaml

    source = followed(invocation.client, query, note=invocation.note) if follow else _once(invocation, query)
    for message in source:
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


def _audit(
    invocation: Invocation,
    *,
    words: tuple[str, ...],
    follow: bool,
    limit: int | None,
    output: str | None,
    **only: str | None,
) -> int:
    """Who did what, from where and with which token."""
    from pwm.cli.render import harmless, to_json, to_yaml

    if words:
        raise UsageError(
            "the audit is listed as a whole", next_step="--user, --address, --action and --since say what of it.",
        )  # fmt: skip
    action = only.pop("action")
    query = {**only, "limit": limit, "actions": action.upper() if action else None}
    if follow:
        return _follow_audit(invocation, query, output=output)
    answer = invocation.client.call("GET", "/v1/audit", query=query)
    if output == "json":
        invocation.say(to_json(answer.get("entries") or []))
    elif output == "yaml":
        invocation.out.write(to_yaml(answer.get("entries") or []))
    elif not answer.get("text"):
        invocation.note("nothing of that was written down, as far as you may see it")
    for line in str(answer.get("text", "")).splitlines() if output is None else ():
        invocation.say(harmless(line))
    return exit_codes.DONE


def _follow_audit(invocation: Invocation, query: dict[str, Any], *, output: str | None) -> int:
    """JSON is a line for each, as with other events; entries of YAML are documents."""
    from json import dumps

    from pwm.cli.render import harmless, to_yaml

    batches = followed(
        invocation.client, {**query, "follow": True}, note=invocation.note, path="/v1/audit/stream", place=_Batches()
    )
    for batch in batches:
        for entry in batch.get("entries") or () if output else ():
            invocation.out.write(
                dumps(entry, ensure_ascii=False) + "\n" if output == "json" else "---\n" + to_yaml(entry)
            )
        for line in str(batch.get("text", "")).splitlines() if output is None else ():
            invocation.say(harmless(line))
        invocation.out.flush()
    return exit_codes.DONE


def _age(text: str) -> str:
    """`10m`, as the API writes it."""
    return f"{seconds(text):.3f}s"


def _once(invocation: Invocation, query: dict[str, Any]) -> Iterator[dict[str, Any]]:
    try:
        yield from invocation.client.stream("/v1/events", query=query)
    except TransportError as error:
        raise NoServerError(f"the connection to the server is lost ({error})", next_step="Try again.") from error


def followed(
    client: Client,
    query: dict[str, Any],
    *,
    note: Callable[[str], None] = lambda text: None,
    path: str = "/v1/events",
    place: _Place | _Batches | None = None,
) -> Iterator[dict[str, Any]]:
    """Events for ever. A connection that breaks is made anew after the last event that came: none twice, none lost.

    Should some be lost after all, because a server keeps no such old ones any more, `note` says so. `place`: how far
    one has come in a stream of something else, at another path.
    """
    import time

    from pwm.cli.client import NOTICE_AFTER_S, BackOff

    place, connected, lost_at, pauses = place or _Place(), False, 0.0, BackOff()
    while True:
        try:
            for message in client.stream(path, query={**query, **place.asked()}, timeout_s=None):
                connected, lost_at = True, 0.0
                pauses.reset()
                if place.is_new(message):
                    yield message
        except (TransportError, NoServerError, ServerError) as error:
            status = error.status if isinstance(error, ServerError) else UNAVAILABLE
            if not connected or status not in (UNAVAILABLE, OUT_OF_RANGE):
                raise
            if status == OUT_OF_RANGE:
                note(f"{str(error).splitlines()[0]}: some may be missing here")
                place.give_up_the_past()
            before, lost_at = lost_at, lost_at or time.monotonic()
            if before and time.monotonic() - before > NOTICE_AFTER_S and not place.said:
                note(f"the connection is lost ({str(error).splitlines()[0]}); trying again")
                place.said = True
        time.sleep(pauses.next_s())


class _Place:
    """How far somebody who follows events has come."""

    def __init__(self) -> None:
        # Everything up to `complete` has come, and of the revision `reached` the events `seen`.
        self._complete = self._reached = 0
        self._seen: set[tuple[str, str]] = set()
        self._past_is_gone = False
        self.said = False

    def asked(self) -> dict[str, Any]:
        """What to ask for, in addition: the revision that was reached may hold more events than have come."""
        after = max(self._complete, self._reached - 1)
        return {"afterRevision": after, "limit": None} if after > 0 and not self._past_is_gone else {}

    def is_new(self, message: dict[str, Any]) -> bool:
        self._past_is_gone = self.said = False
        event = message.get("event")
        if event is None:
            self._complete = max(self._complete, int(message.get("revision") or 0))
            return False
        revision, identity = int(event.get("revision") or 0), (str(event.get("uid")), str(event.get("version")))
        if (
            revision <= self._complete
            or revision < self._reached
            or (revision == self._reached and identity in self._seen)
        ):
            return False
        if revision > self._reached:
            self._reached = revision
            self._seen.clear()
        self._seen.add(identity)
        return True

    def give_up_the_past(self) -> None:
        """Ask for the newest there are."""
        self._past_is_gone = True


class _Batches:
    """How far somebody who follows the audit has come. What was written down at once comes at once."""

    def __init__(self) -> None:
        self._complete = 0
        self.said = False

    def asked(self) -> dict[str, Any]:
        """What to ask for, in addition."""
        return {"afterRevision": self._complete, "limit": None, "since": None} if self._complete else {}

    def is_new(self, message: dict[str, Any]) -> bool:
        self.said = False
        before, self._complete = self._complete, max(self._complete, int(message.get("revision") or 0))
        return self._complete > before and bool(message.get("entries"))

    def give_up_the_past(self) -> None:
        """Ask for the newest there are."""
        self._complete = 0


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
            Option("audit", "--audit", help="Who did what, from where: changes, denials, log-ins, shells.", flag=True),
            Option("user", "--user", help="With --audit: only of this user.", metavar="USER"),
            Option("address", "--address", help="With --audit: only from this address.", metavar="ADDRESS"),
            Option("action", "--action", help="With --audit: only these.", choices=ACTIONS),
            Option("since", "--since", help="With --audit: only what is younger.", metavar="TIME", convert=_age),
            ALL_GROUPS,
            *SCOPE,
        ),
    )
}
