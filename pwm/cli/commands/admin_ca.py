"""`pwm admin ca` and `pwm admin join-token`: whom the cluster's parts believe, and how a new node gets in."""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import CONNECTION, Argument, Command, Option, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pwm.cli.invocation import Invocation


def show(invocation: Invocation, *, output: str | None) -> int:
    """The authorities that are trusted, with their fingerprints."""
    from pwm.cli.render import to_json

    answer = invocation.client.call("GET", "/v1/authorities")
    if output == "json":
        invocation.say(to_json(answer.get("authorities", [])))
    elif output == "pem":
        invocation.out.write(str(answer.get("certificates", "")))
    else:
        for entry in answer.get("authorities", ()):
            invocation.say(_line(entry))
    return exit_codes.DONE


def _line(entry: dict[str, Any]) -> str:
    from pwm.cli.render import harmless, local_time

    state = "issues" if entry.get("issuing") else f"trusted until {local_time(str(entry.get('retiresAt', '')))}"
    until = local_time(str(entry.get("expiresAt", "")))
    return harmless(f"{entry.get('fingerprint')}  {entry.get('name')}: {state}; expires {until}")


def rotate(invocation: Invocation, *, trust_old_for: float | None) -> int:
    """A new authority; the old one is trusted for a while."""
    from pwm.cli.render import local_time

    body = {} if trust_old_for is None else {"trustOldFor": f"{trust_old_for:g}s"}
    answer = invocation.client.call("POST", "/v1/admin/authorities/rotate", body=body)
    invocation.say(_line(answer["authority"]))
    if old := answer.get("old"):
        invocation.say(_line(old))
        until = local_time(str(old.get("retiresAt", "")))
        invocation.note(
            f"Agents, controllers and every pwm that is used until {until} learn of the new one by themselves."
        )
    else:
        invocation.note("Nobody believes the old one any more: other people log in anew with the fingerprint above.")
    return exit_codes.DONE


def join_token(invocation: Invocation, *, node: str | None, lifetime: float | None, output: str | None) -> int:
    """A token with which one node gets its first certificate, shown this once."""
    from pwm.cli.render import local_time, to_json

    body: dict[str, Any] = {"node": node} if node else {}
    if lifetime is not None:
        body["lifetime"] = f"{lifetime:g}s"
    answer = invocation.client.call("POST", "/v1/admin/join-tokens", body=body)
    if output == "json":
        invocation.say(to_json(answer))
        return exit_codes.DONE
    invocation.say(str(answer["token"]))
    options = [
        f"--controllers {','.join(answer.get('controllers', ()))}",
        f"--join {','.join(answer.get('servers', ()))}",
    ]
    invocation.note(
        f"It is shown this once, and lets {f'node {node}' if node else 'one new node'} join until "
        f"{local_time(str(answer.get('expiresAt', '')))}. On the node:\n"
        f"  pwm agent {' '.join(options)} --join-token-file FILE{f' --node {node}' if node else ''}"
    )
    return exit_codes.DONE


JOIN_TOKEN = Command(
    "join-token",
    join_token,
    help="A token for a node to join with, once. It is shown once.",
    parameters=(
        Argument("node", metavar="[NODE]", required=False),
        Option("lifetime", "--lifetime", help="How long it may be used; 15m.", metavar="TIME", convert=seconds),
        Option("output", "-o", "--output", help="Format.", choices=("json",)),
        *CONNECTION,
    ),
)
CA = Command(
    "ca",
    help="The cluster's own certificate authority.",
    subcommands=(
        Command(
            "show",
            show,
            help="The authorities that are trusted, by their fingerprints.",
            parameters=(Option("output", "-o", "--output", help="Format.", choices=("json", "pem")), *CONNECTION),
        ),
        Command(
            "rotate",
            rotate,
            help="Put a new authority in the place of the old one, without a pause.",
            parameters=(
                Option(
                    "trust_old_for",
                    "--trust-old-for",
                    help="How long the old one is trusted; 30 days. 0s: no longer, which shuts out who was away.",
                    metavar="TIME",
                    convert=seconds,
                ),
                *CONNECTION,
            ),
        ),
    ),
)
