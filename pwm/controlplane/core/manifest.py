"""Documents as users write them, read into the one message that is stored, sent and shown.

    parse_document(document)  ->  Parsed(message, warnings)   or   Refused(problems)

The steps, each in a module of its own:

1. `document`: the values become a tree that remembers where each one stood;
2. `legacy`: forms of older versions are rewritten into today's;
3. `admission`: what no container gets is refused by name;
4. `schema` and `fields`: the tree is read into the message, every field with its type and limits;
5. `admission` again: the rules that need more than one field.

All of it is pure and bounded: a document has a greatest size and depth, and an answer has a most of
problems. A document is accepted whole or not at all. Reading again what came out gives the same message.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pwm.api.v1.services_pb2 import Problem
from pwm.controlplane.core import admission, kinds, legacy, schema
from pwm.controlplane.core.document import Findings, Item, Json, TooDeep, child, nearest, plant, shown
from pwm.controlplane.core.kinds import Applied

API_VERSION = "v1"
# An event may have 64 KiB and etcd takes 1.5 MiB: a document leaves room for what the server adds.
MAX_DOCUMENT_BYTES = 48 * 1024
# What the server writes into a resource beside what the user wrote.
_SERVER_SET = ("status",)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A document that can be applied."""

    message: Applied
    kind: str
    warnings: list[Problem]


class Refused(Exception):
    """A document that cannot be applied, and all that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = problems


def parse_document(document: Mapping[str, Json], *, default_group: str) -> Parsed:
    """The message that a document means. Raises `Refused`."""
    findings = Findings()
    root = _plant(document, findings)
    kind = _kind(root, findings) if root is not None else ""
    if root is None or not kind or findings.problems:
        raise Refused(findings.problems)
    mapping = root.mapping or {}
    for key in ("apiVersion", "kind", *_SERVER_SET):
        mapping.pop(key, None)
    message = kinds.APPLIED[kind].message(api_version=API_VERSION, kind=kind)
    legacy.rewrite(kind, mapping, findings)
    admission.forbidden_options(kind, root, findings)
    schema.read(message, root, findings)
    admission.check(kind, root, findings)
    if findings.problems:
        raise Refused(findings.problems)
    if kinds.APPLIED[kind].grouped and not message.metadata.group:
        message.metadata.group = default_group
    admission.warn_not_yet(kind, root, findings)
    return Parsed(message=message, kind=kind, warnings=findings.warnings)


def _plant(document: Mapping[str, Json], findings: Findings) -> Item | None:
    if not isinstance(document, dict):
        findings.refuse("", f"a document must be a mapping, not {shown(document)}", "begin with apiVersion: v1")
        return None
    try:
        root = plant(document)
        size = len(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode())
    except TooDeep as error:
        findings.refuse("", f"the document is nested too deeply at {error}", "no kind has so many levels")
        return None
    except (ValueError, TypeError):
        findings.refuse("", "the document holds something that cannot be written as JSON", "use plain text and numbers")
        return None
    if size > MAX_DOCUMENT_BYTES:
        said = f"the document has {size // 1024} KiB, but may have at most {MAX_DOCUMENT_BYTES // 1024} KiB"
        findings.refuse("", said, "put large data into a volume or into the image")
        return None
    return root


def _kind(root: Item, findings: Findings) -> str:
    """The document's kind, or "" when it cannot be applied; says why."""
    _version(child(root, "apiVersion"), findings)
    item = child(root, "kind")
    word = item.text if item is not None else None
    if item is None or not word:
        what = "the document has no kind" if item is None else f"kind must be text, not {shown(item.value)}"
        findings.refuse("kind", what, "write kind: Workload, or another kind")
        return ""
    kind = kinds.kind_named(word)
    if word.lower() in kinds.GONE:
        findings.refuse("kind", f"there is no kind {word} any more", kinds.GONE[word.lower()])
    elif kind is None:
        findings.refuse("kind", f"there is no kind {shown(word)}", _which_kind(word))
    elif kind in kinds.OBSERVED:
        findings.refuse("kind", f"a {kind} is observed, it cannot be applied", "remove the document")
    elif kind not in kinds.APPLIED:
        findings.refuse("kind", f"a {kind} cannot be applied", _which_kind(""))
    else:
        return kind
    return ""


def _which_kind(word: str) -> str:
    near = nearest(word, kinds.spellings())
    return f"did you mean {near}?" if near else f"kinds are {', '.join(kinds.APPLIED)}"


def _version(item: Item | None, findings: Findings) -> None:
    if item is not None and item.value != API_VERSION:
        said = f"apiVersion is {shown(item.value)}, which this server does not know"
        findings.refuse("apiVersion", said, f"write apiVersion: {API_VERSION}")
