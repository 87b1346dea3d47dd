"""Log records as Docker's `local` driver writes them, laid out by hand, apart from the code that reads them."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

START_NS = 1_770_000_000_000_000_000


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def framed(message: bytes) -> bytes:
    return struct.pack(">I", len(message)) + message + struct.pack(">I", len(message))


def line(text: bytes, *, stderr: bool = False, time_ns: int = START_NS) -> bytes:
    """A whole line; Docker leaves its newline out, and an empty line altogether."""
    message = b"\x0a\x06" + (b"stderr" if stderr else b"stdout") + b"\x10" + varint(time_ns)
    if text:
        message += b"\x1a" + varint(len(text)) + text
    return framed(message)


def part(text: bytes, *, last: bool = False, stderr: bool = False, time_ns: int = START_NS, ordinal: int = 1) -> bytes:
    """A piece of a long line; the last one ends it."""
    message = b"\x0a\x06" + (b"stderr" if stderr else b"stdout") + b"\x10" + varint(time_ns)
    if text:
        message += b"\x1a" + varint(len(text)) + text
    metadata = (b"\x08\x01" if last else b"") + b"\x12\x40" + b"0123456789abcdef" * 4 + b"\x18" + varint(ordinal)
    return framed(message + b"\x20\x01\x2a" + varint(len(metadata)) + metadata)


def rotate(path: Path, *, keep: int = 5) -> None:
    """Renames as the engine does: PATH → PATH.1 → …, the oldest is deleted."""
    for _ in rotating(path, keep=keep):
        pass


def rotating(path: Path, *, keep: int = 5) -> Iterator[None]:
    """The same, stopping after each step but the last."""
    path.with_name(f"{path.name}.{keep - 1}").unlink(missing_ok=True)
    for number in range(keep - 1, 0, -1):
        newer = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
        if newer.exists():
            newer.rename(path.with_name(f"{path.name}.{number}"))
            yield
    path.touch()


def appender(path: Path) -> Callable[[bytes], None]:
    def append(data: bytes) -> None:
        with path.open("ab") as file:
            file.write(data)

    return append
