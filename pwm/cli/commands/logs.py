"""`pwm logs`: what a workload's containers print, live or kept.

The output goes through unread: standard output to ours, standard error to ours, byte for byte. With
`-f` a workload that has not begun is waited for, with the reason on standard error, and the command
ends when the workload has ended.
"""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import SCOPE, Argument, Command, Option, whole_number
from pwm.cli.errors import NoServerError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pwm.cli.invocation import Invocation
    from pwm.cli.target import Target


# More replicas than that come through one stream, which the server merges and which cannot be resumed.
STREAMS_AT_ONCE = 32


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
    if not follow:
        if not stream_logs(invocation, target, query=query):
            _say_why_nothing_came(invocation, target)
        return exit_codes.DONE
    workload = wait_until_begun(invocation, target)
    count = int(workload.get("spec", {}).get("replica", {}).get("count", 1))
    if target.replica is None and 1 < count <= STREAMS_AT_ONCE:
        _follow_replicas(invocation, target, query={**query, "follow": True}, count=count)
    elif not stream_logs(invocation, target, query={**query, "follow": True}):
        _say_why_nothing_came(invocation, target)
    return exit_codes.DONE


def stream_logs(invocation: Invocation, target: Target, *, query: dict[str, Any]) -> bool:
    """Copies the log to standard output and error until it ends; whether anything came."""
    from pwm.cli.streams import Follower, Output

    invocation.out.flush()

    def resume(query: dict[str, Any], cursor: dict[str, Any]) -> dict[str, Any]:
        # WORKLOAD.REPLICA.ATTEMPT: another attempt of the same replica continues it, another replica does not.
        if len({name.rsplit(".", 2)[1] for name in follower.containers}) > 1:
            raise NoServerError(
                "the connection was lost; the mixed output of several replicas cannot be continued",
                next_step="Ask again with --since, or for one --replica.",
            )
        return continued(query, cursor)

    follower = Follower(
        invocation.client,
        target.path("logs"),
        query=query,
        resume=resume,
        output=Output(),
        note=invocation.note,
    )
    follower.run()
    return bool(follower.containers)


def _say_why_nothing_came(invocation: Invocation, target: Target) -> None:
    """An empty answer looks like a mistake, unless the reason is a container that failed or has not begun."""
    from pwm.cli.workload_status import WAITING, in_words, phase_of

    query = {"group": target.group} if target.group else None
    workload = invocation.client.call("GET", target.resource_path, query=query)["resource"]
    if phase_of(workload) in WAITING | {"CRASHED"}:
        invocation.note(f"{target.name} has not printed anything: {in_words(workload)}")


def continued(query: dict[str, Any], cursor: dict[str, Any]) -> dict[str, Any]:
    """The request that goes on where the cursor points: what was skipped at the start stays skipped."""
    kept = {name: value for name, value in query.items() if name not in ("tail", "since")}
    return {**kept, "container": cursor["container"], "offset": cursor["nextOffset"]}


def wait_until_begun(invocation: Invocation, target: Target) -> dict[str, Any]:
    """The workload, once a container of it has begun or it is over; says on standard error what it waits for."""
    from pwm.cli.workload_status import WAITING, in_words, phase_of, statuses

    said = ""
    for workload in statuses(invocation, target):
        if phase_of(workload) not in WAITING or workload.get("status", {}).get("restarts"):
            return workload
        if (words := in_words(workload)) != said:
            invocation.note(f"{target.name} has not started yet: {words}")
            said = words
    raise AssertionError("statuses() goes on until the workload is deleted")


def _follow_replicas(invocation: Invocation, target: Target, *, query: dict[str, Any], count: int) -> None:
    """A stream for each replica, their lines prefixed: so each can be resumed where it was."""
    import threading
    from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

    from pwm.cli.client import Client
    from pwm.cli.streams import Follower, Output, PrefixedLines

    output, lock = Output(), threading.Lock()
    invocation.out.flush()

    def follow(replica: int) -> None:
        client = Client(invocation.profile, warn=invocation.warn)
        lines = PrefixedLines(output, lock)
        try:
            Follower(
                client,
                target.path("logs"),
                query={**query, "replica": replica},
                resume=continued,
                output=lines,
                note=lambda text: invocation.note(f"replica {replica}: {text}"),
            ).run()
            lines.finish()
        finally:
            client.close()

    pool = ThreadPoolExecutor(count, thread_name_prefix="logs")
    followed = [pool.submit(follow, replica) for replica in range(count)]
    try:
        wait(followed, return_when=FIRST_EXCEPTION)
        for replica in followed:
            if replica.done():
                replica.result()
    finally:
        # Not waited for: after an error or Ctrl-C the other streams end with the process.
        pool.shutdown(wait=False, cancel_futures=True)


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
