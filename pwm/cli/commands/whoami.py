"""`pwm whoami`: who the token speaks for."""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import CONNECTION, Command, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pwm.cli.invocation import Invocation


def whoami(invocation: Invocation, *, output: str | None) -> int:
    """The user, its groups, what it may do there, and the profile that was used."""
    from pwm.cli.render import fields, local_time, to_json

    answer = invocation.client.call("GET", "/v1/whoami")
    if output == "json":
        invocation.say(to_json(answer))
        return exit_codes.DONE
    own = str(answer.get("defaultGroup", ""))
    groups = ", ".join(f"{group} (yours)" if group == own else str(group) for group in answer.get("groups", ()))
    pairs = [("User", str(answer.get("user", ""))), ("Groups", groups or own), ("Profile", invocation.profile.name)]
    if token := answer.get("token"):
        until = local_time(str(token.get("expiresAt", "")))
        pairs.append(("Token", f"{token.get('name')}, good until {until or 'it is revoked'}"))
    if credits := answer.get("credits"):
        from pwm.cli.commands.credits import summary, warning

        ends = local_time(str(answer.get("creditsResetAt", "")))
        pairs.append(("Credits", f"{summary(credits[0])}; the week ends {ends}"))
    invocation.out.write(fields([*pairs, ("Servers", ", ".join(invocation.profile.servers))]))
    for account in answer.get("credits") or ():
        if said := warning(account):
            invocation.say(said)
    if accounts := answer.get("accounts"):
        from pwm.cli.commands.limits import accounts_table

        invocation.out.write("\nIn use now, of what you may have at once\n" + accounts_table(accounts))
    if granted := answer.get("permissions"):
        invocation.out.write("\nYou may, beside what everybody may\n" + _permissions(granted))
    return exit_codes.DONE


def _permissions(granted: Sequence[dict[str, Any]]) -> str:
    from pwm.cli.render import harmless, table

    rows = [
        [harmless(str(part)) for part in (p.get("group"), p.get("kind"), ", ".join(p.get("verbs", ())))]
        for p in granted
    ]
    return table(("GROUP", "KIND", "VERBS"), rows)


COMMANDS = {
    "whoami": Command(
        "whoami",
        whoami,
        help="Who the token speaks for, its groups, and what it may do there.",
        parameters=(Option("output", "-o", "--output", help="Format.", choices=("json",)), *CONNECTION),
    )
}
