"""Text cut into documents, before any of it is read.

Each document is then read alone (`reading.py`), so that one with a mistake does not stop the others. Cutting is a
search for the lines `---` and `...` and needs no YAML: where such a line begins, YAML knows no other meaning for it.

Text that is cut at any of these lines gives, piece by piece, the same documents as the whole does; so a client may
cut a long text into several requests, and the server cuts again what it gets.
"""

from __future__ import annotations

from itertools import pairwise

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# What the server takes as one document; more would not fit its events.
DOCUMENT_LIMIT_BYTES = 48 * 1024

_BLANKS = " \t\r"


class Place:
    """A position in a source, counted from 1, as editors do; line 0: the source as such."""

    __slots__ = ("column", "line", "source")

    def __init__(self, source: str, line: int = 0, column: int = 0) -> None:
        self.source = source
        self.line = line
        self.column = column

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


class ManifestError(Exception):
    """What is wrong with a source or one of its documents, where, and what to do."""

    def __init__(self, message: str, place: Place, *, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.place = place
        self.next_step = next_step


class Chunk:
    """The text of one document; `first_line` is its first line in the source, from 1."""

    __slots__ = ("first_line", "source", "text")

    def __init__(self, source: str, text: str, first_line: int) -> None:
        self.source = source
        self.text = text
        self.first_line = first_line

    def place(self, line: int, column: int) -> Place:
        """A position in this text, counted from 0, as a place in the source."""
        return Place(self.source, self.first_line + line, column + 1)

    @property
    def start(self) -> Place:
        """The first line that says something."""
        return self.place(_first_words(self.text) or 0, 0)


def cut(text: str, source: str = "", *, first_line: int = 1) -> Iterator[Chunk | ManifestError]:
    """The documents of a text; pieces with nothing but comments are left out, and too large ones are errors."""
    line = first_line
    for start, end in pairwise((0, *_breaks(text), len(text))):
        piece = text[start:end]
        if piece.startswith("..."):
            # What follows the end of a document is the next one, without a marker of its own.
            piece = "   " + piece[3:]
        chunk = Chunk(source, piece, line)
        if len(piece) > DOCUMENT_LIMIT_BYTES or len(piece.encode()) > DOCUMENT_LIMIT_BYTES:
            yield _too_large(chunk)
        elif _first_words(piece) is not None:
            yield chunk
        line += text.count("\n", start, end)


def most_documents(text: str) -> int:
    """No text has more documents than this, but for lists of them; far quicker to know than to cut it."""
    return 1 + text.count("\n---") + text.count("\n...")


def _too_large(chunk: Chunk) -> ManifestError:
    size, limit = len(chunk.text.encode()) / 1024, DOCUMENT_LIMIT_BYTES // 1024
    return ManifestError(
        f"this document has {size:.0f} KiB, and {limit} KiB is the most",
        chunk.start,
        next_step="Put data into a volume or a Secret, or split the document with ---.",
    )


def _breaks(text: str) -> list[int]:
    """Where the lines `---` and `...` begin: a document's start may have text behind it, its end only a comment."""
    starts = [at for at in _lines_with(text, "---") if text[at + 3 : at + 4] in ("", " ", "\t", "\r", "\n")]
    ends = [at for at in _lines_with(text, "...") if _is_comment(_line(text, at)[3:])]
    return sorted(starts + ends)


def _lines_with(text: str, marker: str) -> Iterator[int]:
    """Where the lines that begin with the marker begin."""
    if text.startswith(marker):
        yield 0
    at = text.find("\n" + marker)
    while at >= 0:
        yield at + 1
        at = text.find("\n" + marker, at + 1)


def _line(text: str, start: int) -> str:
    end = text.find("\n", start)
    return text[start:] if end < 0 else text[start:end]


def _is_comment(words: str) -> bool:
    words = words.strip(_BLANKS)
    return not words or words.startswith("#")


def _first_words(text: str) -> int | None:
    """Number, from 0, of the first line that is neither comment, directive nor marker; None when there is none.

    Nobody asks about what comes after a whole document's worth of comments.
    """
    number = start = 0
    while start < min(len(text), DOCUMENT_LIMIT_BYTES):
        line = _line(text, start)
        words = line.strip(_BLANKS)
        if words[:3] in ("---", "...") and words[3:4] in ("", " ", "\t"):
            words = words[3:]
        if not _is_comment(words) and not words.startswith("%"):
            return number
        number += 1
        start += len(line) + 1
    return None
