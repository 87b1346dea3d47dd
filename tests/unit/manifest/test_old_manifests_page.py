"""docs/old-manifests.md says what became of every old field. Here each of its rows is tried."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from pwm.controlplane.core.manifest import Parsed, Refused, parse_document
from pwm.manifest.documents import Document, parse

PAGE = Path(__file__).parents[3] / "docs" / "old-manifests.md"
ROW = re.compile(r"^\| `(?P<old>.+?)` \| (?P<outcome>accepted|warned|refused) \| (?P<today>.+) \|$")
OUTCOMES = {"accepted", "warned", "refused"}

# What each section's rows are pieces of.
MINIMAL: dict[str, dict[str, Any]] = {
    "Workload": {"spec": {"image": "ubuntu"}},
    "Group": {},
    "Zone": {},
    "User": {},
    "Role": {},
    "Node": {},
    "Storage": {"spec": {"kind": "nfs", "nfs": {"server": "10.0.0.9", "path": "/export"}}},
    "Volume": {"spec": {"storage": "nfs01"}},
    "ResourceCredit": {"spec": {"credit": {"per": {"hour": 1}}}},
}
ALIASES = {"Every kind": "Workload", "Kinds that are gone or cannot be applied": "Workload"}

# Every field, kind and magic word that a manifest of the old versions could have.
OLD_WORDS = [
    word
    for line in (
        "apiVersion kind metadata name group workspace zone driver selectors node gpu cpu label product_name count",
        "exclusive image registry repository pullPolicy IfNotPresent Always config cmd shmSize memory env labels",
        "value startMode restartPolicy Never affinity Random Distribute Fill volumes storage target subPath policy",
        "autoCreate network ports protocol port hostPort replica notify byEmail plugins telegram id sendOn exited",
        "crashed running meta integrations github webhooks path secret requestedAction active sync src volume dst",
        "shell pwm.docker pwm.nvidiadocker Docker pwm.all All pwm.zero pwm.resource Zone endpoints User contact",
        "email limits credits weekly resources gpus perWorkload cpus workloads concurrently nodes allow deny",
        "groups role Role permission Node address endpoint CPUWorkload GPUWorkload maintenance token Storage nfs",
        "server local mountNode accessModes capacity mountpath Volume readonly rw ResourceCredit credit per hour",
        "Workspace Usercredit Project Experiment Application Action Version Stat DeletedResource Bind Container",
        "GPU CPU Event",
    )
    for word in line.split()
]


def rows() -> list[tuple[str, str, str, str]]:
    found = []
    section = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line[3:]
        match = ROW.match(line)
        if match:
            found.append((ALIASES.get(section, section), match["old"], match["outcome"], match["today"]))
    return found


def document(kind: str, piece: str) -> dict[str, Any]:
    base = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "old"}, **copy.deepcopy(MINIMAL[kind])}
    return merged(base, read(piece))


def read(piece: str) -> dict[str, Any]:
    """As the server reads text: `on` is a word there, not a truth value."""
    (document,) = parse(piece, "page")
    assert isinstance(document, Document), document
    return document.content


def merged(base: Any, piece: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(piece, dict):
        return piece
    return base | {key: merged(base.get(key), value) for key, value in piece.items()}


def outcome_of(tree: dict[str, Any]) -> tuple[str, Parsed | None]:
    try:
        parsed = parse_document(tree, default_group="users")
    except Refused as refused:
        problems = refused.problems
    else:
        return ("warned" if parsed.warnings else "accepted"), parsed
    assert problems
    assert all(problem.message for problem in problems)
    assert any(problem.next_step for problem in problems)
    return "refused", None


def contains(whole: Any, part: Any) -> bool:
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and contains(whole[key], value) for key, value in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) == len(whole) and all(map(contains, whole, part))
    return bool(whole == part)


@pytest.mark.parametrize(("kind", "old", "outcome", "today"), rows())
def test_an_old_form_becomes_what_the_page_says(kind: str, old: str, outcome: str, today: str) -> None:
    tree = document(kind, old)
    found, parsed = outcome_of(tree)
    assert found == outcome
    if parsed is None:
        return
    result = json_format.MessageToDict(parsed.message)
    shown = re.search(r"`((?:apiVersion|kind|metadata|spec): .+)`", today)
    if shown:
        assert contains(result, read(shown[1])), result
    elif "as without the field" in today:
        plain = parse_document(document(kind, "{}"), default_group="users")
        assert parsed.message == plain.message
    assert parse_document(result, default_group="other").message == parsed.message


def test_the_page_has_rows_for_every_section_and_outcome() -> None:
    found = rows()
    assert len(found) > 100
    assert {kind for kind, *_ in found} == set(MINIMAL)
    assert {outcome for _, _, outcome, _ in found} == OUTCOMES
    tables = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert len(tables) == len(found), "a row of the page is not of the form that the test reads"


@pytest.mark.parametrize("word", OLD_WORDS)
def test_the_page_names_every_word_of_the_old_versions(word: str) -> None:
    pieces = " ".join(old for _, old, _, _ in rows()) + " ".join(f" {kind} " for kind in MINIMAL)
    assert re.search(rf"(?<![\w.]){re.escape(word)}(?![\w])", pieces)
