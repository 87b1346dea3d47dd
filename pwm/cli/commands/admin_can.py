"""`pwm admin can`: whether a user may do something, and by which rule."""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import CONNECTION, GROUP, Argument, Command, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pwm.cli.invocation import Invocation


def can(invocation: Invocation, *, user: str, verb: str, kind: str, name: str | None, output: str | None) -> int:
    """Asks the server, which decides by the same rules when it happens. REFUSED when the answer is no."""
    from pwm.cli.kinds import is_kind, kind_of
    from pwm.cli.render import harmless, to_json

    # Some kinds only permissions know (`Token`, `Cluster`): the server says which.
    query = {"user": user, "verb": verb, "kind": kind_of(kind) if is_kind(kind) else kind}
    if invocation.group:
        query["group"] = invocation.group
    if name:
        query["name"] = name
    answer = invocation.client.call("GET", "/v1/admin/can", query=query)
    allowed = bool(answer.get("allowed"))
    if output == "json":
        invocation.say(to_json({"allowed": allowed, **answer}))
    else:
        where = f" in group {answer['group']}" if answer.get("group") else ""
        what = (
            f"{answer.get('user')} {'may' if allowed else 'may not'} {answer.get('verb')} {answer.get('kind')}{where}"
        )
        invocation.say(f"{'yes' if allowed else 'no'}: {harmless(what)}")
        invocation.say(f"  {harmless(str(answer.get('rule', '')))}")
    return exit_codes.DONE if allowed else exit_codes.REFUSED


CAN = Command(
    "can",
    can,
    help="Whether a user may do something, and by which rule. Ends with 0 for yes and 5 for no.",
    parameters=(
        Argument("user", metavar="USER"),
        Argument("verb", metavar="VERB"),
        Argument("kind", metavar="KIND", completes="kind"),
        Option("name", "--name", help="Which one, where everybody may see his own.", metavar="NAME"),
        Option("output", "-o", "--output", help="Format.", choices=("json",)),
        GROUP,
        *CONNECTION,
    ),
)
