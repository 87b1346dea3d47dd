"""`pwm admin accept-restore`: etcd was restored from an older snapshot, and what it holds now is to be the truth."""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import CONNECTION, Command, Option
from pwm.cli.errors import CliError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pwm.cli.invocation import Invocation

# Looking up 2,000 containers in etcd takes a few seconds.
TIMEOUT_S = 60.0
_PATH = "/v1/admin/accept-restore"


def accept_restore(invocation: Invocation, *, yes: bool) -> int:
    """Says what happened and what follows, asks, and goes on from what etcd holds."""
    import sys

    told = invocation.client.call("POST", _PATH, body={"dryRun": True}, timeout_s=TIMEOUT_S)
    invocation.out.write(_consequences(told))
    if not yes:
        if not (sys.stdin.isatty() and invocation.err.isatty()):
            raise UsageError("nobody is here to agree to this", next_step="Say --yes to go on without a question.")
        invocation.err.write("Type yes to go on from what etcd holds now: ")
        invocation.err.flush()
        if sys.stdin.readline().strip() != "yes":
            raise CliError("nothing was changed")
    answer = invocation.client.call("POST", _PATH, body={}, timeout_s=TIMEOUT_S)
    invocation.say(f"accepted; this is incarnation {answer.get('incarnation')} of the cluster's log")
    return exit_codes.DONE


def _consequences(answer: dict[str, Any]) -> str:
    from pwm.cli.render import harmless

    lines = [f"{answer.get('doubt', {}).get('why', 'etcd was restored')}."]
    lines.append(
        "What was changed after the snapshot is lost: workloads, volumes, users and tokens made since then too."
    )
    strangers = [str(name) for name in answer.get("strangers", ())]
    if strangers:
        lines.append(
            f"{len(strangers)} containers are unknown to what etcd holds now. They will be stopped and removed:"
        )
        lines += [f"  {name}" for name in strangers]
    else:
        lines.append("Every container that agents have told of is known to what etcd holds now; they go on.")
    if unheard := answer.get("unheard"):
        names = ", ".join(map(str, unheard))
        lines.append(f"Not heard of: the agents of {names}. What they have and etcd does not know goes as well.")
    return "".join(f"{harmless(line)}\n" for line in lines)


ACCEPT_RESTORE = Command(
    "accept-restore",
    accept_restore,
    help="Go on from what etcd holds after it was restored from an older snapshot.",
    parameters=(Option("yes", "-y", "--yes", help="Do not ask first.", flag=True), *CONNECTION),
)
