"""`pwm inspect`: what the driver (Docker) itself says of a workload's containers, as JSON."""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import SCOPE, Argument, Command, Option, whole_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pwm.cli.invocation import Invocation


def inspect(invocation: Invocation, *, words: tuple[str, ...], replica: int | None) -> int:
    """Prints a list with one entry per container. Fails when no container could be asked."""
    import json

    from pwm.cli.target import target_of

    target = target_of(invocation, words, replica=replica)
    answer = invocation.client.call(
        "GET", target.path("inspect"), query={"group": target.group, "replica": target.replica}
    )
    containers = answer.get("containers", [])
    if target.container:
        containers = [container for container in containers if container.get("container") == target.container]
    invocation.say(json.dumps(containers, indent=2, ensure_ascii=False))
    for container in containers:
        if container.get("error"):
            invocation.note(f"{container.get('container')} on {container.get('node')}: {container['error']}")
    return exit_codes.DONE if any("document" in container for container in containers) else exit_codes.FAILED


COMMANDS = {
    "inspect": Command(
        "inspect",
        inspect,
        help="What the driver says of each container of a workload, as JSON.",
        parameters=(
            Argument("words", multiple=True, metavar="wk NAME", completes="name"),
            Option("replica", "--replica", help="Only this replica, from 0.", metavar="N", convert=whole_number),
            *SCOPE,
        ),
    )
}
