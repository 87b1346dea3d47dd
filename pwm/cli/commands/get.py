"""`pwm get`: lists, rendered by the server."""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import ALL_GROUPS, SCOPE, SELECTOR, Argument, Command, Option
from pwm.cli.kinds import kind_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pwm.cli.invocation import Invocation


def get(invocation: Invocation, *, kind: str, names: tuple[str, ...], selector: str | None) -> int:
    query = {**invocation.scope(), "format": "TABLE", "selector": selector, "names": names}
    answer = invocation.client.call("GET", f"/v1/resources/{kind_of(kind)}", query=query)
    invocation.out.write(answer.get("text", ""))
    return exit_codes.DONE


COMMANDS = {
    "get": Command(
        "get",
        get,
        help="List resources.",
        parameters=(
            Argument("kind", completes="kind"),
            Argument("names", multiple=True, required=False, completes="name"),
            SELECTOR,
            ALL_GROUPS,
            *SCOPE,
        ),
    )
}
