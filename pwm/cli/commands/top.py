"""`pwm top`: live usage. Full-screen on a terminal; otherwise, or with `--once`, its tables once as text."""

from __future__ import annotations

import sys

from pwm.cli import exit_codes
from pwm.cli.command import ALL_GROUPS, SCOPE, Argument, Command, Option, seconds
from pwm.cli.errors import NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pwm.cli.invocation import Invocation
    from pwm.cli.target import Target

DEFAULT_INTERVAL_S = 2.0
SHORTEST_INTERVAL_S = 0.5


def top(invocation: Invocation, *, words: tuple[str, ...], once: bool, interval: float) -> int:
    from pwm.cli.target import target_of

    target = target_of(invocation, words) if words else None
    query: dict[str, Any] = invocation.scope()
    query.pop("zone", None)
    if target is not None:
        query = {"workload": target.name, "group": target.group}
    if once or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _print_once(invocation, target, query)

    import gc

    from pwm.cli.topui.app import TopApp

    gc.enable()  # `main` turns it off, which suits only short lives
    app = TopApp(invocation.profile, query={**query, "interval": f"{interval:g}s"}, target=target)
    app.run()
    if app.error is not None:
        raise app.error
    return app.return_code or exit_codes.DONE


def _print_once(invocation: Invocation, target: Target | None, query: dict[str, Any]) -> int:
    from pwm.cli.topui import plain
    from pwm.cli.topui.feed import processes
    from pwm.cli.topui.snapshot import read

    snapshot = None
    for message in invocation.client.stream("/v1/top", query={**query, "interval": "0s"}):
        snapshot = read(message, snapshot)
    if snapshot is None:
        raise NotFoundError("the server has nothing to show")
    if target is None:
        invocation.out.write(plain.overview(snapshot))
        return exit_codes.DONE
    titles, rows, trouble = processes(invocation.client, target)
    invocation.out.write(plain.one_workload(snapshot, titles, rows))
    if trouble:
        invocation.note(trouble)
    return exit_codes.DONE


def _interval(text: str) -> float:
    value = seconds(text)
    if value < SHORTEST_INTERVAL_S:
        raise ValueError(f"{text!r} is too short; the shortest is {SHORTEST_INTERVAL_S} s")
    return value


COMMANDS = {
    "top": Command(
        "top",
        top,
        help="Live usage of nodes, GPUs and workloads, or of one workload and its processes.",
        epilog="Keys: q quit, Tab next table, s sort, r reverse, / filter, Enter open, z zoom, ? help.",
        parameters=(
            Argument("words", multiple=True, required=False, metavar="[wk NAME]", completes="name"),
            Option("once", "--once", help="Print it once, as text.", flag=True),
            Option(
                "interval", "-d", "--interval", help="Time between beats, such as 1s.", metavar="TIME",
                default=DEFAULT_INTERVAL_S, convert=_interval,
            ),
            ALL_GROUPS,
            *SCOPE,
        ),
    )
}  # fmt: skip
