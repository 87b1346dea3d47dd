"""Manifests: files of YAML documents, and where in them each value stands.

A source (file, directory, stdin) is cut into documents first and each is read alone (`yamlreader.py`), so
that one with a mistake does not stop the others.

The server names what it refuses by path (`spec.volumes[0].name`); `Document.place` turns a path into
file:line:column. Positions are found by reading the document again, only when something is wrong with it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from pwm.cli.yamlreader import DOCUMENT_LIMIT_BYTES, Chunk, ManifestError, Place, read_value

# 10,000 documents of common size are 5 MB; what is larger is not a manifest but a mistake.
SOURCE_LIMIT_BYTES = 64 * 1024 * 1024
SUFFIXES = (".yaml", ".yml", ".json")

_DOCUMENT_BREAK = re.compile(r"^(?:---(?=[ \t\r\n]|\Z)|\.\.\.[ \t]*(?:#.*)?$)", re.MULTILINE)
_BLANK = re.compile(r"(?:[ \t\r]*(?:#.*|%.*|---[ \t]*(?:#.*)?|\.\.\.[ \t]*(?:#.*)?)?(?:\n|\Z))*")


class Document:
    """One document: its content, and the text it came from."""

    __slots__ = ("_chunk", "_positions", "_prefix", "content")

    def __init__(self, content: dict[str, Any], chunk: Chunk, prefix: str = "") -> None:
        self.content = content
        self._chunk = chunk
        # A list of documents is one text; paths of its documents begin with their index there.
        self._prefix = prefix
        self._positions: dict[str, tuple[int, int]] | None = None

    @property
    def kind(self) -> str:
        return str(self.content.get("kind") or "")

    @property
    def metadata(self) -> dict[str, Any]:
        metadata = self.content.get("metadata")
        return metadata if isinstance(metadata, dict) else {}

    @property
    def name(self) -> str:
        return str(self.metadata.get("name") or "")

    @property
    def group(self) -> str:
        return str(self.metadata.get("group") or self.metadata.get("workspace") or "")

    @property
    def size(self) -> int:
        """Characters of the text it came from."""
        return len(self._chunk.text)

    @property
    def label(self) -> str:
        """How to call it in a message."""
        if self.kind and self.name:
            return f"{self.kind}/{self.name}"
        return f"{self.kind or 'document'} ({self.place('')})"

    def place(self, path: str) -> Place:
        """Where the value at this path stands; where it should, if it is not there: its nearest parent."""
        if self._positions is None:
            self._positions = {}
            read_value(self._chunk, positions=self._positions)
        path = self._prefix + path if path.startswith("[") or not path else f"{self._prefix}.{path}".lstrip(".")
        while path not in self._positions and path:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        line, column = self._positions.get(path, (0, 0))
        return Place(self._chunk.source, self._chunk.first_line + line, column + 1)


def read_documents(names: Iterable[str], *, recursive: bool = False) -> Iterator[Document | ManifestError]:
    """All documents of files, directories and `-` (stdin), in order, and the errors between them."""
    for name in names:
        try:
            paths = [name] if name == "-" else _files(name, recursive=recursive)
        except ManifestError as error:
            yield error
            continue
        for path in paths:
            try:
                source, text = _text_of(path)
            except ManifestError as error:
                yield error
                continue
            yield from parse(text, source)


def parse(text: str, source: str) -> Iterator[Document | ManifestError]:
    """The documents of one text; an error takes the place of each that cannot be read."""
    for chunk in _chunks(text, source):
        try:
            yield from _documents(chunk)
        except ManifestError as error:
            yield error


def _files(name: str, *, recursive: bool) -> list[str]:
    if not os.path.isdir(name):  # noqa: PTH112  (pathlib takes 4 ms to import: only where it is needed)
        return [name]
    from pathlib import Path

    path = Path(name)
    found = path.rglob("*") if recursive else path.iterdir()
    files = sorted(str(file) for file in found if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        step = "" if recursive else "Use -R to look into its folders too."
        raise ManifestError(f"no {', '.join(SUFFIXES)} files in this directory", Place(str(path), 0, 0), next_step=step)
    return files


def _text_of(name: str) -> tuple[str, str]:
    source = "stdin" if name == "-" else name
    nowhere = Place(source, 0, 0)
    try:
        if name == "-":
            data = sys.stdin.buffer.read(SOURCE_LIMIT_BYTES + 1)
        else:
            with open(name, "rb") as file:  # noqa: PTH123
                data = file.read(SOURCE_LIMIT_BYTES + 1)
    except OSError as error:
        reason = {2: "there is no such file", 13: "you may not read this file"}.get(error.errno or 0, error.strerror)
        raise ManifestError(str(reason), nowhere, next_step="Check the name after -f.") from error
    if len(data) > SOURCE_LIMIT_BYTES:
        limit = f"{SOURCE_LIMIT_BYTES // 2**20} MiB"
        raise ManifestError(f"larger than {limit}", nowhere, next_step="Is this a manifest? Split it if it is.")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ManifestError("this is UTF-16 text, not UTF-8", Place(source, 1, 1), next_step="Save it as UTF-8.")
    if b"\0" in data:
        step = "PWM reads YAML or JSON text; is this the right file?"
        raise ManifestError("this is a binary file, not YAML", nowhere, next_step=step)
    try:
        return source, data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        place = Place(source, before.count(b"\n") + 1, len(before) - before.rfind(b"\n"))
        message = f"the byte 0x{data[error.start]:02x} is not UTF-8 text"
        raise ManifestError(message, place, next_step="Save the file as UTF-8.") from error


def _chunks(text: str, source: str) -> Iterator[Chunk]:
    """The text cut at `---` and `...`; pieces with nothing but comments are left out."""
    starts = [0, *(match.start() for match in _DOCUMENT_BREAK.finditer(text)), len(text)]
    line = 1
    for start, end in pairwise(starts):
        piece = text[start:end]
        if piece.startswith("..."):
            # What follows the end of a document is the next one, without a marker of its own.
            piece = "   " + piece[3:]
        if not _BLANK.fullmatch(piece):
            yield Chunk(source, piece, line)
        line += text.count("\n", start, end)


def _documents(chunk: Chunk) -> Iterator[Document]:
    size = len(chunk.text.encode())
    if size > DOCUMENT_LIMIT_BYTES:
        raise ManifestError(
            f"this document has {size / 1024:.0f} KiB, and {DOCUMENT_LIMIT_BYTES // 1024} KiB is the most",
            chunk.start,
            next_step="Put data into a volume or a Secret, or split the document with ---.",
        )
    content = read_value(chunk)
    if isinstance(content, list) and content and all(isinstance(item, dict) for item in content):
        for index, item in enumerate(content):
            yield Document(item, chunk, f"[{index}]")
    elif isinstance(content, dict):
        yield Document(content, chunk)
    elif content is not None:
        what = "a list" if isinstance(content, list) else "plain text"
        step = "A document begins with apiVersion, kind and metadata."
        raise ManifestError(f"a document is a mapping of fields, and this is {what}", chunk.start, next_step=step)
