"""`pwm completion`: what a shell needs to complete our words, names of resources included.

The scripts are click's; the words come from the same tables as everything else. Names are asked from the
server, quickly or not at all: a shell that waits is worse than one that completes nothing.
"""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import GLOBALS, Argument, Command
from pwm.cli.errors import CliError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pwm.cli.invocation import Invocation

SHELLS = ("bash", "zsh", "fish")
ANSWER_TIMEOUT_S = 1.0

_HOW = {
    "bash": 'source <(pwm completion bash)   # in ~/.bashrc',
    "zsh": 'source <(pwm completion zsh)   # in ~/.zshrc, after compinit',
    "fish": 'pwm completion fish > ~/.config/fish/completions/pwm.fish',
}  # fmt: skip


def completion(invocation: Invocation, *, shell: str) -> int:
    """The script that the shell reads."""
    from click.shell_completion import get_completion_class

    from pwm.cli.main import program

    completer = get_completion_class(shell) if shell in SHELLS else None
    if completer is None:
        raise UsageError(f"there is no completion for {shell!r}", next_step="bash, zsh or fish")
    source = _source(completer, program())
    invocation.out.write(f"# {_HOW[shell]}\n{source}\n")
    return exit_codes.DONE


def _source(completer: Any, program: Any) -> str:
    made = completer(program, {}, "pwm", "_PWM_COMPLETE")
    # click's own `source` of bash starts a bash to learn its version; the script is the same.
    text: str = made.source_template % made.source_vars()
    return text


def candidates(completes: str, known: dict[str, Any]) -> list[str]:
    """Words that could stand here; `known` are the values before them. Never fails: no answer is []."""
    try:
        return _candidates(completes, known)
    except CliError:
        return []


def _candidates(completes: str, known: dict[str, Any]) -> list[str]:
    from pwm.cli.kinds import KINDS, WORKLOAD, is_kind, kind_of
    from pwm.cli.profiles import read_config

    if completes == "profile":
        return list(read_config(lambda text: None).get("api") or {})
    words = tuple(known.get("words") or ())
    kinds = [aliases[0] for aliases in KINDS.values()]
    if completes in ("group", "user"):
        return _names(completes.capitalize(), known)
    if completes == "token":
        return _live_tokens(known)
    if not words:
        return kinds if completes == "kind" else [*kinds[:1], *_names(WORKLOAD, known)]
    return _names(kind_of(words[0]) if is_kind(words[0]) else WORKLOAD, known)


def _names(kind: str, known: dict[str, Any]) -> list[str]:
    from pwm.cli.invocation import Invocation

    with Invocation({name: known.get(name) for name in GLOBALS}) as invocation:
        query = {**invocation.scope(), "format": "NAME"}
        answer = invocation.client.call("GET", f"/v1/resources/{kind}", query=query, timeout_s=ANSWER_TIMEOUT_S)
    return [line.rpartition("/")[2] for line in str(answer.get("text", "")).split()]


def _live_tokens(known: dict[str, Any]) -> list[str]:
    from pwm.cli.invocation import Invocation

    with Invocation({name: known.get(name) for name in GLOBALS}) as invocation:
        answer = invocation.client.call(
            "GET", "/v1/tokens", query={"user": known.get("user")}, timeout_s=ANSWER_TIMEOUT_S
        )
    return [str(token["name"]) for token in answer.get("tokens", ()) if token.get("state") == "LIVE"]


COMMANDS = {
    "completion": Command(
        "completion",
        completion,
        help="The script that makes a shell complete commands, kinds and names.",
        parameters=(Argument("shell", metavar="bash|zsh|fish"),),
        epilog="bash: source <(pwm completion bash)",
    )
}
