"""`pwm scale`: how many replicas a workload has."""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import SCOPE, TIMEOUT_HELP, Argument, Command, Option, seconds, whole_number
from pwm.cli.errors import UsageError
from pwm.cli.kinds import WORKLOAD
from pwm.cli.selection import kind_and_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pwm.cli.invocation import Invocation


def scale(
    invocation: Invocation, *, words: tuple[str, ...], replicas: int | None, wait: bool, timeout: float | None
) -> int:
    """Sets the number of replicas of one workload."""
    from pwm.cli.client import quote

    kind, rest = kind_and_names(words, default_kind=WORKLOAD)
    if kind != WORKLOAD:
        raise UsageError(f"a {kind} has no replicas", next_step="pwm scale wk NAME N")
    if replicas is None:
        if len(rest) != 2:
            raise UsageError("name a workload and a number", next_step="pwm scale wk NAME N")
        try:
            replicas = whole_number(rest.pop())
        except ValueError as error:
            raise UsageError(str(error), next_step="pwm scale wk NAME N") from error
    if len(rest) != 1:
        raise UsageError("name one workload", next_step="pwm scale wk NAME N")
    body = {"count": replicas, **({"group": invocation.group} if invocation.group else {})}
    answer = invocation.client.call("POST", f"/v1/workloads/{quote(rest[0])}/scale", body=body)
    invocation.say(f"Workload/{rest[0]} {'scaled to ' + str(replicas) if answer.get('changed') else 'unchanged'}")
    if wait and replicas:
        from pwm.cli.workload_wait import wait_for_start

        return wait_for_start(invocation, [(invocation.group, rest[0])], timeout_s=timeout)
    return exit_codes.DONE


COMMANDS = {
    "scale": Command(
        "scale",
        scale,
        help="Change a workload's number of replicas; those that run go on.",
        parameters=(
            Argument("words", metavar="[wk] NAME N", multiple=True, required=True, completes="name"),
            Option("replicas", "--replicas", help="The number, instead of N.", metavar="N", convert=whole_number),
            Option("wait", "--wait", help="Wait until it runs.", flag=True),
            Option("timeout", "--timeout", help=TIMEOUT_HELP, metavar="TIME", convert=seconds),
            *SCOPE,
        ),
    )
}
