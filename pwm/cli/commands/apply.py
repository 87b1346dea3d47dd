"""`pwm apply`: documents to the server, and one line of answer for each.

Sources are only cut into documents here and sent as they are written: the server reads them, and its answer says for
each what became of it, and for each complaint in which line and column. So this command loads no YAML parser, which
would cost more than all else that it does. One document that cannot be read, or that the server refuses, changes
nothing and does not stop the others: its line says `refused`, standard error says why and where (file:line:column),
and the exit code is that of the worst refusal.

    files -> Chunk ... -> batches -> POST /v1/apply -> results -> lines      (--wait: then watch)
"""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.command import SCOPE, TIMEOUT_HELP, Argument, Command, Option, seconds
from pwm.cli.errors import INVALID_ARGUMENT, CliError, ServerError, UsageError, exit_of_status
from pwm.cli.sources import cut_sources
from pwm.manifest.cutting import Chunk, ManifestError, Place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    from pwm.cli.invocation import Invocation

# Documents in one request: its answer comes within a second, and what is done is seen soon.
BATCH_DOCUMENTS = 200
# Far below the 16 MiB that the server takes; JSON may be longer than the YAML it holds.
BATCH_CHARS = 4 * 1024 * 1024
# 200 documents, each a commit, on a slow etcd.
APPLY_TIMEOUT_S = 120.0

REFUSED = "REFUSED"


class Outcome:
    """What became of one document, or of a source or document that could not be read.

    `result` is the server's, or in its form.
    """

    __slots__ = ("result", "source")

    def __init__(self, source: str, result: dict[str, Any]) -> None:
        self.source = source
        self.result = result

    @property
    def word(self) -> str:
        return str(self.result.get("outcome", ""))

    @property
    def label(self) -> str:
        """How to call it in a message."""
        kind, name = (str(self.result.get(field) or "") for field in ("kind", "name"))
        if kind and name:
            return f"{kind}/{name}"
        if "line" in self.result:
            return f"{kind or 'document'} ({self.place(self.result)})"
        return str(self.place(next(iter(self.result.get("problems", ())), {})))

    @property
    def code(self) -> int:
        if self.word != REFUSED:
            return exit_codes.DONE
        statuses = [int(problem.get("code") or INVALID_ARGUMENT) for problem in self.result.get("problems", ())]
        return max((exit_of_status(status) for status in statuses), default=exit_codes.FAILED)

    def place(self, part: dict[str, Any]) -> Place:
        """Where the result, or one of its problems, says that it stands."""
        return Place(self.source, int(part.get("line", 0)), int(part.get("column", 0)))


def apply(
    invocation: Invocation,
    *,
    paths: tuple[str, ...],
    files: tuple[str, ...],
    recursive: bool,
    dry_run: bool,
    diff: bool,
    wait: bool,
    timeout: float | None,
    output: str | None,
) -> int:
    """Creates and changes what the documents of all files declare."""
    names = [*files, *paths]
    if not names:
        raise UsageError("say what to apply", next_step="pwm apply -f FILE, -f DIRECTORY, or -f - for standard input")
    outcomes: list[Outcome] = []
    entries = list(cut_sources(names, recursive=recursive))
    if diff:
        from pwm.cli.difference import show_differences

        show_differences(invocation, entries)
    for batch in _batches(entries):
        for outcome in _apply_batch(invocation, batch, dry_run=dry_run or diff):
            outcomes.append(outcome)
            _show(invocation, outcome, dry_run=dry_run or diff, output=output)
    if not outcomes:
        raise CliError("no documents there", next_step="A document begins with apiVersion, kind and metadata.")
    if output == "json":
        _show_json(invocation, outcomes)
    code = max(outcome.code for outcome in outcomes)
    if wait and not dry_run and not diff:
        code = max(code, _wait(invocation, outcomes, timeout))
    return code


def _batches(entries: Iterable[Chunk | ManifestError]) -> Iterator[list[Chunk | ManifestError]]:
    """Lists of documents and errors, in order, small enough for one request each."""
    batch: list[Chunk | ManifestError] = []
    chars = 0
    for entry in entries:
        size = len(entry.text) if isinstance(entry, Chunk) else 0
        if batch and (len(batch) >= BATCH_DOCUMENTS or chars + size > BATCH_CHARS):
            yield batch
            batch, chars = [], 0
        batch.append(entry)
        chars += size
    if batch:
        yield batch


