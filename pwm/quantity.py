"""Quantities as people write them: `32GiB`, `500m`, `24h`.

Specs keep the text that the user wrote, so that what `get -o yaml` prints can be applied again; whoever
needs the number reads it here. Units: bytes, thousandths of a core, milliseconds; always integers.
"""

import re
from functools import lru_cache

KIB = 1024
_BYTE_UNITS = {
    "": 1, "B": 1,
    "K": 1000, "KB": 1000, "M": 1000**2, "MB": 1000**2, "G": 1000**3, "GB": 1000**3, "T": 1000**4, "TB": 1000**4,
    "KI": KIB, "KIB": KIB, "MI": KIB**2, "MIB": KIB**2, "GI": KIB**3, "GIB": KIB**3, "TI": KIB**4, "TIB": KIB**4,
}  # fmt: skip
_TIME_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}

_BYTES = re.compile(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]{0,3})\s*")
_CPU = re.compile(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*(m?)\s*")
_DURATION = re.compile(r"(?:\d{1,12}(?:\.\d{1,3})?(?:ms|s|m|h|d|w))+")
_DURATION_PART = re.compile(r"(\d{1,12}(?:\.\d{1,3})?)(ms|s|m|h|d|w)")


class QuantityError(ValueError):
    """A quantity that cannot be read; the message is a sentence for the user."""


@lru_cache(maxsize=4096)
def parse_bytes(text: str) -> int:
    """Bytes of `32GiB`, `1.5G`, `1048576`; powers of 1024 with an `i`, of 1000 without."""
    match = _BYTES.fullmatch(text)
    if not match or match[2].upper() not in _BYTE_UNITS:
        raise QuantityError(f"{text!r} is not a size; write a number and a unit, such as 512MiB or 32GiB")
    return (
        int(float(match[1]) * _BYTE_UNITS[match[2].upper()])
        if "." in match[1]
        else (int(match[1]) * _BYTE_UNITS[match[2].upper()])
    )


@lru_cache(maxsize=4096)
def parse_cpu(text: str) -> int:
    """Thousandths of a core of `2`, `0.5`, `500m`."""
    match = _CPU.fullmatch(text)
    if not match or (match[2] and "." in match[1]):
        raise QuantityError(f"{text!r} is not a number of CPUs; write cores, such as 8 or 0.5, or 500m")
    return int(match[1]) if match[2] else round(float(match[1]) * 1000)


@lru_cache(maxsize=4096)
def parse_duration(text: str) -> int:
    """Milliseconds of `30s`, `24h`, `1h30m`, `250ms`, `7d`."""
    if not _DURATION.fullmatch(text.strip()):
        raise QuantityError(f"{text!r} is not a duration; write a number and a unit, such as 30s, 15m or 24h")
    return round(sum(float(n) * _TIME_UNITS_MS[u] for n, u in _DURATION_PART.findall(text)))


def format_bytes(value: int) -> str:
    """Shortest exact or one-decimal form with binary units: 34359738368 -> 32GiB."""
    amount, unit = float(value), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(amount) < KIB:
            break
        amount, unit = amount / KIB, larger
    return f"{amount:.0f}{unit}" if amount == int(amount) or unit == "B" else f"{amount:.1f}{unit}"


def format_cpu(millis: int) -> str:
    """`2`, `0.5`: cores without needless zeros."""
    return f"{millis / 1000:.3f}".rstrip("0").rstrip(".")


def format_duration(milliseconds: int) -> str:
    """Two largest units, as in a column of ages: 45s, 3m12s, 5h7m, 2d4h."""
    seconds = max(0, milliseconds // 1000)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60}s" if seconds < 600 and seconds % 60 else f"{seconds // 60}m"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60}m" if seconds % 3600 >= 60 else f"{seconds // 3600}h"
    return f"{seconds // 86400}d{seconds % 86400 // 3600}h" if seconds % 86400 >= 3600 else f"{seconds // 86400}d"


def format_credits(micro: int) -> str:
    """Credits of millionths: 12.5, 0.000833; rounded down to hundredths from 1 on."""
    whole, part = divmod(micro, 1_000_000)
    text = f"{whole}.{part:06d}" if not whole else f"{whole}.{part // 10_000:02d}"
    return text.rstrip("0").rstrip(".")
