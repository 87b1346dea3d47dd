"""`pwm admin`: the cluster itself. The old `pwmadm`."""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import CONNECTION, Argument, Command, Option, seconds
from pwm.cli.commands.admin_ca import CA, JOIN_TOKEN
from pwm.cli.commands.admin_can import CAN
from pwm.cli.commands.admin_init import INIT
from pwm.cli.commands.admin_node import NODE
from pwm.cli.commands.admin_restore import ACCEPT_RESTORE
from pwm.cli.errors import CliError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pwm.cli.invocation import Invocation

# Folding the log of 100,000 streams takes a minute.
VERIFY_TIMEOUT_S = 600.0
STATUS_COLUMNS = 100
# Longer than a leader's lease, or nobody takes over; and no longer than the server allows.
MIN_FREEZE_S, MAX_FREEZE_S = 4.0, 60.0
MOST_ROUNDS = 1000


def status(invocation: Invocation, *, output: str | None) -> int:
    """Replicas, leaders, etcd and agents, with warnings."""
    from pwm.cli.render import to_json, to_yaml

    answer = invocation.client.call("GET", "/v1/admin/status")
    if output == "json":
        invocation.say(to_json(answer))
    elif output == "yaml":
        invocation.out.write(to_yaml(answer))
    else:
        invocation.out.write(_status_text(invocation, answer))
    return exit_codes.DONE


