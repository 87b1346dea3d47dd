"""Which resources the words of a command mean: `wk a b`, `wk/a`, `-l k=v`, `-f FILE`.

Shared by the commands that do something to resources that are there (stop, delete, restart). The answer is a
list of (kind, group, name); an empty group is the caller's own, which the server fills in.
"""

from __future__ import annotations

from pwm.cli.errors import UsageError
from pwm.cli.kinds import is_kind, kind_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pwm.cli.invocation import Invocation


def kind_and_names(words: Sequence[str], *, default_kind: str = "") -> tuple[str, list[str]]:
    """`wk a b`, `wk/a wk/b`, or, where a command has a default kind, `a b`."""
    if not words:
        if default_kind:
            return default_kind, []
        raise UsageError("say which kind", next_step="Such as: wk NAME. Kinds: wk, c, node, gpu, vol, user ...")
    if "/" in words[0]:
        pairs = [word.partition("/") for word in words]
        kinds = {kind_of(kind) for kind, _, _ in pairs}
        if len(kinds) > 1:
            raise UsageError("one kind at a time", next_step="Give the names of each kind in a call of their own.")
        return kinds.pop(), [name for _, _, name in pairs]
    if default_kind and not is_kind(words[0]):
        return default_kind, list(words)
    return kind_of(words[0]), list(words[1:])


def select(
    invocation: Invocation,
    words: Sequence[str],
    *,
    selector: str | None,
    files: Sequence[str],
    verb: str,
    default_kind: str = "",
    recursive: bool = False,
) -> list[tuple[str, str, str]]:
    """(kind, group, name) of everything that is meant; a `UsageError` when that is nothing."""
    if files:
        if words or selector:
            raise UsageError(f"{verb} by name, by label or by file, not by several of them")
        return _in_files(files, recursive=recursive, group=invocation.group)
    kind, names = kind_and_names(words, default_kind=default_kind)
    if names and selector:
        raise UsageError(f"{verb} by name or by label, not by both")
    if names:
        return [(kind, invocation.group, name) for name in dict.fromkeys(names)]
    if not selector:
        raise UsageError(f"say what to {verb}", next_step=f"Such as: pwm {verb} wk NAME, -l k=v, or -f FILE")
    answer = invocation.client.call(
        "GET", f"/v1/resources/{kind}", query={**invocation.scope(), "selector": selector, "format": "RESOURCES"}
    )
    found = [item["metadata"] for item in answer.get("items", ())]
    if not found:
        invocation.note(f"no {kind} has labels {selector}")
    return [(kind, metadata.get("group", ""), metadata["name"]) for metadata in found]


def _in_files(files: Sequence[str], *, recursive: bool, group: str) -> list[tuple[str, str, str]]:
    """What the documents of files name. One that cannot be read stops everything: nothing is done by half."""
    from pwm.cli.errors import CliError
    from pwm.cli.sources import read_documents
    from pwm.manifest.cutting import ManifestError

    found: list[tuple[str, str, str]] = []
    for document in read_documents(files, recursive=recursive):
        if isinstance(document, ManifestError):
            raise CliError(f"{document.place}: {document.message}", next_step=document.next_step)
        if not document.kind or not document.name:
            raise CliError(f"{document.place('metadata')}: a document without kind or metadata.name")
        found.append((kind_of(document.kind), document.group or group, document.name))
    return list(dict.fromkeys(found))
