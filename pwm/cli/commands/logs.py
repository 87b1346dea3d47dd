"""`pwm logs`: what a workload's containers print, live or kept.

The output goes through unread: standard output to ours, standard error to ours, byte for byte. With
`-f` a workload that has not begun is waited for, with the reason on standard error, and the command
ends when the workload has ended.
"""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import SCOPE, Argument, Command, Option, whole_number
from pwm.cli.errors import CliError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pwm.cli.invocation import Invocation
    from pwm.cli.target import Target


def logs(
    invocation: Invocation,
    *,
    words: tuple[str, ...],
    follow: bool,
    tail: int | None,
    since: str | None,
    timestamps: bool,
    replica: int | None,
    previous: bool,
) -> int:
    from pwm.cli.target import target_of

    if follow and previous:
        raise UsageError("an earlier attempt prints nothing more", next_step="Leave out -f, or --previous.")
    target = target_of(invocation, words, replica=replica)
    query: dict[str, Any] = {
        "group": target.group,
        "tail": tail,
        "since": since,
        "timestamps": timestamps,
        "replica": target.replica,
        "previous": previous,
        "container": target.container,
    }
    if follow:
        wait_until_begun(invocation, target)
    written = stream_logs(invocation, target, query={**query, "follow": follow})
    if not written and not follow:
        _explain_nothing(invocation, target)
    return exit_codes.DONE


def stream_logs(invocation: Invocation, target: Target, *, query: dict[str, Any]) -> int:
    """Copies the log to standard output and error until it ends; returns how many bytes there were."""
    from pwm.cli.streams import Follower, Output

    invocation.out.flush()
    follower = Follower(
        invocation.client,
        target.path("logs"),
        query=query,
        resume=continued,
        output=Output(),
        note=invocation.note,
    )
    follower.run()
    return follower.written


def continued(query: dict[str, Any], cursor: dict[str, Any]) -> dict[str, Any]:
    """The request that goes on where the cursor points: what was skipped at the start stays skipped."""
    kept = {name: value for name, value in query.items() if name not in ("tail", "since")}
    return {**kept, "container": cursor["container"], "offset": cursor["nextOffset"]}


def wait_until_begun(invocation: Invocation, target: Target) -> None:
    """Returns once a container has begun, or the workload is over; says on standard error what it waits for."""
    from pwm.cli.workload_status import WAITING, in_words, phase_of, statuses

    said = ""
    for workload in statuses(invocation, target):
        if phase_of(workload) not in WAITING or workload.get("status", {}).get("restarts"):
            return
        if (words := in_words(workload)) != said:
            invocation.note(f"{target.name} has not started yet: {words}")
            said = words


def _explain_nothing(invocation: Invocation, target: Target) -> None:
    from pwm.cli.workload_status import WAITING, in_words, phase_of

    answer = invocation.client.call("GET", target.resource_path, query={"group": target.group})
    workload = answer.get("resource", {})
    if phase_of(workload) in WAITING:
        raise CliError(
            f"{target.name} has printed nothing, it has not started yet: {in_words(workload)}",
            next_step=f"`pwm logs wk {target.name} -f` waits for it; `pwm why wk {target.name}` says more.",
        )


def duration(text: str) -> str:
    """A duration as the API takes it: `600s`. A bare number is seconds."""
    from pwm.cli.command import seconds

    return f"{seconds(text):.3f}s"


COMMANDS = {
    "logs": Command(
        "logs",
        logs,
        help="What a workload's containers print: live from the node, and kept after their end.",
        epilog="Ends when the workload ends. All replicas are shown unless one is named; `c NAME.0.2` is one attempt.",
        parameters=(
            Argument("words", multiple=True, metavar="wk NAME", completes="name"),
            Option("follow", "-f", "--follow", help="Go on with what is printed from now on.", flag=True),
            Option(
                "tail", "-n", "--tail", help="Only so many lines before the end.", metavar="N", convert=whole_number
            ),
            Option("since", "--since", help="Only what is younger, such as 10m.", metavar="TIME", convert=duration),
            Option("timestamps", "-t", "--timestamps", help="Begin each line with its time.", flag=True),
            Option("replica", "--replica", help="Only this replica, from 0.", metavar="N", convert=whole_number),
            Option("previous", "--previous", help="The attempt before the last.", flag=True),
            *SCOPE,
        ),
    )
}
