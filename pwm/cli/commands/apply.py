"""`pwm apply`: documents to the server, and one line of answer for each.

Documents are read one by one (`manifest.py`), sent in batches, and answered in order. One that cannot be read,
or that the server refuses, changes nothing and does not stop the others: its line says `refused`, standard
error says why and where (file:line:column), and the exit code is that of the worst refusal.

    files -> Document ... -> batches -> POST /v1/apply -> results -> lines      (--wait: then watch)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pwm.cli import exit_codes
from pwm.cli.command import SCOPE, TIMEOUT_HELP, Argument, Command, Option, seconds
from pwm.cli.errors import INVALID_ARGUMENT, CliError, ServerError, UsageError, exit_of_status
from pwm.cli.invocation import Invocation
from pwm.cli.manifest import Document, read_documents
from pwm.cli.yamlreader import ManifestError

# Documents in one request: its answer comes within a second, and what is done is seen soon.
BATCH_DOCUMENTS = 200
# Far below the 16 MiB that the server takes; JSON may be longer than the YAML it came from.
BATCH_CHARS = 4 * 1024 * 1024
# 200 documents, each a commit, on a slow etcd.
APPLY_TIMEOUT_S = 120.0

REFUSED = "REFUSED"


class Outcome(NamedTuple):
    """What became of one document, or of one that could not be read."""

    label: str
    word: str
    document: Document | None = None
    result: dict[str, Any] = {}
    code: int = exit_codes.DONE


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
    entries = list(read_documents(names, recursive=recursive))
    if diff:
        from pwm.cli.difference import show_difference

        for entry in entries:
            if isinstance(entry, Document):
                show_difference(invocation, entry)
    for batch in _batches(entries):
        outcomes += _apply_batch(invocation, batch, dry_run=dry_run or diff, output=output)
    if not outcomes:
        raise CliError("no documents there", next_step="A document begins with apiVersion, kind and metadata.")
    if output == "json":
        _show_json(invocation, outcomes)
    code = max(outcome.code for outcome in outcomes)
    if wait and not dry_run and not diff:
        code = max(code, _wait(invocation, outcomes, timeout))
    return code


def _batches(entries: Sequence[Document | ManifestError]) -> Iterator[list[Document | ManifestError]]:
    """Lists of documents and errors, in order, small enough for one request each."""
    batch: list[Document | ManifestError] = []
    chars = 0
    for entry in entries:
        size = entry.size if isinstance(entry, Document) else 0
        if batch and (len(batch) >= BATCH_DOCUMENTS or chars + size > BATCH_CHARS):
            yield batch
            batch, chars = [], 0
        batch.append(entry)
        chars += size
    if batch:
        yield batch


def _apply_batch(
    invocation: Invocation, batch: list[Document | ManifestError], *, dry_run: bool, output: str | None
) -> list[Outcome]:
    documents = [entry for entry in batch if isinstance(entry, Document)]
    results: list[dict[str, Any]] = []
    if documents:
        body: dict[str, Any] = {"documents": [document.content for document in documents]}
        body |= {"dryRun": True} if dry_run else {}
        body |= {"group": invocation.group} if invocation.group else {}
        results = _send(invocation, documents, body)
    outcomes, given = [], iter(results)
    for entry in batch:
        if isinstance(entry, Document):
            outcome = _outcome(entry, next(given))
        else:
            outcome = Outcome(str(entry.place), REFUSED, code=exit_codes.FAILED)
        outcomes.append(outcome)
        _show(invocation, outcome, entry, dry_run=dry_run, output=output)
    return outcomes


def _send(invocation: Invocation, documents: list[Document], body: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of a batch. A request that is refused as a whole refuses each of its documents."""
    try:
        answer = invocation.client.call("POST", "/v1/apply", body=body, timeout_s=APPLY_TIMEOUT_S)
    except ServerError as error:
        if error.status != INVALID_ARGUMENT:
            raise
        problem = {"message": error.message, "nextStep": error.next_step, "code": error.status}
        return [{"outcome": REFUSED, "problems": [problem]} for _ in documents]
    results: list[dict[str, Any]] = answer.get("results", [])
    if len(results) != len(documents):
        raise CliError(
            f"the server answered {len(results)} of {len(documents)} documents",
            next_step="`pwm version` says whether client and server fit together.",
        )
    return results


def _outcome(document: Document, result: dict[str, Any]) -> Outcome:
    word = str(result.get("outcome", ""))
    code = exit_codes.DONE
    if word == REFUSED:
        statuses = [int(problem.get("code") or INVALID_ARGUMENT) for problem in result.get("problems", ())]
        code = max((exit_of_status(status) for status in statuses), default=exit_codes.FAILED)
    label = f"{result['kind']}/{result['name']}" if result.get("kind") and result.get("name") else document.label
    return Outcome(label, word, document, result, code)


# --- what the person sees -------------------------------------------------------------------------


def _show(
    invocation: Invocation, outcome: Outcome, entry: Document | ManifestError, *, dry_run: bool, output: str | None
) -> None:
    from pwm.cli.render import harmless, status_word

    label = harmless(outcome.label)
    if output is None:
        word = status_word(outcome.word.lower(), colour=invocation.colour)
        prediction = harmless(str(outcome.result.get("prediction", "")))
        invocation.say(f"{label} {word}{' (dry run)' if dry_run else ''}{': ' + prediction if prediction else ''}")
    elif output == "name" and outcome.word != REFUSED:
        invocation.say(label)
    if isinstance(entry, ManifestError):
        _complain(invocation, "error", str(entry.place), entry.message, entry.next_step)
        return
    for level, problems in (("error", "problems"), ("warning", "warnings")):
        for problem in outcome.result.get(problems, ()):
            place = entry.place(str(problem.get("field", "")))
            _complain(invocation, level, str(place), str(problem.get("message", "")), str(problem.get("nextStep", "")))


def _complain(invocation: Invocation, level: str, place: str, message: str, next_step: str) -> None:
    from pwm.cli.render import harmless

    invocation.note(harmless(f"{level}: {place}: {message}" + (f"\n  {next_step}" if next_step else "")))


def _show_json(invocation: Invocation, outcomes: list[Outcome]) -> None:
    from pwm.cli.render import to_json

    invocation.say(
        to_json(
            [
                {"kind": o.result.get("kind", ""), "name": o.result.get("name", ""), **o.result, "outcome": o.word}
                for o in outcomes
            ]
        )
    )


def _wait(invocation: Invocation, outcomes: list[Outcome], timeout_s: float | None) -> int:
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
