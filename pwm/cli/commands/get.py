"""`pwm get`: lists, and lists that keep up.

The server renders the table; here it only gets colours, on a terminal. With `-w` the server's watch is
followed and each change is a line of its own, so that the output can be piped as well as read.
"""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import ALL_GROUPS, SCOPE, SELECTOR, Argument, Command, Option
from pwm.cli.errors import UsageError
from pwm.cli.selection import kind_and_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pwm.cli.invocation import Invocation

_FORMAT = {"table": "TABLE", "wide": "WIDE", "name": "NAME", "json": "RESOURCES", "yaml": "RESOURCES"}
# A list of 100,000 resources is made in a second; a busy replica may take some.
LIST_TIMEOUT_S = 60.0


def get(
    invocation: Invocation,
    *,
    words: tuple[str, ...],
    watch: bool,
    selector: str | None,
    output: str,
    json: bool,
    workload: str | None,
) -> int:
    """Lists resources of one kind."""
    kind, names = kind_and_names(words)
    output = "json" if json else output
    query = {**invocation.scope(), "format": _FORMAT[output], "selector": selector, "names": names}
    if workload:
        if kind != "Container":
            raise UsageError("--workload says whose containers to list", next_step="Use it with: pwm get c")
        query["workload"] = workload
    if watch:
        return _follow(invocation, kind, query, output)
    answer = invocation.client.call("GET", f"/v1/resources/{kind}", query=query, timeout_s=LIST_TIMEOUT_S)
    if output in ("json", "yaml"):
        _show_resources(invocation, answer.get("items", []), output, single=len(names) == 1)
        return exit_codes.DONE
    text = answer.get("text", "")
    if not answer.get("count"):
        if output != "name":
            invocation.note(_nothing(invocation, kind, selector))
        return exit_codes.DONE
    if text and not text.endswith("\n"):
        text += "\n"
    if invocation.colour and output != "name":
        from pwm.cli.render import coloured_table

        text = coloured_table(text)
    invocation.out.write(text)
    return exit_codes.DONE


def _nothing(invocation: Invocation, kind: str, selector: str | None) -> str:
    scope = invocation.scope()
    where = " that you may see" if "allGroups" in scope else f" in group {scope['group']}" if "group" in scope else ""
    return f"no {kind}{where}" + (f" with labels {selector}" if selector else "")


def _show_resources(invocation: Invocation, items: list[dict[str, Any]], output: str, *, single: bool) -> None:
    """One resource as itself; several as a JSON list or as YAML documents. Both can be applied again."""
    from pwm.cli.render import to_json, to_yaml

    if output == "json":
        invocation.say(to_json(items[0] if single and items else items))
    else:
        invocation.out.write("---\n".join(to_yaml(item) for item in items))


def _follow(invocation: Invocation, kind: str, query: dict[str, Any], output: str) -> int:
    """Lines of a watch until Ctrl-C. What a new connection sends again is not shown twice."""
    from pwm.cli.watch import ADDED, AGAIN, BEAT, DELETED, MODIFIED, SYNCED, changes

    write = _writer(invocation, output)
    # What stands on the screen of each resource, by uid, and which of them the new connection has told of.
    shown: dict[str, dict[str, Any]] = {}
    told: set[str] = set()
    repeated = False

    def show(message: dict[str, Any]) -> None:
        for line in write(message):
            invocation.say(line)

    for message in changes(invocation.client, kind, query, deadline=None, note=invocation.note, identify=True):
        type_, uid = message.get("type"), str(message.get("uid", ""))
        before = shown.get(uid)
        if type_ == AGAIN:
            repeated = True
            told.clear()
        elif type_ == SYNCED:
            if repeated and not message.get("resumed"):
                for gone in [uid for uid in shown if uid not in told]:
                    show(_gone(shown.pop(gone), output))
            repeated = False
        elif type_ == DELETED:
            if shown.pop(uid, None) is not None:
                show(message)
        elif type_ != BEAT:
            told.add(uid)
            if before is None or before.get("digest") != message.get("digest"):
                message["type"] = ADDED if before is None else MODIFIED
                shown[uid] = message
                show(message)
        if not repeated:
            invocation.out.flush()
    return exit_codes.DONE


def _gone(shown: dict[str, Any], output: str) -> dict[str, Any]:
    """The message of a deletion that nobody saw, made of what was shown last."""
    text = str(shown.get("text", ""))
    return {**shown, "type": "DELETED", "text": f"{text} deleted" if output == "name" else f"{text}  DELETED"}


def _writer(invocation: Invocation, output: str) -> Callable[[dict[str, Any]], list[str]]:
    """The lines that a message of the watch is shown as; the first message brings the table's header."""
    if output == "json":
        from json import dumps

        return lambda message: [dumps({"type": message.get("type"), "resource": message.get("resource")})]
    if output == "yaml":
        from pwm.cli.render import to_yaml

        return lambda message: [f"--- # {message.get('type')}\n" + to_yaml(message.get("resource")).rstrip("\n")]
    begun = False

    def lines(message: dict[str, Any]) -> list[str]:
        # A new connection begins with the header, too.
        nonlocal begun
        text = str(message.get("text", ""))
        *header, message["text"] = text.split("\n")
        if begun:
            header = []
        begun = True
        if not invocation.colour or output == "name":
            return [*header, message["text"]]
        from pwm.cli.render import coloured_table

        return coloured_table("\n".join([*header, message["text"]]), header=bool(header)).splitlines()

    return lines


COMMANDS = {
    "get": Command(
        "get",
        get,
        help="List resources of a kind: all, those named, or those with labels. -w keeps the list up to date.",
        parameters=(
            Argument("words", metavar="KIND [NAME]...", multiple=True, required=True, completes="kind"),
            Option("watch", "-w", "--watch", help="Go on with every change, until Ctrl-C.", flag=True),
            SELECTOR,
            Option("output", "-o", "--output", help="Format.", choices=tuple(_FORMAT), default="table"),
            Option("json", "-j", help="The same as -o json.", flag=True, hidden=True),
            Option("workload", "--workload", help="Containers: of this workload only.", metavar="NAME"),
            ALL_GROUPS,
            *SCOPE,
        ),
        epilog="Kinds: wk c node gpu cpu group user role storage vol z rc secret bind event.",
    )
}
