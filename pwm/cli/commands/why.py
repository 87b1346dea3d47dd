"""`pwm why`: every reason a workload is not running, and what would start it; or why it ended."""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import SCOPE, Argument, Command, Option
from pwm.cli.errors import UsageError
from pwm.cli.kinds import WORKLOAD
from pwm.cli.selection import kind_and_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pwm.cli.invocation import Invocation

# Nodes named with a reason; with more, their number says enough.
NODES_SHOWN = 5


def why(invocation: Invocation, *, words: tuple[str, ...], output: str | None) -> int:
    """Explains one workload."""
    from pwm.cli.client import quote
    from pwm.cli.render import to_json, to_yaml

    kind, names = kind_and_names(words, default_kind=WORKLOAD)
    if kind != WORKLOAD or len(names) != 1:
        raise UsageError("name one workload", next_step="pwm why wk NAME")
    query = {"group": invocation.group} if invocation.group else None
    answer = invocation.client.call("GET", f"/v1/workloads/{quote(names[0])}/why", query=query)
    if output == "json":
        invocation.say(to_json(answer))
    elif output == "yaml":
        invocation.out.write(to_yaml(answer))
    else:
        invocation.out.write(_explained(names[0], answer, colour=invocation.colour))
    return exit_codes.DONE


def _explained(name: str, answer: dict[str, Any], *, colour: bool) -> str:
    from pwm.cli.render import harmless, local_time, sentence, status_word

    phase = str(answer.get("phase", "UNKNOWN"))
    reason = sentence(answer.get("reason") or {})
    text = f"{harmless(name)} is {status_word(phase, colour=colour)}" + (f": {reason}" if reason else "") + "\n"
    if position := int(answer.get("queuePosition") or 0):
        text += f"  place {position} of {int(answer.get('queueLength') or position)} in the queue\n"
    if estimate := answer.get("estimatedStart"):
        text += f"  expected to start about {local_time(estimate)}\n"
    text += _section("Warnings", [harmless(str(warning)) for warning in answer.get("warnings", ())])
    text += _section("Use of its GPUs", [harmless(str(line)) for line in answer.get("evidence", ())])
    text += _section("Nodes", [_refusal(refusal) for refusal in answer.get("refusals", ())])
    text += _section("What would start it", [harmless(str(change)) for change in answer.get("suggestions", ())])
    return text + _section("Replicas", [_story(story, colour=colour) for story in answer.get("replicas", ())])


def _section(title: str, lines: list[str]) -> str:
    return f"{title}:\n" + "".join(f"  {line}\n" for line in lines) if lines else ""


def _refusal(refusal: dict[str, Any]) -> str:
    from pwm.cli.render import harmless, sentence

    nodes = [harmless(str(node)) for node in refusal.get("nodes", ())]
    count = f"{len(nodes)} node" + ("" if len(nodes) == 1 else "s")
    named = ", ".join(nodes[:NODES_SHOWN]) + (", ..." if len(nodes) > NODES_SHOWN else "")
    return f"{count}: {sentence(refusal.get('reason') or {})}" + (f"  [{named}]" if named else "")


def _story(story: dict[str, Any], *, colour: bool) -> str:
    from pwm.cli.render import age, harmless, local_time, sentence, status_word

    status = story.get("status") or {}
    phase = str(status.get("phase", "")).lower()
    text = f"{int(story.get('replica') or 0)}: {status_word(phase, colour=colour) or 'not placed'}"
    if node := story.get("node"):
        text += f" on {harmless(str(node))}"
    if since := age(str(status.get("since", ""))):
        text += f" for {since}" if phase in ("running", "pulling", "creating", "assigned") else f" {since} ago"
    if reason := sentence(status.get("reason") or {}):
        text += f": {reason}"
    if (attempts := int(story.get("attempts") or 0)) > 1:
        text += f", attempt {attempts}"
    if stamp := story.get("nextAttempt"):
        text += f", next attempt at {local_time(str(stamp))}"
    return text


COMMANDS = {
    "why": Command(
        "why",
        why,
        help="Why a workload is not running: reasons per node, its place in the queue, and what would start it. "
        "For one that ended: why it ended.",
        parameters=(
            Argument("words", metavar="[wk] NAME", multiple=True, required=True, completes="name"),
            Option("output", "-o", "--output", help="Format.", choices=("json", "yaml")),
            *SCOPE,
        ),
    )
}
