"""Logging in at a provider, with a browser that may be on any other machine: what `pwm login --oidc` does.

The server gives an address and a code; the person opens the one, anywhere, and confirms the other. Meanwhile the server
is asked again and again whether that has been done, as seldom as the provider wants it. So this works over ssh, and
without a terminal: the address and the code go to standard error, and nothing is read.

What has been begun is in the `handle`, which any of the servers can go on with: that one of them goes away while
somebody types a password is waited out.
"""

from __future__ import annotations

import socket
import time

from pwm.cli import exit_codes
from pwm.cli.errors import RESOURCE_EXHAUSTED, UNAVAILABLE, CliError, NoServerError, ServerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pwm.cli.client import Client
    from pwm.cli.invocation import Invocation

# By RFC 8628, what a provider adds to the pause when it says "slow down".
SLOWER_S = 5.0
# If a server says nothing about it.
SHORTEST_PAUSE_S = 1.0


def provider_of(client: Client) -> str:
    """The URL of the provider that the servers let people log in at; "" if there is none."""
    try:
        return str(client.call("GET", "/v1/login/provider").get("issuer", ""))
    except NoServerError:
        raise
    except ServerError:
        return ""  # an older server, which knows of none


def log_in(invocation: Invocation, client: Client) -> dict[str, Any]:
    """Begins a log-in, tells the person what to do, and waits for it: the answer with the token."""
    begun = client.call("POST", "/v1/login/begin", body={})
    _instruct(invocation, begun)
    deadline = time.monotonic() + _seconds(begun.get("lifetime"))
    pause_s = max(SHORTEST_PAUSE_S, _seconds(begun.get("interval")))
    body = {"handle": str(begun.get("handle", "")), "host": socket.gethostname()}
    return _wait(invocation, client, body, deadline=deadline, pause_s=pause_s)


def _wait(
    invocation: Invocation, client: Client, body: dict[str, str], *, deadline: float, pause_s: float
) -> dict[str, Any]:
    from pwm.cli.progress import StatusLine
    from pwm.quantity import format_duration

    trouble: CliError | None = None
    with StatusLine(invocation.err) as line:
        while (left_s := deadline - time.monotonic()) > 0:
            line.say(f"waiting for you to confirm the code, for {format_duration(int(left_s) * 1000)} still")
            time.sleep(min(pause_s, left_s))
            try:
                answer = client.call("POST", "/v1/login/complete", body=body)
            except (NoServerError, ServerError) as error:
                if isinstance(error, ServerError) and error.status not in (UNAVAILABLE, RESOURCE_EXHAUSTED):
                    raise
                if trouble is None:
                    line.note(f"{error.message}; trying again")
                trouble = error
                continue
            trouble = None
            if answer.get("state") == "DONE":
                return answer
            if answer.get("state") == "SLOW_DOWN":
                pause_s += SLOWER_S
    raise trouble or CliError(
        "the code was not confirmed in time",
        next_step="pwm login --oidc begins anew",
        exit_code=exit_codes.REFUSED,
    )


def _instruct(invocation: Invocation, begun: dict[str, Any]) -> None:
    """Where to go and what to confirm. What a provider says must not steer a terminal."""
    from pwm.cli.invocation import wants_colour
    from pwm.cli.render import BOLD, PLAIN, harmless

    code, page, complete = (
        harmless(str(begun.get(name, ""))) for name in ("userCode", "verificationUri", "verificationUriComplete")
    )
    bold = f"{BOLD}{code}{PLAIN}" if wants_colour(invocation.err) else code
    if complete:
        invocation.note(f"Open this address in a browser, on any machine:\n\n    {complete}\n")
        invocation.note(f"and confirm there that the code is {bold} (or type it at {page}).")
    else:
        invocation.note(f"Open this address in a browser, on any machine:\n\n    {page}\n")
        invocation.note(f"and type the code {bold} there.")


def _seconds(text: object) -> float:
    """`600s`, as JSON has a duration."""
    try:
        return float(str(text or "0s").removesuffix("s"))
    except ValueError:
        return 0.0
