"""`pwm login`: takes a token, or gets one for a log-in at a provider, and keeps it as a profile.

A token is typed where nobody sees it, or piped in; never an argument, which other users of the machine could read in
the list of processes. Nothing is kept that the server does not know. With `--oidc`, or at a terminal when nothing is
typed, the server is asked for one (`device_login`), if it has a provider that people log in at.
"""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import CONNECTION, Command, Option
from pwm.cli.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pwm.cli.client import Client
    from pwm.cli.invocation import Invocation
    from pwm.cli.profiles import Profile

# What a token looks like: long enough to notice that half of one was pasted.
PREFIX, LENGTH = "pwm_", 47


def login(invocation: Invocation, *, ca: str | None, fingerprint: str | None, oidc: bool) -> int:
    """Gets a token that works, and stores it with the servers as the profile that is used from then on."""
    import os

    from pwm.cli.client import Client
    from pwm.cli.profiles import Profile, add_profile, config_path

    name, servers, known_ca, pinned = _where(invocation)
    ca_file = known_ca
    if ca:
        ca_file, pinned = os.path.abspath(ca), ""  # noqa: PTH100
    elif fingerprint:
        ca_file, pinned = _pin(servers, fingerprint)
    for server in servers:
        _unless_plain(invocation, server)
    profile = Profile(name, servers=servers, ca_file=ca_file, pinned=pinned)
    client = Client(profile, warn=invocation.warn)
    try:
        profile.token = "" if oidc else _ask(invocation, servers, client)
        answer = client.call("GET", "/v1/whoami") if profile.token else _at_provider(invocation, client, profile)
    finally:
        client.close()
    add_profile(name, servers=servers, token=profile.token, ca_file=ca_file, pinned=pinned)
    _greet(invocation, answer, profile)
    invocation.note(f"profile {name} in {config_path()} is in use from now on")
    for variable in ("PWM_TOKEN", "PWM_SERVER", "PWM_PROFILE"):
        if os.environ.get(variable):
            invocation.warn(f"{variable} is set, and replaces what the profile says")
    return exit_codes.DONE


def _pin(servers: list[str], fingerprint: str) -> tuple[str, str]:
    """File and name of the authorities, one of which has this fingerprint, of the first server that answers."""
    from pwm.cli.errors import NoServerError
    from pwm.cli.http1 import Server
    from pwm.cli.pins import keep
    from pwm.trust import TrustError, find_authorities, parse_fingerprint

    try:
        wanted = parse_fingerprint(fingerprint)
    except ValueError as error:
        raise UsageError(str(error)) from error
    said: list[str] = []
    for server in map(Server, servers):
        if not server.tls:
            raise UsageError(f"{server} has no certificate to have a fingerprint", next_step="Write https://HOST:PORT")
        try:
            name, file = keep(find_authorities(server.host, server.port, wanted))
        except TrustError as error:
            said.append(str(error))
        else:
            return file, name
    raise NoServerError("; ".join(said), next_step="`pwm admin ca show` prints the fingerprint where one is logged in.")


def _unless_plain(invocation: Invocation, url: str) -> None:
    from pwm.cli.http1 import Server

    server = Server(url)
    if not server.tls and server.host not in ("localhost", "::1") and not server.host.startswith("127."):
        invocation.warn(f"{server} has no TLS: whoever is on the way can read the token")


def _where(invocation: Invocation) -> tuple[str, list[str], str, str]:
    """The profile to make or renew: its name, its servers, its authorities' file, and their name if pinned."""
    import os

    from pwm.cli.http1 import Server
    from pwm.cli.profiles import DEFAULT_PROFILE, DEFAULT_SERVER, current_name, read_config, servers_of

    config = read_config(invocation.warn)
    name = invocation.profile_name or current_name(config) or DEFAULT_PROFILE
    entry = (config.get("api") or {}).get(name) or {}
    words = invocation.servers or (os.environ.get("PWM_SERVER", ""),)
    given = [url.strip() for word in words for url in word.split(",") if url.strip()]
    try:
        servers = [Server(url).url for url in given or servers_of(entry) or [DEFAULT_SERVER]]
    except ValueError as error:
        raise UsageError(str(error)) from error
    return name, servers, os.environ.get("PWM_CA") or str(entry.get("ca") or ""), str(entry.get("pinned") or "")


def _at_provider(invocation: Invocation, client: Client, profile: Profile) -> dict[str, Any]:
    """Who has logged in there; the profile gets the token."""
    from pwm.cli.device_login import log_in

    answer = log_in(invocation, client)
    profile.token = str(answer.get("token", ""))
    entry: dict[str, Any] = answer.get("entry") or {}
    return {"user": entry.get("user"), "token": entry}


def _ask(invocation: Invocation, servers: list[str], client: Client) -> str:
    """The token, from the keyboard or from standard input; "" when somebody would rather log in at the provider."""
    import sys

    issuer = ""
    if sys.stdin.isatty():
        from getpass import getpass

        from pwm.cli.device_login import provider_of
        from pwm.cli.render import harmless

        issuer = harmless(provider_of(client))
        invocation.note(f"Token for {', '.join(servers)}; `pwm token create` makes one where you are logged in.")
        if issuer:
            invocation.note(f"Or just Enter, to log in with a browser at {issuer}.")
        try:
            token = getpass("Token (not shown): ").strip()
        except EOFError:
            token, issuer = "", ""
    else:
        token = sys.stdin.readline().strip()
    if not token and not issuer:
        raise UsageError(
            "no token was given",
            next_step="Paste it, or pipe it in: pwm login < token-file. Where the server has a provider to log in at,\n"
            "  pwm login --oidc takes a browser instead.",
        )
    if not token:
        return token
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError("that is no token", next_step=f"One is {LENGTH} characters that begin with {PREFIX}")
    if token.startswith(PREFIX) and len(token) < LENGTH:
        raise UsageError(f"that is not all of a token: {len(token)} of {LENGTH} characters")
    return token


def _greet(invocation: Invocation, answer: dict[str, Any], profile: Any) -> None:
    from pwm.cli.render import local_time

    token = answer.get("token") or {}
    until = local_time(str(token.get("expiresAt", "")))
    groups = ", ".join(str(group) for group in answer.get("groups", ()))
    invocation.say(
        f"logged in at {', '.join(profile.servers)} as {answer.get('user')}"
        + (f", of {groups}" if groups else "")
        + (f"; the token {token.get('name')} is good until {until}" if until else "")
    )


COMMANDS = {
    "login": Command(
        "login",
        login,
        help="Log in with a token, typed or piped in, or with a browser, and keep it as a profile.",
        parameters=(
            Option("oidc", "--oidc", help="Log in with a browser, at the provider that the server has.", flag=True),
            *CONNECTION,
            Option("ca", "--ca", help="Authorities to believe, PEM.", metavar="FILE", completes="file"),
            Option("fingerprint", "--fingerprint", help="Of a PWM's own authority, to pin it.", metavar="HEX"),
        ),
        epilog="pwm login --server https://a:4700 --server https://b:4700 --profile lab",
    )
}
