"""`pwm profile`: servers and tokens, by name."""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import Argument, Command, Option
from pwm.cli.errors import NotFoundError, UsageError
from pwm.cli.profiles import (
    DEFAULT_PROFILE,
    DEFAULT_SERVER,
    add_profile,
    config_path,
    current_name,
    read_config,
    servers_of,
    write_config,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pwm.cli.invocation import Invocation


def init(invocation: Invocation, *, servers: tuple[str, ...], token: str | None) -> int:
    """Makes the file with a first profile, unless there is one."""
    if read_config(invocation.warn).get("api"):
        invocation.say(f"{config_path()} has profiles already; `pwm profile ls` shows them")
        return exit_codes.DONE
    return add(invocation, name=DEFAULT_PROFILE, servers=servers or (DEFAULT_SERVER,), token=token, ca=None)


def add(invocation: Invocation, *, name: str, servers: tuple[str, ...], token: str | None, ca: str | None) -> int:
    """Adds a profile, or replaces the one of that name; the first one is used from then on."""
    from pwm.cli.http1 import Server

    if not servers:
        raise UsageError("a profile needs a server", next_step="Such as: --api-server https://127.0.0.1:4700")
    try:
        urls = [Server(url).url for entry in servers for url in entry.split(",") if url]
    except ValueError as error:
        raise UsageError(str(error)) from error
    add_profile(name, servers=urls, token=_token(token), use=False, ca_file=ca or "")
    using = read_config(lambda text: None).get("profile")
    invocation.say(f"profile {name} added" + (", and in use" if using == name else f"; `pwm profile use {name}`"))
    return exit_codes.DONE


def _token(given: str | None) -> str:
    """The token; `-` reads it from standard input, so that it stays out of the shell's history."""
    import os
    import sys

    if given == "-":
        return sys.stdin.readline().strip()
    return given if given is not None else os.environ.get("PWM_TOKEN", "")


def use(invocation: Invocation, *, name: str) -> int:
    """Makes a profile the one that is used."""
    config = read_config(invocation.warn)
    _entry(config, name)
    config["profile"] = name
    write_config(config)
    invocation.say(f"using {name}")
    return exit_codes.DONE


def using(invocation: Invocation) -> int:
    """Says which profile is used."""
    invocation.say(invocation.profile.name)
    return exit_codes.DONE


def ls(invocation: Invocation, *, output: str | None) -> int:
    """Lists profiles; tokens are not shown."""
    from pwm.cli.render import table, to_json

    config = read_config(invocation.warn)
    profiles: dict[str, Any] = config.get("api") or {}
    current = current_name(config)
    if output == "name":
        for name in profiles:
            invocation.say(name)
        return exit_codes.DONE
    rows = [(name, servers_of(entry or {}), _has_token(entry)) for name, entry in profiles.items()]
    if output == "json":
        invocation.say(to_json([{"name": n, "server": s, "token": bool(t), "using": n == current} for n, s, t in rows]))
        return exit_codes.DONE
    if not rows:
        invocation.note("no profiles yet; `pwm login --server URL` makes one")
    marked = [("*" if name == current else "", name, ", ".join(servers), token) for name, servers, token in rows]
    invocation.out.write(table(("", "NAME", "SERVERS", "TOKEN"), marked))
    return exit_codes.DONE


def _has_token(entry: dict[str, Any]) -> str:
    return "yes" if ((entry or {}).get("auth") or {}).get("token") else ""


def token(invocation: Invocation, *, name: str | None) -> int:
    """Prints the token of a profile, the one in use if none is named."""
    if name is None:
        value = invocation.profile.token
    else:
        value = str((_entry(read_config(invocation.warn), name).get("auth") or {}).get("token") or "")
    if not value:
        raise NotFoundError("this profile has no token", next_step="pwm login takes one")
    invocation.say(value)
    return exit_codes.DONE


def delete(invocation: Invocation, *, name: str) -> int:
    """Removes a profile."""
    config = read_config(invocation.warn)
    _entry(config, name)
    del config["api"][name]
    if config.get("profile") == name:
        config["profile"] = next(iter(config["api"]), None)
        if config["profile"] is None:
            del config["profile"]
    write_config(config)
    invocation.say(f"profile {name} deleted" + (f"; using {config['profile']} now" if config.get("profile") else ""))
    return exit_codes.DONE


def _entry(config: dict[str, Any], name: str) -> dict[str, Any]:
    profiles = config.get("api") or {}
    if name not in profiles:
        known = ", ".join(profiles) or "none yet"
        raise NotFoundError(f"there is no profile {name!r}", next_step=f"Profiles are: {known}.")
    entry: dict[str, Any] = profiles[name] or {}
    return entry


_NAME = Argument("name", metavar="NAME", completes="profile")
_SERVERS = Option(
    "servers", "--api-server", "--server", "-s", help="Server; give several, they are tried in turn.",
    metavar="URL", multiple=True,
)  # fmt: skip
_TOKEN = Option("token", "--token", "-t", help="Token; - reads it from standard input.", metavar="TOKEN")

COMMANDS = {
    "profile": Command(
        "profile",
        help="Servers and tokens, by name. Kept in ~/.pwm/config.",
        subcommands=(
            Command("init", init, help="Make the file with a first profile.", parameters=(_SERVERS, _TOKEN)),
            Command(
                "add",
                add,
                help="Add a profile, or replace the one of that name.",
                parameters=(
                    Argument("name", metavar="NAME"),
                    _SERVERS,
                    _TOKEN,
                    Option("ca", "--ca", help="Certificates to trust, for https.", metavar="FILE", completes="file"),
                ),
            ),
            Command("use", use, help="Use a profile from now on.", parameters=(_NAME,)),
            Command("using", using, help="Which profile is used."),
            Command(
                "ls",
                ls,
                help="List profiles.",
                parameters=(Option("output", "-o", "--output", help="Format.", choices=("json", "name")),),
            ),
            Command("del", delete, help="Delete a profile.", parameters=(_NAME,)),
            Command(
                "token",
                token,
                help="Print a profile's token.",
                parameters=(Argument("name", metavar="[NAME]", required=False, completes="profile"),),
            ),
        ),
    )
}
