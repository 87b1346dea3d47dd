"""`pwm credits` and `pwm report`: what is spent and left, what it was spent on, and which events say so."""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import CONNECTION, GROUP, Command, Option
from pwm.cli.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from pwm.cli.invocation import Invocation

DIMENSIONS = ("user", "group", "device", "week")
_FIELD_OF = {"user": "user", "group": "group", "device": "product_name", "week": "week"}
HOUR_US = 3_600_000_000
MICRO = 1_000_000


def _dimensions(text: str) -> list[str]:
    """`user,device`."""
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    wrong = [word for word in words if word not in DIMENSIONS]
    if wrong or not words:
        raise ValueError(f"a report is by {', '.join(DIMENSIONS)}, not by {', '.join(wrong) or 'nothing'}")
    return words


def _weeks(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1000:
        raise ValueError(f"{text!r} is not a number of weeks from 1")
    return int(text)


# ---- pwm credits


def credits(invocation: Invocation, *, user: str | None, output: str | None) -> int:
    """What is spent and left this week, until when, and what devices cost."""
    if user and invocation.group:
        raise UsageError("credits are those of a user or those of a group", next_step="Leave one of the two out.")
    if invocation.group:
        from urllib.parse import quote

        answer = invocation.client.call("GET", f"/v1/credits/groups/{quote(invocation.group, safe='')}")
    else:
        answer = invocation.client.call("GET", "/v1/credits", query={"user": user})
    if output == "json":
        from pwm.cli.render import to_json

        invocation.say(to_json(answer))
        return exit_codes.DONE
    from pwm.cli.render import harmless, local_time, table

    accounts: list[dict[str, Any]] = answer.get("accounts") or [answer["account"]]
    header = ("ACCOUNT", "SPENT", "LEFT", "WEEKLY", "PER HOUR NOW")
    invocation.out.write(harmless(table(header, [_account(account) for account in accounts])))
    invocation.say(f"\nThe week began {local_time(answer['startsAt'])} and ends {local_time(answer['resetsAt'])}.")
    for account in accounts:
        if said := warning(account):
            invocation.say(said)
    prices = [(str(p.get("product_name", "")), amount(p.get("hourlyMicro"))) for p in answer.get("prices") or []]
    if prices:
        invocation.out.write("\n" + harmless(table(("PRODUCT", "CREDITS PER HOUR"), prices)))
    else:
        invocation.note("nothing has a price")
    return exit_codes.DONE


def _account(account: dict[str, Any]) -> Sequence[str]:
    spent, hourly = int(account.get("spentMicro", 0)), amount(account.get("hourlyMicro"))
    name = f"{str(account.get('kind', '')).lower()} {account.get('name')}"
    if "weeklyMicro" not in account:
        return name, amount(spent), "-", "no limit", hourly
    weekly = int(account["weeklyMicro"])
    return name, amount(spent), amount(max(0, weekly - spent)), amount(weekly), hourly


def warning(account: dict[str, Any]) -> str:
    """What somebody should know of an account; nothing while most of it is left."""
    whose = f"{str(account.get('kind', '')).lower()} {account.get('name')}"
    weekly, spent = int(account.get("weeklyMicro", 0)), int(account.get("spentMicro", 0))
    match account.get("level"):
        case "LOW":
            return f"Credits of {whose} are low: {spent * 100 // max(1, weekly)} % of this week's are spent."
        case "OUT":
            from pwm.cli.render import local_time

            at = local_time(str(account.get("stopAt", "")))
            stops = f", and what runs is stopped {at}" if at else ""
            return f"Credits of {whose} are spent: nothing new starts{stops}."
    return ""


def summary(account: dict[str, Any]) -> str:
    """For `pwm whoami`: `3.2 of 10 spent this week`."""
    spent = amount(account.get("spentMicro"))
    return f"{spent} of {amount(account['weeklyMicro'])} spent" if "weeklyMicro" in account else f"{spent} spent"


def amount(micro: object) -> str:
    from pwm.quantity import format_credits

    return format_credits(int(str(micro or 0)))


# ---- pwm report


def report(
    invocation: Invocation,
    *,
    by: list[str] | None,
    user: str | None,
    weeks: int | None,
    week: str | None,
    explain: bool,
    output: str | None,
) -> int:
    """Use and cost, added up as asked, or down to the events."""
    if explain:
        if by or weeks:
            raise UsageError("--explain is about one user and one week", next_step="--user and --week say which.")
        return _explain(invocation, user=user, week=week, output=output)
    if week:
        raise UsageError("--week goes with --explain", next_step="--weeks N --by week reports on several.")
    by = by or ["user", "device"]
    query = {"by": by, "user": user, "group": invocation.group, "weeks": weeks}
    answer = invocation.client.call("GET", "/v1/report", query=query)
    rows: list[dict[str, Any]] = answer.get("rows") or []
    if output == "json":
        from pwm.cli.render import to_json

        invocation.say(to_json(answer))
    elif output == "csv":
        header = [*by, "device_hours", "credits", "device_us", "spent_micro"]
        _csv(invocation, header, ([*_about(row, by), *_exact(row)] for row in rows))
    elif rows:
        from pwm.cli.render import harmless, table

        lines = [[*_about(row, by), *_figures(row)] for row in rows]
        lines.append(["total", *[""] * (len(by) - 1), *_figures(answer.get("total") or {})])
        invocation.out.write(harmless(table([*(word.upper() for word in by), "DEVICE HOURS", "CREDITS"], lines)))
    else:
        invocation.note("nothing was used")
    return exit_codes.DONE


def _about(row: dict[str, Any], by: Iterable[str]) -> list[str]:
    return [str(row.get(_FIELD_OF[word], "")) for word in by]


def _figures(row: dict[str, Any]) -> list[str]:
    return [f"{int(row.get('deviceUs', 0)) / HOUR_US:.3f}", amount(row.get("spentMicro"))]


def _exact(row: dict[str, Any]) -> list[str]:
    us, micro = int(row.get("deviceUs", 0)), int(row.get("spentMicro", 0))
    return [f"{us / HOUR_US:.6f}", f"{micro // MICRO}.{micro % MICRO:06d}", str(us), str(micro)]


def _csv(invocation: Invocation, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    import csv

    writer = csv.writer(invocation.out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)


def _explain(invocation: Invocation, *, user: str | None, week: str | None, output: str | None) -> int:
    answer = invocation.client.call("GET", "/v1/report/explain", query={"user": user, "week": week})
    uses: list[dict[str, Any]] = answer.get("uses") or []
    if output == "json":
        from pwm.cli.render import to_json

        invocation.say(to_json(answer))
        return exit_codes.DONE
    if output == "csv":
        names = ("container", "group", "product_name", "millis", "since", "until", "hourlyMicro", "deviceUs",
                 "spentMicro", "begunBy", "endedBy")  # fmt: skip
        _csv(invocation, names, ([str(use.get(name, "")) for name in names] for use in uses))
        return exit_codes.DONE
    from pwm.cli.render import harmless, table

    header = ("CONTAINER", "DEVICE", "COUNT", "FROM", "EVENT", "UNTIL", "EVENT", "SECONDS", "PER HOUR", "CREDITS")
    if uses:
        invocation.out.write(harmless(table(header, [_use(use) for use in uses])))
    spent, booked = amount(answer.get("spentMicro")), amount(answer.get("ledgerMicro"))
    same = answer.get("spentMicro") == answer.get("ledgerMicro")
    invocation.say(f"together {spent} credits, " + ("as the ledger says" if same else f"the ledger says {booked}"))
    for remark in answer.get("remarks") or []:
        invocation.note(str(remark))
    return exit_codes.DONE


def _use(use: dict[str, Any]) -> Sequence[str]:
    from datetime import datetime

    since, until = (datetime.fromisoformat(str(use[name])) for name in ("since", "until"))
    return (
        f"{use.get('group')}/{use.get('container')}",
        str(use.get("product_name", "")),
        f"{int(use.get('millis', 0)) / 1000:g}",
        _moment(since),
        str(use.get("begunBy", "-")),
        _moment(until),
        str(use.get("endedBy", "-")),
        f"{(until - since).total_seconds():.3f}",
        amount(use.get("hourlyMicro")),
        amount(use.get("spentMicro")),
    )


def _moment(at: Any) -> str:
    """To the millisecond, in UTC, as events have it."""
    return f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03d}"


_USER = Option("user", "--user", "-u", help="Whose; yours if not given.", metavar="USER", completes="user")

COMMANDS = {
    "credits": Command(
        "credits",
        credits,
        help="Credits of this week: spent, left, when they come back; and what devices cost.",
        parameters=(
            _USER, GROUP, Option("output", "-o", "--output", help="Format.", choices=("table", "json")), *CONNECTION,
        ),
    ),
    "report": Command(
        "report",
        report,
        help="Use of devices and its cost, by user, group, device and week.",
        parameters=(
            Option(
                "by", "--by", help="Add up by these of user, group, device, week; user,device if not given.",
                metavar="LIST", convert=_dimensions,
            ),
            Option("user", "--user", "-u", help="Only of this user.", metavar="USER", completes="user"),
            GROUP,
            Option("weeks", "--weeks", help="How many weeks, this one included.", metavar="N", convert=_weeks),
            Option("explain", "--explain", help="One user's week, down to the events.", flag=True),
            Option("week", "--week", help="The week with this day, for --explain.", metavar="DATE"),
            Option("output", "-o", "--output", help="Format.", choices=("table", "csv", "json")),
            *CONNECTION,
        ),
    ),
}  # fmt: skip
