"""The documents of a text, and where in it each of their values stands.

Whoever checks a document names what is wrong by path (`spec.volumes[0].name`); `Positions` turns paths into line and
column. They are found by reading the document again, only when something is wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pwm.manifest.cutting import Chunk, ManifestError, Place, cut
from pwm.manifest.reading import read_value


class Document:
    """One document: its content, the text it came from, and where it begins."""

    __slots__ = ("chunk", "content", "prefix", "start")

    def __init__(self, content: dict[str, Any], chunk: Chunk, start: Place, prefix: str = "") -> None:
        self.content = content
        self.chunk = chunk
        self.start = start
        # A list of documents is one text; paths of its documents begin with their index there.
        self.prefix = prefix

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

    def place(self, path: str) -> Place:
        """Where the value at this path stands. For many paths of one chunk, `Positions` is the cheaper way."""
        return Positions(self.chunk).find(path, below=self.prefix)


def parse(text: str, source: str = "") -> Iterator[Document | ManifestError]:
    """The documents of one text; an error takes the place of each that cannot be read."""
    return read_all(cut(text, source))


def read_all(chunks: Iterable[Chunk | ManifestError]) -> Iterator[Document | ManifestError]:
    """The documents of chunks, and the errors between them."""
    for chunk in chunks:
        if isinstance(chunk, ManifestError):
            yield chunk
            continue
        try:
            yield from read(chunk)
        except ManifestError as error:
            yield error


def read(chunk: Chunk) -> list[Document]:
    """The document of a chunk, or the documents of a list of them; none where it says only `null`."""
    starts: list[Place] = []
    content = read_value(chunk, starts=starts)
    if isinstance(content, dict):
        return [Document(content, chunk, starts[0])]
    if isinstance(content, list) and content and all(isinstance(item, dict) for item in content):
        items = zip(content, starts[1:], strict=True)
        return [Document(item, chunk, start, f"[{index}]") for index, (item, start) in enumerate(items)]
    if content is None:
        return []
    what = "a list" if isinstance(content, list) else "plain text"
    step = "A document begins with apiVersion, kind and metadata."
    raise ManifestError(f"a document is a mapping of fields, and this is {what}", chunk.start, next_step=step)


class Positions:
    """Where the values of a chunk stand. Making one reads the chunk."""

    def __init__(self, chunk: Chunk) -> None:
        self._chunk = chunk
        self._found: dict[str, tuple[int, int]] = {}
        read_value(chunk, positions=self._found)

    def find(self, path: str, *, below: str = "") -> Place:
        """Where the value at this path stands; where it should, if it is not there: its nearest parent."""
        path = below + path if path.startswith("[") or not path else f"{below}.{path}".lstrip(".")
        while path not in self._found and path:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self._chunk.place(*self._found.get(path, (0, 0)))
