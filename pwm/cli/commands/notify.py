"""`pwm notify`: where one is told what becomes of one's workloads and credits, and of what."""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import CONNECTION, Argument, Command, Option
from pwm.cli.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pwm.cli.invocation import Invocation

ROUTE = "/v1/notices"


def notify(
    invocation: Invocation,
    *,
    what: str | None,
    email: bool,
    on: Sequence[str],
    to: Sequence[str],
    output: str | None,
) -> int:
    """Shows the settings; with `set` they are replaced as a whole, with `reset` they are as if never set."""
    given = email or on or to
    if what not in (None, "set", "reset"):
        raise UsageError(
            f"there is no `pwm notify {what}`", next_step="`pwm notify`, `pwm notify set`, `pwm notify reset`"
        )
    if given and what != "set":
        raise UsageError("what is given is not set", next_step="write `pwm notify set ...`")
    if what == "set" and not given:
        raise UsageError("say what to set", next_step="--email, --on and --to; `pwm notify reset` sets nothing")
    if what is None:
        answer = invocation.client.call("GET", ROUTE)
    else:
        kinds = [kind for words in on for kind in words.split(",") if kind]
        settings = {"byEmail": email, "on": kinds, "to": list(to)}
        answer = invocation.client.call("POST", ROUTE, body={"notify": settings} if what == "set" else {})
    if output == "json":
        from pwm.cli.render import to_json

        invocation.say(to_json(answer))
    else:
        _show(invocation, answer)
    return exit_codes.DONE


def _show(invocation: Invocation, answer: dict[str, Any]) -> None:
    from pwm.cli.render import fields, harmless

    settings = answer.get("notify")
    email = str(answer.get("email", ""))
    if settings is None:
        kinds, places = "idle, credits" if email else "nothing", [email] if email else []
    else:
        kinds = ", ".join(settings.get("on") or ()) or "exited, crashed, denied, idle, credits"
        places = [email] if email and settings.get("byEmail") else []
        places += [str(address) for address in settings.get("to") or ()]
    pairs = [("Of", kinds), *(("To", harmless(place)) for place in places or ["nowhere"])]
    invocation.out.write(fields(pairs))
    for warning in answer.get("warnings") or ():
        invocation.note(f"warning: {harmless(str(warning.get('message')))}")


COMMANDS = {
    "notify": Command(
        "notify",
        notify,
        help="Where you are told what becomes of your workloads: show it, `set` or `reset` it.",
        parameters=(
            Argument("what", required=False),
            Option("email", "--email", help="By mail, to your address.", flag=True),
            Option(
                "on",
                "--on",
                help="Of what, such as crashed,credits; a default otherwise.",
                metavar="KIND",
                multiple=True,
            ),
            Option("to", "--to", help="An address: tgram://…, https://HOST/PATH#KEY.", metavar="URL", multiple=True),
            Option("output", "-o", "--output", help="Format.", choices=("json",)),
            *CONNECTION,
        ),
    )
}
