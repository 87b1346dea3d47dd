"""`pwm version` and `pwm api-version`: what client and server are, and whether they fit together."""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import CONNECTION, Command, Option
from pwm.cli.errors import CliError
from pwm.version import API_VERSION, VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pwm.cli.invocation import Invocation

# A server that does not answer at once is not worth waiting for just to learn its version.
ANSWER_TIMEOUT_S = 3.0


def version(invocation: Invocation, *, output: str | None, client_only: bool) -> int:
    """Both versions; a server that cannot be reached is said and is no failure."""
    from pwm.cli.client import fits, misfit

    server: dict[str, str] = {}
    trouble = ""
    if not client_only:
        try:
            server = invocation.client.call("GET", "/v1/version", timeout_s=ANSWER_TIMEOUT_S)
        except CliError as error:
            trouble = error.message
    if output == "json":
        import json

        invocation.say(json.dumps({"client": VERSION, "server": server or None, "apiVersion": API_VERSION}))
        return exit_codes.DONE
    invocation.say(f"client {VERSION}")
    if server:
        invocation.say(f"server {server.get('version', '?')}")
        if not fits(VERSION, server.get("version", ""), server.get("oldestClient", "")):
            invocation.warn(misfit(VERSION, server.get("version", "?")))
    elif not client_only:
        invocation.say("server unknown")
        invocation.note(trouble)
    return exit_codes.DONE


def api_version(invocation: Invocation) -> int:
    """The version of the API that this client speaks."""
    invocation.say(API_VERSION)
    return exit_codes.DONE


COMMANDS = {
    "version": Command(
        "version",
        version,
        help="Versions of client and server, and a warning when they do not fit together.",
        parameters=(
            Option("output", "-o", "--output", help="Format.", choices=("json",)),
            Option("client_only", "--client", help="Only the client's; asks no server.", flag=True),
            *CONNECTION,
        ),
    ),
    "api-version": Command("api-version", api_version, help="The version of the API that this client speaks."),
}
