"""`pwm limits`: what users and groups may have at once, and what of it is in use."""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import CONNECTION, GROUP, Command, Option
from pwm.cli.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pwm.cli.invocation import Invocation


def limits(invocation: Invocation, *, user: str | None, output: str | None) -> int:
    """One's own account and those of one's groups; somebody else's; a group's with its members; or everybody's."""
    from pwm.cli.render import to_json

    if sum(map(bool, (user, invocation.group, invocation.all_groups))) > 1:
        raise UsageError(
            "limits are those of a user, of a group or of everybody", next_step="Say one of --user, -g, -A"
        )
    if invocation.group:
        from urllib.parse import quote

        answer = invocation.client.call("GET", f"/v1/limits/groups/{quote(invocation.group, safe='')}")
    else:
        answer = invocation.client.call("GET", "/v1/limits", query={"user": user, "everybody": invocation.all_groups})
    accounts: list[dict[str, Any]] = answer.get("accounts") or []
    if output == "json":
        invocation.say(to_json(accounts))
    elif accounts:
        invocation.out.write(accounts_table(accounts))
    else:
        invocation.note("nobody has limits, or anything in use")
    return exit_codes.DONE


def accounts_table(accounts: Sequence[dict[str, Any]]) -> str:
    """A line for each: what is in use, of what is allowed."""
    from pwm.cli.render import harmless, table
    from pwm.quantity import QuantityError, format_bytes, format_cpu, parse_bytes

    def memory(limits: dict[str, Any]) -> str | None:
        try:
            return format_bytes(parse_bytes(str(limits["memory"]))) if limits.get("memory") else None
        except QuantityError:
            return harmless(str(limits["memory"]))

    rows = []
    for account in accounts:
        limits, used = account.get("limits") or {}, account.get("used") or {}
        gpus, cpus = limits.get("gpus") or {}, limits.get("cpus") or {}
        each = [
            f"{part['perWorkload']} {word}{'' if part['perWorkload'] == 1 else 's'}"
            for part, word in ((gpus, "GPU"), (cpus, "CPU"))
            if "perWorkload" in part
        ]
        rows.append(
            [
                f"{str(account.get('kind')).lower()} {harmless(str(account.get('name')))}",
                _of(account.get("workloads") or 0, (limits.get("workloads") or {}).get("concurrently")),
                _of(used.get("gpus") or 0, gpus.get("total")),
                _of(format_cpu(int(used.get("cpuMillis") or 0)), cpus.get("total")),
                _of(format_bytes(int(used.get("memoryBytes") or 0)), memory(limits)),
                ", ".join(each) or "-",
                _nodes(limits.get("nodes") or {}),
            ]
        )
    return table(("WHO", "WORKLOADS", "GPUS", "CPUS", "MEMORY", "PER WORKLOAD", "NODES"), rows)


def _of(used: object, allowed: object | None) -> str:
    return str(used) if allowed is None else f"{used} of {allowed}"


def _nodes(limits: dict[str, Any]) -> str:
    from pwm.cli.render import harmless

    allowed, denied = (", ".join(map(harmless, map(str, limits.get(part) or ()))) for part in ("allow", "deny"))
    return " ".join(part for part in (allowed or "all", f"not {denied}" if denied else "") if part)


COMMANDS = {
    "limits": Command(
        "limits",
        limits,
        help="What users and groups may have at once, and what of it is in use.",
        parameters=(
            Option("user", "--user", "-u", help="Whose; yours if not given.", metavar="USER", completes="user"),
            GROUP,
            Option("all_groups", "-A", "--all", help="All users and groups that you may see.", flag=True),
            Option("output", "-o", "--output", help="Format.", choices=("table", "json")),
            *CONNECTION,
        ),
    )
}