def _status_text(invocation: Invocation, answer: dict[str, Any]) -> str:
    from pwm.cli.render import age, coloured_table, harmless, table
    from pwm.quantity import format_bytes

    def ago(stamp: object) -> str:
        return f"{age(str(stamp))} ago" if stamp else "never"

    def draw(title: str, header: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
        text = table(header, [[harmless("" if cell is None else str(cell)) for cell in row] for row in rows])
        if not text:
            return f"{title}: none\n"
        return f"{title}\n{coloured_table(text) if invocation.colour else text}"

    def size(count: object) -> str:
        return format_bytes(int(str(count or 0))) if count else ""

    replicas = [
        (
            r.get("id"),
            str(r.get("address", "")).rpartition("://")[2],
            r.get("version"),
            age(str(r.get("startedAt", ""))),
            " ".join(r.get("roles", ())),
            *((r.get("revision", 0), r.get("lag", 0), r.get("agents", 0)) if not r.get("trouble") else ("?", "?", "?")),
        )
        for r in answer.get("replicas", ())
    ]
    leaders = [
        (r.get("role"), r.get("replica"), ago(r.get("since")), "" if r.get("atWork") else "not at work")
        for r in answer.get("leaders", ())
    ]
    members = [
        (
            m.get("endpoint"),
            m.get("version"),
            ("leader" if m.get("leader") else "READY") if m.get("reachable") else "LOST",
            *(size(m.get(name)) for name in ("dbInUseBytes", "dbSizeBytes", "quotaBytes")),
            m.get("error"),
        )
        for m in answer.get("etcd", ())
    ]
    answering = next((r.get("id") for r in answer.get("replicas", ()) if r.get("answering")), "")
    alarms = ", ".join(answer.get("alarms", ()))
    agents = [
        (a.get("node"), a.get("phase"), a.get("replica"), a.get("epoch"), a.get("version"), ago(a.get("lastHeard")),
         "; ".join(str(problem) for problem in a.get("problems", ())))
        for a in answer.get("agents", ())
    ]  # fmt: skip
    parts = [
        draw("Controllers", ("ID", "ADDRESS", "VERSION", "UP", "LEADS", "REVISION", "BEHIND", "AGENTS"), replicas),
        draw("Leaders", ("ROLE", "CONTROLLER", "SINCE", ""), leaders),
        draw(
            f"etcd, alarm: {alarms}" if alarms else "etcd",
            ("ENDPOINT", "VERSION", "STATE", "IN USE", "SIZE", "QUOTA", "ERROR"),
            members,
        ),
        draw("Agents", ("NODE", "STATUS", "CONTROLLER", "EPOCH", "VERSION", "HEARD", "PROBLEMS"), agents),
        f"{answering} answered, at revision {answer.get('revision', 0)}: {answer.get('streams', 0)} resources\n",
    ]
    if warnings := answer.get("warnings"):
        parts.append("Warnings\n" + "".join(_wrapped(harmless(str(warning))) for warning in warnings))
    return "\n".join(parts)


def _wrapped(sentence: str) -> str:
    from textwrap import fill

    return (
        fill(sentence, STATUS_COLUMNS, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False) + "\n"
    )


def verify(invocation: Invocation, *, output: str | None) -> int:
    """Folds the whole log and compares; FAILED when anything differs."""
    from pwm.cli.render import harmless, to_json

    answer = invocation.client.call("POST", "/v1/admin/verify", body={}, timeout_s=VERIFY_TIMEOUT_S)
    differences = answer.get("differences", [])
    if output == "json":
        invocation.say(to_json(answer))
    else:
        partial = int(answer.get("partial") or 0)
        invocation.say(
            f"{int(answer.get('events') or 0)} events of {int(answer.get('streams') or 0)} resources folded"
            + (f", {partial} of them from a snapshot on" if partial else "")
        )
        invocation.say(f"{int(answer.get('audited') or 0)} entries of the audit followed")
        if unaudited := int(answer.get("unaudited") or 0):
            invocation.say(f"  {unaudited} changes are not in it: a controller was killed before it wrote them down")
        for difference in differences:
            invocation.say(f"  differs: {harmless(str(difference))}")
        invocation.say(f"{len(differences)} differ" if differences else "all as they should be")
    return exit_codes.FAILED if differences else exit_codes.DONE


def node_token(invocation: Invocation, *, node: str | None, lifetime: float | None) -> int:
    """A credential for an agent where there is no TLS, shown this once."""
    body: dict[str, Any] = {}
    if node:
        body["node"] = node
    if lifetime is not None:
        body["lifetime"] = f"{lifetime:g}s"
    answer = invocation.client.call("POST", "/v1/admin/node-tokens", body=body)
    invocation.say(str(answer["token"]))
    if invocation.out.isatty():
        invocation.note("It is shown this once. On the node:  PWM_NODE_TOKEN=... pwm agent --plaintext")
    return exit_codes.DONE


def failover(
    invocation: Invocation,
    *,
    role: str,
    kill: bool,
    freeze: bool,
    resign: bool,
    freeze_for: float,
    rounds: int,
    yes: bool,
    output: str | None,
) -> int:
    """Makes a leader fail, and proves what that cost."""
    if kill + freeze + resign > 1:
        raise UsageError("one failure at a time", next_step="Choose --kill, --freeze or --resign.")
    if not MIN_FREEZE_S <= freeze_for <= MAX_FREEZE_S:
        raise UsageError(f"a leader can be frozen for {MIN_FREEZE_S:g} s to {MAX_FREEZE_S:g} s")
    import gc

    from pwm.cli.failover.drill import drill
    from pwm.cli.failover.rounds import Plan

    gc.enable()  # `main` turns it off, which suits only short lives
    failure = "FREEZE" if freeze else "RESIGN" if resign else "KILL"
    return drill(invocation, Plan(role, failure, freeze_for), rounds=rounds, yes=yes, output=output)


def confirm_dead(invocation: Invocation, *, node: str, yes: bool) -> int:
    """An admin's word that a node runs nothing any more."""
    import sys

    from pwm.cli.client import quote

    if not yes:
        if not (sys.stdin.isatty() and invocation.err.isatty()):
            raise UsageError("nobody is here to agree to this", next_step="Say --yes to go on without a question.")
        invocation.note(
            f"PWM will start elsewhere what ran on node {node}, and take its GPUs for free.\n"
            "If the machine still runs, then so may its containers, twice: switch it off, or pull its cable for good."
        )
        invocation.err.write("Type the node's name to confirm that it is dead: ")
        invocation.err.flush()
        if sys.stdin.readline().strip() != node:
            raise CliError("nothing was changed")
    answer = invocation.client.call("POST", f"/v1/admin/nodes/{quote(node)}/confirm-dead", body={})
    containers = answer.get("containers", ())
    invocation.say(f"node/{node} confirmed dead")
    for container in containers:
        invocation.say(f"  ended with it: Container {container}")
    return exit_codes.DONE


def _rounds(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_ROUNDS:
        raise ValueError(f"{text!r} is not a number from 1 to {MOST_ROUNDS}")
    return int(text)


COMMANDS = {
    "admin": Command(
        "admin",
        help="The cluster itself.",
        subcommands=(
            Command(
                "status",
                status,
                help="Replicas, leaders, etcd and agents, with warnings in plain words.",
                parameters=(Option("output", "-o", "--output", help="Format.", choices=("json", "yaml")), *CONNECTION),
            ),
            Command(
                "verify",
                verify,
                help="Fold the log of every resource and compare with what is stored and shown.",
                parameters=(Option("output", "-o", "--output", help="Format.", choices=("json",)), *CONNECTION),
            ),
            Command(
                "failover",
                failover,
                help="Make a leader fail on purpose, and prove that nobody noticed.",
                parameters=(
                    Option(
                        "role",
                        "--role",
                        help="Whose leader: zone/default, cluster.",
                        metavar="ROLE",
                        default="zone/default",
                    ),
                    Option("kill", "--kill", help="SIGKILL; whoever runs it starts it again. The default.", flag=True),
                    Option("freeze", "--freeze", help="SIGSTOP for a while, as a machine that hangs.", flag=True),
                    Option("resign", "--resign", help="Hand over, as at a restart in good order.", flag=True),
                    Option(
                        "freeze_for",
                        "--for",
                        help="How long --freeze lasts; 5s if not said.",
                        metavar="TIME",
                        default=5.0,
                        convert=seconds,
                    ),
                    Option("rounds", "--rounds", help="How often.", metavar="N", default=3, convert=_rounds),
                    Option("yes", "-y", "--yes", help="Do not ask first.", flag=True),
                    Option("output", "-o", "--output", help="Format.", choices=("json",)),
                    *CONNECTION,
                ),
            ),
            Command(
                "confirm-dead",
                confirm_dead,
                help="Say that a node out of reach is dead: what ran there has ended, and may start elsewhere.",
                parameters=(
                    Argument("node", metavar="NODE"),
                    Option("yes", "-y", "--yes", help="Do not ask first.", flag=True),
                    *CONNECTION,
                ),
            ),
            ACCEPT_RESTORE,
            CAN,
            INIT,
            JOIN_TOKEN,
            NODE,
            CA,
            Command(
                "node-token",
                node_token,
                help="A token for the agents of controllers without TLS. It is shown once.",
                parameters=(
                    Argument("node", metavar="[NODE]", required=False),
                    Option("lifetime", "--lifetime", help="How long it is good for.", metavar="TIME", convert=seconds),
                    *CONNECTION,
                ),
                hidden=True,
            ),
        ),
    )
}
