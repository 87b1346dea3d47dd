"""`pwm delete`: resources by name, by label or by file, and what went with them.

Documents of a file are deleted in reverse order, because what comes later may need what comes before.
"""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import ALL_GROUPS, SCOPE, SELECTOR, TIMEOUT_HELP, Argument, Command, Option, seconds
from pwm.cli.errors import NOT_FOUND, ServerError
from pwm.cli.selection import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pwm.cli.invocation import Invocation


def delete(
    invocation: Invocation,
    *,
    words: tuple[str, ...],
    selector: str | None,
    files: tuple[str, ...],
    recursive: bool,
    ignore_not_found: bool,
    wait: bool,
    timeout: float | None,
) -> int:
    """Deletes resources; one that cannot be is said and the others go on."""
    from pwm.cli.client import quote

    selected = select(invocation, words, selector=selector, files=files, verb="delete", recursive=recursive)
    code = exit_codes.DONE
    deleted: dict[str, set[tuple[str, str]]] = {}
    for kind, group, name in reversed(selected) if files else selected:
        try:
            answer = invocation.client.call(
                "DELETE", f"/v1/resources/{kind}/{quote(name)}", query={"group": group} if group else None
            )
        except ServerError as error:
            if not (ignore_not_found and error.status == NOT_FOUND):
                invocation.note(f"error: {kind}/{name}: {error}")
                code = max(code, error.exit_code)
            continue
        invocation.say(f"{kind}/{name} deleted")
        for other in answer.get("cascade", ()):
            invocation.say(f"  with it {other}")
        for note in answer.get("notes", ()):
            invocation.say(f"  {note}")
        deleted.setdefault(kind, set()).add((group, name))
    if wait:
        _wait(invocation, deleted, timeout)
    return code


def _wait(invocation: Invocation, deleted: dict[str, set[tuple[str, str]]], timeout_s: float | None) -> None:
    from pwm.cli.watch import until
    from pwm.cli.workload_wait import own_group

    for kind, names in deleted.items():
        grouped = kind in ("Workload", "Volume", "Secret")
        wanted = {(group or own_group(invocation) if grouped else "", name) for group, name in names}
        until(invocation, kind, wanted, timeout_s=timeout_s, done=lambda resource: resource is None, what="gone")


COMMANDS = {
    "delete": Command(
        "delete",
        delete,
        help="Delete resources by name, by label or by file. Workloads are stopped first.",
        parameters=(
            Argument("words", metavar="[KIND] [NAME]...", multiple=True, required=False, completes="kind"),
            SELECTOR,
            Option("files", "-f", "--file", help="What a file or directory declares.", multiple=True, metavar="FILE",
                   completes="file"),
            Option("recursive", "-R", "--recursive", help="Look into the directory's folders too.", flag=True),
            Option("ignore_not_found", "--ignore-not-found", help="What is not there is no error.", flag=True),
            Option("wait", "--wait", help="Wait until they are gone.", flag=True),
            Option("timeout", "--timeout", help=TIMEOUT_HELP, metavar="TIME", convert=seconds),
            ALL_GROUPS,
            *SCOPE,
        ),
    )
}  # fmt: skip