def _apply_batch(invocation: Invocation, batch: Sequence[Chunk | ManifestError], *, dry_run: bool) -> Iterator[Outcome]:
    chunks = [entry for entry in batch if isinstance(entry, Chunk)]
    results: list[list[dict[str, Any]]] = []
    if chunks:
        body: dict[str, Any] = {"manifests": [{"text": chunk.text, "firstLine": chunk.first_line} for chunk in chunks]}
        body |= {"dryRun": True} if dry_run else {}
        body |= {"group": invocation.group} if invocation.group else {}
        results = _send(invocation, chunks, body)
    given = iter(results)
    for entry in batch:
        if isinstance(entry, ManifestError):
            yield Outcome(entry.place.source, _refusal(entry.message, entry.next_step, place=entry.place))
        else:
            yield from (Outcome(entry.source, result) for result in next(given))


def _send(invocation: Invocation, chunks: Sequence[Chunk], body: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The results of each chunk. A request that is refused as a whole refuses each of its chunks."""
    try:
        answer = invocation.client.call("POST", "/v1/apply", body=body, timeout_s=APPLY_TIMEOUT_S)
    except ServerError as error:
        if error.status != INVALID_ARGUMENT:
            raise
        return [[_refusal(error.message, error.next_step, place=chunk.start)] for chunk in chunks]
    results: list[list[dict[str, Any]]] = [[] for _ in chunks]
    for result in answer.get("results", ()):
        index = int(result.pop("manifest", 0))
        if index >= len(chunks):
            raise CliError(
                f"the server answered of document {index + 1}, and was sent {len(chunks)}",
                next_step="`pwm version` says whether client and server fit together.",
            )
        results[index].append(result | {"source": chunks[index].source})
    return results


def _refusal(message: str, next_step: str, *, place: Place) -> dict[str, Any]:
    """The result of what the server has not seen."""
    problem: dict[str, Any] = {"message": message, "nextStep": next_step, "code": INVALID_ARGUMENT}
    if place.line:
        problem |= {"line": place.line, "column": place.column}
    return {"outcome": REFUSED, "problems": [problem], "source": place.source}


# --- what the person sees -------------------------------------------------------------------------


def _show(invocation: Invocation, outcome: Outcome, *, dry_run: bool, output: str | None) -> None:
    from pwm.cli.render import harmless, status_word

    label = harmless(outcome.label)
    if output is None:
        word = status_word(outcome.word.lower(), colour=invocation.colour)
        prediction = harmless(str(outcome.result.get("prediction", "")))
        invocation.say(f"{label} {word}{' (dry run)' if dry_run else ''}{': ' + prediction if prediction else ''}")
    elif output == "name" and outcome.word != REFUSED:
        invocation.say(label)
    for level, problems in (("error", "problems"), ("warning", "warnings")):
        for problem in outcome.result.get(problems, ()):
            message, next_step = str(problem.get("message", "")), str(problem.get("nextStep", ""))
            step = f"\n  {next_step}" if next_step else ""
            invocation.note(harmless(f"{level}: {outcome.place(problem)}: {message}{step}"))


def _show_json(invocation: Invocation, outcomes: Sequence[Outcome]) -> None:
    from pwm.cli.render import to_json

    invocation.say(to_json([{"kind": "", "name": "", **outcome.result} for outcome in outcomes]))


def _wait(invocation: Invocation, outcomes: Sequence[Outcome], timeout_s: float | None) -> int:
    from pwm.cli.kinds import WORKLOAD
    from pwm.cli.workload_wait import wait_for_start

    workloads = [
        (str(outcome.result.get("group", "")), str(outcome.result["name"]))
        for outcome in outcomes
        if outcome.word != REFUSED and outcome.result.get("kind") == WORKLOAD
    ]
    return wait_for_start(invocation, workloads, timeout_s=timeout_s) if workloads else exit_codes.DONE


COMMANDS = {
    "apply": Command(
        "apply",
        apply,
        help="Create or change what YAML or JSON documents declare. Each document stands alone: "
        "one that is refused changes nothing, and the others go on.",
        parameters=(
            Argument("paths", metavar="[FILE]...", multiple=True, required=False, completes="file"),
            Option("files", "-f", "--file", help="File, directory, or - for standard input.", multiple=True,
                   metavar="FILE", completes="file"),
            Option("recursive", "-R", "--recursive", help="Look into the directory's folders too.", flag=True),
            Option("dry_run", "--dry-run", help="Say what would happen, and where it would run; change nothing.",
                   flag=True),
            Option("diff", "--diff", help="Show how it differs from what is there; change nothing.", flag=True),
            Option("wait", "--wait", help="Wait until workloads run or have ended; fail when one crashes.", flag=True),
            Option("timeout", "--timeout", help=TIMEOUT_HELP, metavar="TIME", convert=seconds),
            Option("output", "-o", "--output", help="Format.", choices=("json", "name")),
            *SCOPE,
        ),
    )
}  # fmt: skip
