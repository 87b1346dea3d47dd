"""Whole files of the old versions mean the same as their counterparts in today's form (`*.today.yaml`)."""

from pathlib import Path

import pytest

from pwm.cli.sources import read_documents
from pwm.controlplane.core.manifest import Parsed, parse_document
from pwm.manifest.documents import Document

FILES = Path(__file__).parents[2] / "data" / "old_manifests"
OLD = sorted(path for path in FILES.glob("*.yaml") if ".today" not in path.suffixes)


def parsed(path: Path) -> list[Parsed]:
    documents = list(read_documents([str(path)]))
    assert documents
    assert all(isinstance(document, Document) for document in documents)
    return [parse_document(d.content, default_group="users") for d in documents if isinstance(d, Document)]


def test_there_are_files_of_both_old_versions() -> None:
    assert {path.name.partition("-")[0].partition(".")[0] for path in OLD} == {"pwm1", "dora"}


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.name)
def test_an_old_file_reads_as_its_counterpart_of_today(path: Path) -> None:
    today = parsed(path.with_suffix(".today.yaml"))
    old = parsed(path)
    assert [p.message for p in old] == [p.message for p in today]


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.name)
def test_files_of_today_are_warned_only_of_what_is_not_done_yet(path: Path) -> None:
    for result in parsed(path.with_suffix(".today.yaml")):
        assert all("does not act on it yet" in warning.message for warning in result.warnings)
