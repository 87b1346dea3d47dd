"""`pwm describe`: all about one resource: what it is, what was asked for, what became of it, and its events.

Made of the resource itself (as JSON), for a workload the table of its containers, and the newest events.
"""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import SCOPE, Argument, Command, Option
from pwm.cli.errors import CliError, UsageError
from pwm.cli.selection import kind_and_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pwm.cli.invocation import Invocation

# Enough to see what happened lately; `pwm events` shows the rest.
EVENTS_SHOWN = 20
_INDENT = "  "
# Fields of a resource that have a section of their own, or are said in the head.
_APART = ("apiVersion", "kind", "metadata", "spec", "status")


def describe(
    invocation: Invocation, *, words: tuple[str, ...], output: str | None, table: bool, no_events: bool
) -> int:
    """Shows resources one after the other."""
    from pwm.cli.client import quote
    from pwm.cli.render import to_json, to_yaml

    kind, names = kind_and_names(words)
    if not names:
        raise UsageError("say which one", next_step=f"Such as: pwm describe {words[0]} NAME")
    for number, name in enumerate(names):
        query = {name: value for name, value in invocation.scope().items() if name == "group"}
        answer = invocation.client.call("GET", f"/v1/resources/{kind}/{quote(name)}", query=query)
        resource: dict[str, Any] = answer["resource"]
        if number:
            invocation.say("---" if output == "yaml" else "")
        if output == "json":
            invocation.say(to_json(resource))
        elif output == "yaml":
            invocation.out.write(to_yaml(resource))
        elif table:
            invocation.out.write(_flat(resource))
        else:
            _sections(invocation, kind, resource, show_events=not no_events)
    return exit_codes.DONE


def _sections(invocation: Invocation, kind: str, resource: dict[str, Any], *, show_events: bool) -> None:
    from pwm.cli.render import BOLD, PLAIN, coloured_table, harmless, to_yaml

    def section(title: str, body: str, *, table: bool = False) -> None:
        if not body:
            return
        if invocation.colour:
            title = f"{BOLD}{title}{PLAIN}"
            body = coloured_table(body, header=True) if table else harmless(body)
        body = body if body.endswith("\n") else body + "\n"
        invocation.out.write(f"\n{title}\n" + "".join(f"{_INDENT}{line}\n" for line in body.splitlines()))

    invocation.out.write(_head(kind, resource, colour=invocation.colour))
    others = {name: value for name, value in resource.items() if name not in _APART}
    section("Spec", to_yaml(resource["spec"]) if resource.get("spec") else to_yaml(others) if others else "")
    rest = {k: v for k, v in (resource.get("status") or {}).items() if k not in ("phase", "reason", "since", "by")}
    section("Status", to_yaml(rest) if rest else "")
    if kind == "Workload":
        section("Containers", _containers(invocation, resource["metadata"]), table=True)
    if show_events:
        section("Events", _events(invocation, kind, resource["metadata"]))


def _head(kind: str, resource: dict[str, Any], *, colour: bool) -> str:
    from pwm.cli.render import age, fields, harmless, local_time, sentence, status_word

    metadata, status = resource.get("metadata") or {}, resource.get("status") or {}
    created_by = (metadata.get("createdBy") or {}).get("name", "")
    created = local_time(metadata.get("createdAt", ""))
    by = (status.get("by") or {}).get("name", "")
    phase = str(status.get("phase") or resource.get("phase") or "")
    since = age(status.get("since", ""))
    pairs = [
        ("Name", str(metadata.get("name", ""))),
        ("Kind", kind),
        ("Group", str(metadata.get("group", ""))),
        ("Labels", ", ".join(f"{key}={value}" for key, value in sorted((metadata.get("labels") or {}).items()))),
        ("Created", created + (f" by {created_by}" if created_by and created else "")),
        ("Status", status_word(phase, colour=colour) + (f" for {since}" if since and phase else "")),
        ("Reason", sentence(status.get("reason") or {}) + (f", by {by}" if by and status.get("reason") else "")),
    ]
    return fields([(name, value if name == "Status" else harmless(value)) for name, value in pairs])


def _containers(invocation: Invocation, metadata: dict[str, Any]) -> str:
    query = {"group": metadata.get("group"), "workload": metadata["name"], "format": "WIDE"}
    answer = invocation.client.call("GET", "/v1/resources/Container", query=query)
    return str(answer.get("text", "")) if answer.get("count") else ""


def _events(invocation: Invocation, kind: str, metadata: dict[str, Any]) -> str:
    query = {"kind": kind, "name": metadata.get("name"), "group": metadata.get("group"), "limit": EVENTS_SHOWN}
    try:
        lines = [str(message.get("text", "")) for message in invocation.client.stream("/v1/events", query=query)]
    except CliError as error:
        # Not to be allowed to see events is no reason to hide the rest.
        return f"not shown: {error.message}"
    return "\n".join(lines) or "none"


def _flat(value: dict[str, Any]) -> str:
    """Every field with its path, as a table."""
    from pwm.cli.render import harmless, table

    rows: list[tuple[str, str]] = []

    def walk(path: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{path}.{key}" if path else key, inner)
        elif isinstance(value, list) and value:
            for index, inner in enumerate(value):
                walk(f"{path}[{index}]", inner)
        else:
            text = {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value
            rows.append((path, harmless(str(text)).replace("\n", "\\n")))

    walk("", value)
    return table(("FIELD", "VALUE"), rows)


COMMANDS = {
    "describe": Command(
        "describe",
        describe,
        help="All about a resource: what was asked for, what became of it, its containers and its events.",
        parameters=(
            Argument("words", metavar="KIND NAME...", multiple=True, required=True, completes="kind"),
            Option("output", "-o", "--output", help="Format: the resource itself.", choices=("json", "yaml")),
            Option("table", "-t", "--table", help="Every field in a table.", flag=True),
            Option("no_events", "--no-events", help="Leave out the events.", flag=True),
            *SCOPE,
        ),
    )
}
