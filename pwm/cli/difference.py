"""`apply --diff`: how a document differs from what is there.

Compared is what the document says, field by field: what it does not mention, such as a default that the server
filled in, is no difference. Of people (users, roles, groups, prices) the server fills in nothing, so what a document
no longer mentions goes, and is shown; but for the notices that users want. Old spellings of a field, stored under
their new name, show as such.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pwm.cli.errors import NOT_FOUND, ServerError
from pwm.cli.invocation import Invocation
from pwm.cli.kinds import is_kind, kind_of
from pwm.manifest.cutting import Chunk, ManifestError
from pwm.manifest.documents import Document, read_all

GREEN, RED, PLAIN = "\033[32m", "\033[31m", "\033[0m"
PEOPLE = frozenset({"User", "Role", "Group", "ResourceCredit"})
ANY = ("pwm.all", "all")


def show_differences(invocation: Invocation, chunks: Iterable[Chunk | ManifestError]) -> None:
    """A unified diff of each document on standard output; nothing of those without a difference."""
    for document in read_all(chunks):
        # Of the others the server will say what is wrong with them.
        if isinstance(document, Document) and document.name and is_kind(document.kind):
            _show_difference(invocation, document)


def _show_difference(invocation: Invocation, document: Document) -> None:
    from pwm.cli.render import harmless, to_yaml

    there = _there(invocation, document)
    wanted = {name: value for name, value in document.content.items() if name != "status"}
    if kind_of(document.kind) == "Secret":
        # Not even its writer's screen is a place for values; what is there is not told by the server anyhow.
        there, wanted = _without_values(there), _without_values(wanted)
    mentioned = _mentioned(there, wanted) if there else {}
    if there and kind_of(document.kind) in PEOPLE:
        wanted, spec = _in_one_form(wanted), there.get("spec") or {}
        if "notify" not in (wanted.get("spec") or {}):
            # What users have set for themselves stays.
            spec = {name: value for name, value in spec.items() if name != "notify"}
        mentioned = _in_one_form(mentioned | {"spec": _in_order(spec, wanted.get("spec"))})
    lines = difflib.unified_diff(
        to_yaml(mentioned).splitlines() if mentioned else [],
        to_yaml(wanted).splitlines(),
        fromfile=f"{document.kind}/{document.name} (there)",
        tofile=f"{document.kind}/{document.name} ({document.chunk.source})",
        lineterm="",
    )
    for line in lines:
        line = harmless(line)
        if invocation.colour:
            colour = GREEN if line.startswith("+") else RED if line.startswith("-") else ""
            line = f"{colour}{line}{PLAIN}" if colour else line
        invocation.say(line)


def _in_one_form(value: Any, field: str = "") -> Any:
    """Verbs and amounts as they are written most briefly, for there are several ways to."""
    if field in ("policy", "permission"):
        if isinstance(value, str) and value.lower() in ANY:
            value = {"pwm.all": ["pwm.all"]}
        if isinstance(value, dict):
            return {kind: _verbs(granted) for kind, granted in value.items()}
    if isinstance(value, dict):
        return {name: _in_one_form(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [_in_one_form(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _verbs(granted: Any) -> Any:
    """The verbs in `[get]`, `get` and `{verbs: [get]}`."""
    if isinstance(granted, dict) and set(granted) == {"verbs"}:
        granted = granted["verbs"]
    return [granted] if isinstance(granted, str) else granted


def _in_order(there: Any, wanted: Any) -> Any:
    """What is there, in the document's order as far as that goes."""
    if isinstance(there, dict) and isinstance(wanted, dict):
        names = [*(name for name in wanted if name in there), *(name for name in there if name not in wanted)]
        return {name: _in_order(there[name], wanted.get(name)) for name in names}
    if isinstance(there, list) and isinstance(wanted, list):
        paired = [_in_order(one, other) for one, other in zip(there, wanted, strict=False)]
        return paired + there[len(wanted) :]
    return there


def _without_values(secret: dict[str, Any]) -> dict[str, Any]:
    spec = secret.get("spec")
    if not isinstance(spec, dict):
        return secret
    return secret | {
        "spec": {key: dict.fromkeys(part, "(secret)") for key, part in spec.items() if isinstance(part, dict)}
    }


def _there(invocation: Invocation, document: Document) -> dict[str, Any]:
    from pwm.cli.client import quote

    group = document.group or invocation.group
    try:
        answer = invocation.client.call(
            "GET",
            f"/v1/resources/{kind_of(document.kind)}/{quote(document.name)}",
            query={"group": group} if group else None,
        )
    except ServerError as error:
        if error.status == NOT_FOUND:
            return {}
        raise
    resource: dict[str, Any] = answer["resource"]
    return resource


def _mentioned(there: Any, wanted: Any) -> Any:
    """The part of what is there that the document speaks of, in the document's order."""
    if isinstance(there, dict) and isinstance(wanted, dict):
        return {name: _mentioned(there[name], value) for name, value in wanted.items() if name in there}
    if isinstance(there, list) and isinstance(wanted, list):
        paired = [_mentioned(one, other) for one, other in zip(there, wanted, strict=False)]
        return paired + there[len(wanted) :]
    return there
