"""Files, directories and standard input: what cannot be read is said, and does not stop the others."""

import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pwm.cli.sources import read_documents
from pwm.manifest.cutting import ManifestError
from pwm.manifest.documents import Document


def _read(*names: str, recursive: bool = False) -> list[object]:
    entries = read_documents([str(name) for name in names], recursive=recursive)
    return [e.content if isinstance(e, Document) else f"{e.place}: {e.message}" for e in entries]


def test_a_directory_gives_its_files_in_order_and_deeper_ones_on_demand(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.yml", "a.yaml", "c.json", "notes.txt", "sub/d.yaml"):
        (tmp_path / name).write_text(f'{{"f": "{name}"}}')
    assert _read(str(tmp_path)) == [{"f": "a.yaml"}, {"f": "b.yml"}, {"f": "c.json"}]
    assert {"f": "sub/d.yaml"} in _read(str(tmp_path), recursive=True)


def test_what_cannot_be_read_does_not_stop_the_others(tmp_path: Path) -> None:
    good = tmp_path / "good.yaml"
    good.write_text("a: 1\n")
    binary = tmp_path / "image.png"
    binary.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("a: 1\nb: käse\n".encode("latin-1"))
    wide = tmp_path / "wide.yaml"
    wide.write_bytes("a: 1\n".encode("utf-16"))
    empty = tmp_path / "empty"
    empty.mkdir()
    found = _read(str(tmp_path / "none.yaml"), str(binary), str(latin), str(wide), str(empty), str(good))
    assert found == [
        f"{tmp_path}/none.yaml: there is no such file",
        f"{binary}: this is a binary file, not YAML",
        f"{latin}:2:5: the byte 0xe4 is not UTF-8 text",
        f"{wide}:1:1: this is UTF-16 text, not UTF-8",
        f"{empty}: no .yaml, .yml, .json files in this directory",
        {"a": 1},
    ]


def test_standard_input_is_a_file_called_minus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"\xef\xbb\xbfa: 1\n---\n b: @\n")))
    assert _read("-") == [{"a": 1}, "stdin:3:5: not valid YAML: no value begins with this sign"]


@given(st.binary(max_size=200))
def test_no_bytes_do_harm(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "any.yaml"
    path.write_bytes(data)
    for entry in read_documents([str(path)]):
        assert isinstance(entry, ManifestError) or isinstance(entry.content, dict)
