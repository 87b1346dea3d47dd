"""`pwm token`: making, listing and ending tokens, one's own or, who may, those of others."""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import CONNECTION, Argument, Command, Option
from pwm.cli.errors import CliError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pwm.cli.invocation import Invocation

NEVER = "never"


def _lifetime(text: str) -> str:
    """`30d` or `never`; as the API has it: seconds, or "" for never."""
    if text == NEVER:
        return ""
    from pwm.quantity import parse_duration

    milliseconds = parse_duration(text)
    return f"{milliseconds // 1000}.{milliseconds % 1000:03}s"


def create(
    invocation: Invocation,
    *,
    name: str | None,
    user: str | None,
    expires: str | None,
    description: str | None,
    output: str | None,
) -> int:
    """Makes a token and prints it: it cannot be shown again."""
    body: dict[str, Any] = {"name": name or "", "user": user or "", "description": description or ""}
    if expires is not None:
        body |= {"lifetime": expires} if expires else {"neverExpires": True}
    answer = invocation.client.call("POST", "/v1/tokens", body=body)
    if output == "json":
        from pwm.cli.render import to_json

        invocation.say(to_json(answer))
        return exit_codes.DONE
    # The token alone on standard output, so that it can go into a file or a variable.
    invocation.say(str(answer.get("token", "")))
    if output == "name":
        return exit_codes.DONE
    from pwm.cli.render import local_time

    entry = answer.get("entry") or {}
    until = local_time(str(entry.get("expiresAt", "")))
    invocation.note(
        f"token {entry.get('name')} of {entry.get('user')}, "
        f"{f'good until {until}' if until else 'good until it is revoked'}. It is shown only now.\n"
        f"  {_login(invocation)} takes it, on the machine that shall use it\n"
        "  scripts have it in PWM_TOKEN"
    )
    return exit_codes.DONE


def _login(invocation: Invocation) -> str:
    """What is typed elsewhere to log in where this profile does, and believe whom it believes."""
    profile = invocation.profile
    words = ["pwm login", *(f"--server {url}" for url in profile.servers)]
    if profile.pinned:
        try:
            authorities = invocation.client.call("GET", "/v1/authorities").get("authorities") or []
        except CliError:
            authorities = []  # the token is there all the same
        words += [f"--fingerprint {one.get('fingerprint')}" for one in authorities if one.get("issuing")][:1]
    return " ".join(words)


def ls(invocation: Invocation, *, user: str | None, output: str | None) -> int:
    """Lists tokens, those that ended in the last 30 days included."""
    if user and invocation.all_groups:
        raise UsageError("--user and -A exclude each other", next_step="-A lists the tokens of all users.")
    query = {"user": user, "allUsers": invocation.all_groups}
    tokens: list[dict[str, Any]] = invocation.client.call("GET", "/v1/tokens", query=query).get("tokens") or []
    if output == "json":
        from pwm.cli.render import to_json

        invocation.say(to_json(tokens))
    elif output == "name":
        for token in tokens:
            invocation.say(str(token.get("name", "")))
    elif tokens:
        _show(invocation, tokens, wide=output == "wide")
    else:
        invocation.note("no tokens; `pwm token create` makes one")
    return exit_codes.DONE


def _show(invocation: Invocation, tokens: Sequence[dict[str, Any]], *, wide: bool) -> None:
    from pwm.cli.render import coloured_table, harmless, table

    header = ["NAME", "ID", "STATUS", "AGE", "EXPIRES", "LAST USED"]
    rows = [_row(token) for token in tokens]
    if invocation.all_groups:
        header.insert(0, "USER")
        rows = [[str(token.get("user", "")), *row] for token, row in zip(tokens, rows, strict=True)]
    if wide:
        header += ["FROM", "CREATED BY", "DESCRIPTION"]
        rows = [[*row, *_more(token)] for token, row in zip(tokens, rows, strict=True)]
    text = harmless(table(header, rows))
    invocation.out.write(coloured_table(text) if invocation.colour else text)


def _row(token: dict[str, Any]) -> list[str]:
    from pwm.cli.render import age

    state = str(token.get("state", ""))
    used = age(str(token.get("lastUsedAt", "")))
    return [
        str(token.get("name", "")) + (" (this one)" if token.get("current") else ""),
        str(token.get("id", "")),
        state,
        age(str(token.get("createdAt", ""))),
        _ends(token, state),
        f"{used} ago" if used else NEVER,
    ]


def _ends(token: dict[str, Any], state: str) -> str:
    """`in 89d`, `never`, `3h ago`."""
    import time

    from pwm.cli.render import age

    expires = str(token.get("expiresAt", ""))
    if state == "REVOKED":
        return f"revoked {age(str(token.get('revokedAt', '')))} ago"
    if state == "EXPIRED":
        return f"{age(expires)} ago"
    if not expires:
        return NEVER
    return f"in {left(expires, now_s=time.time())}"


def left(stamp: str, *, now_s: float) -> str:
    """How long it is until an RFC 3339 time: `89d4h`."""
    from datetime import datetime

    from pwm.quantity import format_duration

    return format_duration(int((datetime.fromisoformat(stamp).timestamp() - now_s) * 1000))


def _more(token: dict[str, Any]) -> list[str]:
    by = token.get("createdBy") or {}
    maker = str(by.get("name", "")) if by.get("type") == "USER" else f"the {by.get('name', '')}"
    return [str(token.get("lastUsedFrom", "")), maker, str(token.get("description", ""))]


def revoke(invocation: Invocation, *, names: tuple[str, ...], user: str | None) -> int:
    """Ends tokens at once, with all that is open with them."""
    answer = invocation.client.call("POST", "/v1/tokens/revoke", body={"names": list(names), "user": user or ""})
    for token in answer.get("tokens") or []:
        invocation.say(f"token {token.get('name')} of {token.get('user')} revoked")
        if token.get("current"):
            invocation.note("that was the token of this profile; `pwm login` takes another")
    return exit_codes.DONE


_USER = Option("user", "--user", "-u", help="Whose; yours if not given.", metavar="USER", completes="user")

COMMANDS = {
    "token": Command(
        "token",
        help="Tokens: what people and scripts log in with.",
        subcommands=(
            Command(
                "create",
                create,
                help="Make a token. It is printed once and can never be shown again.",
                parameters=(
                    Argument("name", metavar="[NAME]", required=False),
                    _USER,
                    Option(
                        "expires", "--expires", "-e", help="How long it lives: 12h, 30d, never; 90d if not given.",
                        metavar="TIME", convert=_lifetime,
                    ),
                    Option("description", "--description", "-d", help="What it is for.", metavar="TEXT"),
                    Option("output", "-o", "--output", help="Format.", choices=("json", "name")),
                    *CONNECTION,
                ),
                epilog="PWM_TOKEN=$(pwm token create ci -o name) keeps it off the screen.",
            ),
            Command(
                "ls",
                ls,
                help="List tokens, and those that ended in the last 30 days.",
                parameters=(
                    _USER,
                    Option("all_groups", "-A", "--all-users", help="Those of all users.", flag=True),
                    Option("output", "-o", "--output", help="Format.", choices=("table", "wide", "json", "name")),
                    *CONNECTION,
                ),
            ),
            Command(
                "revoke",
                revoke,
                help="End tokens at once, and all that is open with them.",
                parameters=(
                    Argument("names", metavar="NAME|ID...", multiple=True, completes="token"), _USER, *CONNECTION,
                ),
            ),
        ),
    )
}  # fmt: skip
