"""`pwm stop` and `pwm restart`: the desired state of workloads that are there.

By name, by label, or by the file that declared them. Each workload is a call of its own: one that fails is
said and the others go on.
"""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import ALL_GROUPS, SCOPE, SELECTOR, TIMEOUT_HELP, Argument, Command, Option, seconds
from pwm.cli.errors import ServerError, UsageError
from pwm.cli.kinds import WORKLOAD
from pwm.cli.selection import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pwm.cli.invocation import Invocation

ENDED = ("STOPPED", "EXITED", "CRASHED", "DENIED")


def stop(
    invocation: Invocation,
    *,
    words: tuple[str, ...],
    selector: str | None,
    files: tuple[str, ...],
    wait: bool,
    timeout: float | None,
) -> int:
    """Stops workloads and keeps them; with `wait`, until their containers have ended."""
    return _each(invocation, "stop", words, selector, files, wait=wait, timeout_s=timeout)


def restart(
    invocation: Invocation,
    *,
    words: tuple[str, ...],
    selector: str | None,
    files: tuple[str, ...],
    wait: bool,
    timeout: float | None,
) -> int:
    """Starts every replica anew; with `wait`, until they run."""
    return _each(invocation, "restart", words, selector, files, wait=wait, timeout_s=timeout)


def _each(
    invocation: Invocation,
    verb: str,
    words: tuple[str, ...],
    selector: str | None,
    files: tuple[str, ...],
    *,
    wait: bool,
    timeout_s: float | None,
) -> int:
    from pwm.cli.client import quote

    selected = select(invocation, words, selector=selector, files=files, verb=verb, default_kind=WORKLOAD)
    wrong = sorted({kind for kind, _, _ in selected if kind != WORKLOAD})
    if wrong and not files:
        raise UsageError(f"only workloads can be {_done(verb)}, not a {wrong[0]}", next_step=f"pwm {verb} wk NAME")
    code = exit_codes.DONE
    accepted: list[tuple[str, str]] = []
    for kind, group, name in selected:
        if kind != WORKLOAD:
            continue
        try:
            answer = invocation.client.call(
                "POST", f"/v1/workloads/{quote(name)}/{verb}", body={"group": group} if group else {}
            )
        except ServerError as error:
            invocation.note(f"error: Workload/{name}: {error}")
            code = max(code, error.exit_code)
            continue
        changed = verb == "restart" or answer.get("changed")
        invocation.say(f"Workload/{name} {_done(verb) if changed else 'unchanged'}")
        accepted.append((group, name))
    if wait and accepted:
        code = max(code, _wait(invocation, verb, accepted, timeout_s))
    return code


def _done(verb: str) -> str:
    return {"stop": "stopped", "restart": "restarted"}[verb]


def _wait(invocation: Invocation, verb: str, accepted: list[tuple[str, str]], timeout_s: float | None) -> int:
    from pwm.cli.workload_wait import wait_for_end, wait_for_start

    if verb == "stop":
        return wait_for_end(invocation, accepted, timeout_s=timeout_s)
    return wait_for_start(invocation, accepted, timeout_s=timeout_s)


def _parameters(verb: str, waits_for: str) -> tuple[Any, ...]:
    return (
        Argument("words", metavar="[wk] [NAME]...", multiple=True, required=False, completes="name"),
        SELECTOR,
        Option(
            "files", "-f", "--file", help="Those that a file declares.", multiple=True, metavar="FILE", completes="file"
        ),
        Option("wait", "--wait", help=f"Wait until {waits_for}.", flag=True),
        Option("timeout", "--timeout", help=TIMEOUT_HELP, metavar="TIME", convert=seconds),
        ALL_GROUPS,
        *SCOPE,
    )


COMMANDS = {
    "stop": Command(
        "stop",
        stop,
        help="Stop workloads by name, by label or by file. They stay, and can be started again with restart.",
        parameters=_parameters("stop", "their containers have ended"),
    ),
    "restart": Command(
        "restart",
        restart,
        help="Start every replica of workloads anew, also of those that were stopped or have ended.",
        parameters=_parameters("restart", "they run"),
    ),
}
