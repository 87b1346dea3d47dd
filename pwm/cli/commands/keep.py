"""`pwm keep`: leave workloads alone for a while, although they do not use their GPUs.

It holds once: when the time is over, the rule for idle GPUs is about them again. By name, by label, or by the file that
declared them; one that fails is said and the others go on.
"""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import ALL_GROUPS, SCOPE, SELECTOR, Argument, Command, Option, seconds
from pwm.cli.errors import ServerError, UsageError
from pwm.cli.kinds import WORKLOAD
from pwm.cli.selection import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pwm.cli.invocation import Invocation


def keep(
    invocation: Invocation,
    *,
    words: tuple[str, ...],
    selector: str | None,
    files: tuple[str, ...],
    time: float | None,
) -> int:
    """Holds each of them, and says until when."""
    from pwm.cli.client import quote
    from pwm.cli.render import local_time

    selected = select(invocation, words, selector=selector, files=files, verb="keep", default_kind=WORKLOAD)
    wrong = sorted({kind for kind, _, _ in selected if kind != WORKLOAD})
    if wrong and not files:
        raise UsageError(f"only workloads can be kept, not a {wrong[0]}", next_step="pwm keep wk NAME")
    code = exit_codes.DONE
    for kind, group, name in selected:
        if kind != WORKLOAD:
            continue
        body = {**({"group": group} if group else {}), **({"time": f"{time:.3f}s"} if time is not None else {})}
        try:
            answer = invocation.client.call("POST", f"/v1/workloads/{quote(name)}/keep", body=body)
        except ServerError as error:
            invocation.note(f"error: Workload/{name}: {error}")
            code = max(code, error.exit_code)
            continue
        invocation.say(f"Workload/{name} kept until {local_time(str(answer.get('until', '')))}")
    return code


COMMANDS = {
    "keep": Command(
        "keep",
        keep,
        help="Leave workloads alone for a while, although they do not use their GPUs.",
        parameters=(
            Argument("words", metavar="[wk] [NAME]...", multiple=True, required=False, completes="name"),
            Option("time", "--for", help="How long; 4h.", metavar="TIME", convert=seconds),
            SELECTOR,
            Option(
                "files", "-f", "--file", help="Those that a file declares.", multiple=True, metavar="FILE",
                completes="file",
            ),
            ALL_GROUPS,
            *SCOPE,
        ),
    ),
}  # fmt: skip
