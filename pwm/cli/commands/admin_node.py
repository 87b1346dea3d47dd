"""`pwm admin node`: by what agents are known, and how one of them is shut out."""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import CONNECTION, Argument, Command, Option
from pwm.cli.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pwm.cli.invocation import Invocation

WORDS = {"CERTIFICATE": "certificate", "NODE_TOKEN": "node token", "JOIN_TOKEN": "join token"}
# Of a fingerprint: enough to tell certificates apart, and to find one in a log.
FINGERPRINT_CHARS = 16


def credentials(invocation: Invocation, *, node: str | None, output: str | None) -> int:
    """Certificates, node tokens and join tokens that let an agent in now."""
    from pwm.cli.client import quote
    from pwm.cli.render import coloured_table, harmless, local_time, table, to_json

    answer = invocation.client.call("GET", "/v1/admin/node-credentials" + (f"?node={quote(node)}" if node else ""))
    if output == "json":
        invocation.say(to_json(answer))
        return exit_codes.DONE
    rows = [[harmless(cell) for cell in _row(entry, local_time)] for entry in answer.get("credentials", ())]
    text = table(("NODE", "WHAT", "ID", "FINGERPRINT", "ISSUED", "UNTIL", "BY"), rows)
    invocation.out.write(coloured_table(text) if invocation.colour and text else text)
    for revoked in answer.get("revoked", ()):
        when, who = local_time(str(revoked.get("revokedAt", ""))), revoked.get("revokedBy", "")
        invocation.note(harmless(f"node/{revoked.get('node')}: revoked at {when} by {who}"))
    if not rows and not answer.get("revoked"):
        invocation.note("Nothing lets an agent in now; `pwm admin join-token NODE` makes a token to join with.")
    return exit_codes.DONE


def _row(entry: dict[str, Any], local_time: Any) -> tuple[str, ...]:
    until = entry.get("expiresAt")
    return (
        str(entry.get("node") or "any"),
        WORDS.get(str(entry.get("kind")), str(entry.get("kind"))),
        str(entry.get("id", "")),
        str(entry.get("fingerprint", ""))[:FINGERPRINT_CHARS],
        local_time(str(entry.get("issuedAt", ""))),
        local_time(str(until)) if until else "never",
        str(entry.get("issuedBy", "")),
    )


def revoke(invocation: Invocation, *, node: str | None, token: str | None) -> int:
    """Ends all that lets a node's agent in, or one token."""
    if bool(node) == bool(token):
        raise UsageError(
            "say a node, or one token with --token", next_step="`pwm admin node credentials` lists what there is."
        )
    body = {"node": node} if node else {"token": token}
    answer = invocation.client.call("POST", "/v1/admin/node-credentials/revoke", body=body)
    if token:
        invocation.say(f"token {token} revoked")
        return exit_codes.DONE
    counted = [_counted(int(answer.get(name) or 0), word) for name, word in (("certificates", "certificate"),
               ("tokens", "token"))]  # fmt: skip
    invocation.say(f"node/{node} revoked: {' and '.join(counted)}")
    invocation.note(
        "Its agent is cut off and stays out; what it runs goes on without it, and is lost after a while like that of a "
        f"machine out of reach.\n`pwm admin join-token {node}` lets it join anew."
    )
    return exit_codes.DONE


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


NODE = Command(
    "node",
    help="By what nodes' agents are known, and shutting one out.",
    subcommands=(
        Command(
            "credentials",
            credentials,
            help="Certificates, node tokens and join tokens that let an agent in now.",
            parameters=(
                Argument("node", metavar="[NODE]", required=False),
                Option("output", "-o", "--output", help="Format.", choices=("json",)),
                *CONNECTION,
            ),
        ),
        Command(
            "revoke",
            revoke,
            help="End a node's certificates and tokens: its agent is out at once, until it joins anew.",
            parameters=(
                Argument("node", metavar="[NODE]", required=False),
                Option("token", "--token", help="Only this token, by its id.", metavar="ID"),
                *CONNECTION,
            ),
        ),
    ),
)
