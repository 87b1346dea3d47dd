"""Where manifests come from: files, directories, standard input.

What is wrong with a source as such (it is not there, it is no text) is said here; what is wrong with a document by
whoever reads it. `pwm apply` sends documents as they are written, so it only cuts sources into them; what is done with
documents on this side (`read_documents`) costs the import of a YAML parser.
"""

from __future__ import annotations

import os
import sys

from pwm.manifest.cutting import ManifestError, Place, cut

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pwm.manifest.cutting import Chunk
    from pwm.manifest.documents import Document

# 10,000 documents of common size are 5 MB; what is larger is not a manifest but a mistake.
SOURCE_LIMIT_BYTES = 64 * 1024 * 1024
SUFFIXES = (".yaml", ".yml", ".json")


def cut_sources(names: Iterable[str], *, recursive: bool = False) -> Iterator[Chunk | ManifestError]:
    """The unread documents of files, directories and `-` (stdin), in order, and the errors between them."""
    for name in names:
        try:
            paths = _files(name, recursive=recursive)
        except ManifestError as error:
            yield error
            continue
        for path in paths:
            try:
                source, text = _text_of(path)
            except ManifestError as error:
                yield error
                continue
            yield from cut(text, source)


def read_documents(names: Iterable[str], *, recursive: bool = False) -> Iterator[Document | ManifestError]:
    """The documents of files, directories and `-` (stdin), in order, and the errors between them."""
    from pwm.manifest.documents import read_all

    return read_all(cut_sources(names, recursive=recursive))


def _files(name: str, *, recursive: bool) -> list[str]:
    if not os.path.isdir(name):  # noqa: PTH112  (pathlib takes 4 ms to import: only where it is needed)
        return [name]
    from pathlib import Path

    path = Path(name)
    found = path.rglob("*") if recursive else path.iterdir()
    files = sorted(str(file) for file in found if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        step = "" if recursive else "Use -R to look into its folders too."
        raise ManifestError(f"no {', '.join(SUFFIXES)} files in this directory", Place(str(path)), next_step=step)
    return files


def _text_of(name: str) -> tuple[str, str]:
    source = "stdin" if name == "-" else name
    nowhere = Place(source)
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
    data = data.removeprefix(b"\xef\xbb\xbf")  # which some editors put before UTF-8
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ManifestError("this is UTF-16 text, not UTF-8", Place(source, 1, 1), next_step="Save it as UTF-8.")
    if b"\0" in data:
        step = "PWM reads YAML or JSON text; is this the right file?"
        raise ManifestError("this is a binary file, not YAML", nowhere, next_step=step)
    try:
        return source, data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start]
        place = Place(source, before.count(b"\n") + 1, len(before) - before.rfind(b"\n"))
        message = f"the byte 0x{data[error.start]:02x} is not UTF-8 text"
        raise ManifestError(message, place, next_step="Save the file as UTF-8.") from error
