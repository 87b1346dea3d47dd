"""Readers of single fields: a value of a document in, the value of the message out.

A reader gets the item and the findings; what it cannot read it reports, with a sentence and what to write
instead, and returns None. Readers are made by the functions here with their limits as arguments, and
`schema` says which field has which reader.

Text of quantities is kept as the user wrote it; only bare numbers, whose unit was a convention of older
versions, get their unit written out.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from google.protobuf.descriptor import EnumDescriptor

from pwm import quantity
from pwm.controlplane.core.document import MAX_EXACT_INT, Findings, Item, nearest, shown

Reader: TypeAlias = Callable[[Item, Findings], Any]

# Names end up in Docker names (pwm.GROUP.NAME.REPLICA.ATTEMPT) and in keys: 63 characters as in DNS.
MAX_NAME_CHARS = 63
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
GROUP_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")
# ResourceCredits are named after products: "NVIDIA GeForce RTX 2080 Ti".
PRODUCT_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9 _.()+@-]{0,125}[A-Za-z0-9)])?")
HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")
LABEL_KEY = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_./-]{0,125}[A-Za-z0-9])?")
# registry:port/path/name:tag@digest, as Docker reads it.
IMAGE = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?/)?"
    r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@[a-z0-9]+:[0-9a-f]{32,128})?"
)
REGISTRY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?")
REPOSITORY = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*")
MAX_PATH_CHARS = 1024
MAX_INT32 = 2**31 - 1

# Words that mean "any" in selectors and permissions.
ANY = frozenset({"pwm.all", "all"})
# Words that mean "none" in selectors.
NONE = "pwm.zero"
# Group of the nodes, storages and data sets that are shared by all.
SHARED_GROUP = "pwm.resource"


def is_any(text: str) -> bool:
    return text.lower() in ANY


def reserved(name: str) -> bool:
    """Names that mean something to PWM itself."""
    lowered = name.lower()
    return lowered.startswith("pwm.") or lowered in ANY


# ---- text


def scalar_text(item: Item, findings: Findings) -> str | None:
    """Text, or a number or a truth value as its text."""
    value = item.value
    if isinstance(value, str):
        if "\0" in value:
            findings.refuse(item.path, f"{item.path} has a NUL character in it", "remove it")
            return None
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) <= MAX_EXACT_INT:
        return str(value)
    if isinstance(value, float) and abs(value) < MAX_EXACT_INT:
        return repr(value)
    if isinstance(value, int | float):
        findings.refuse(item.path, f"{item.path} is a number that would lose digits", "write it in quotes")
        return None
    findings.refuse(item.path, f"{item.path} must be text, not {shown(value)}", "write one value")
    return None


def text(item: Item, findings: Findings) -> str | None:
    """Text only: a number here was meant as something else, or lost its zeros on the way."""
    if isinstance(item.value, bool | int | float):
        findings.refuse(item.path, f"{item.path} must be text, not {shown(item.value)}", "write it in quotes")
        return None
    return scalar_text(item, findings)


def matching(pattern: re.Pattern[str], *, rule: str, next_step: str = "") -> Reader:
    def read(item: Item, findings: Findings) -> str | None:
        value = text(item, findings)
        if value and not pattern.fullmatch(value):
            findings.refuse(item.path, f"{item.path} is {shown(value)}, but {rule}", next_step)
            return None
        return value

    return read


name = matching(
    NAME,
    rule="a name is made of letters, digits, '-', '_' and '.', starts and ends with a letter or digit, "
    f"and has at most {MAX_NAME_CHARS} characters",
    next_step="choose a name such as train-1",
)
image = matching(
    IMAGE, rule="that is no image reference", next_step="write repository/name:tag in lower case, such as ubuntu:24.04"
)
registry = matching(REGISTRY, rule="a registry is a host name", next_step="write it as registry.example.org:5000")
repository = matching(REPOSITORY, rule="a repository is a path in lower case, such as team/project")
host_name = matching(HOST_NAME, rule="a host name is made of letters, digits and '-', with '.' between its parts")


def group_name(item: Item, findings: Findings) -> str | None:
    value = text(item, findings)
    if not value or value == SHARED_GROUP or GROUP_NAME.fullmatch(value):
        return value
    rule = "is made of letters, digits, '-' and '_', starts and ends with a letter or digit"
    said = f"{item.path} is {shown(value)}, but the name of a group {rule}"
    findings.refuse(item.path, said, "choose a name such as team-1")
    return None


def optional_name(item: Item, findings: Findings) -> str | None:
    """A name, or a word for any: nothing then."""
    value = item.text
    return "" if value is not None and is_any(value) else name(item, findings)


def word(*choices: str, synonyms: Mapping[str, str] | None = None) -> Reader:
    """One of a few words, in any case."""
    known = {choice.lower(): choice for choice in choices} | dict(synonyms or {})

    def read(item: Item, findings: Findings) -> str | None:
        value = text(item, findings)
        if value is None or value == "":
            return value
        found = known.get(value.lower())
        if found is None:
            findings.refuse(item.path, f"{item.path} is {shown(value)}", f"write {_either(choices)}")
        return found

    return read


def enum_word(enum: EnumDescriptor) -> Reader:
    """A value of an enum, in any case, with or without '-' and '_'."""
    values = {v.name.replace("_", "").lower(): v.number for v in enum.values if v.number}
    choices = [v.name for v in enum.values if v.number]

    def read(item: Item, findings: Findings) -> int | None:
        value = text(item, findings)
        if value is None or value == "":
            return None
        number = values.get(value.replace("_", "").replace("-", "").lower())
        if number is None:
            near = nearest(value, choices)
            step = f"did you mean {near}?" if near else f"write {_either(choices)}"
            findings.refuse(item.path, f"{item.path} is {shown(value)}", step)
        return number

    return read


def absolute_path(item: Item, findings: Findings) -> str | None:
    value = text(item, findings)
    if not value:
        return value
    if not value.startswith("/") or ".." in value.split("/") or len(value) > MAX_PATH_CHARS or not value.isprintable():
        findings.refuse(item.path, f"{item.path} is {shown(value)}, but must be a path from / on without '..'")
        return None
    return value


def relative_path(item: Item, findings: Findings) -> str | None:
    """A path below a volume's root: nothing in it may lead out."""
    value = text(item, findings)
    if not value:
        return value
    if value.startswith("/") or ".." in value.split("/") or len(value) > MAX_PATH_CHARS or not value.isprintable():
        findings.refuse(
            item.path, f"{item.path} is {shown(value)}, but must be a path inside the volume, without '/' first or '..'"
        )
        return None
    return value


# ---- numbers and quantities


def whole(minimum: int, maximum: int, *, why: str = "") -> Reader:
    """A whole number; its text is taken too, because JSON writes large ones as text."""

    def read(item: Item, findings: Findings) -> int | None:
        value = item.value
        if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            findings.refuse(
                item.path, f"{item.path} must be a whole number, not {shown(value)}", f"write {max(minimum, 1)}"
            )
            return None
        if value < minimum:
            wanted = "must not be negative" if minimum == 0 else f"must be at least {minimum}"
            findings.refuse(
                item.path, f"{item.path} is {shown_number(value)}, but {wanted}", f"write {minimum} or more"
            )
            return None
        if value > maximum:
            said = f"{item.path} is {shown_number(value)}, but may be at most {maximum:,}"
            findings.refuse(item.path, said, why or f"write {maximum} or less")
            return None
        return value

    return read


def amount(item: Item, findings: Findings) -> float | None:
    """A number that is not negative."""
    value = item.value
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = item.value
    if isinstance(value, bool) or not isinstance(value, int | float):
        findings.refuse(item.path, f"{item.path} must be a number, not {shown(value)}", "write 0.5")
        return None
    if not 0 <= value <= MAX_EXACT_INT:
        findings.refuse(item.path, f"{item.path} is {shown_number(value)}, but must not be negative or huge")
        return None
    return float(value)


def size(*, bare_unit: str) -> Reader:
    """A number of bytes as text. A bare number, quoted or not, is in `bare_unit`."""

    def read(item: Item, findings: Findings) -> str | None:
        value = _number_text(item.value) if not isinstance(item.value, str) else item.value.strip()
        if value is None:
            findings.refuse(item.path, f"{item.path} must be a size, not {shown(item.value)}", "write it as 32GiB")
            return None
        if value == "":
            return ""
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
            value += bare_unit
        try:
            number = quantity.parse_bytes(value)
        except quantity.QuantityError as error:
            _refuse_quantity(item, findings, error)
            return None
        if not 0 < number <= MAX_EXACT_INT:
            findings.refuse(item.path, f"{item.path} is {shown(item.value)}, but must be between 1B and 8192TiB")
            return None
        return value

    return read


def cpu_count(item: Item, findings: Findings) -> str | None:
    """Cores as text: "8", "0.5" or "500m". Zero is no wish at all."""
    value = _number_text(item.value) if not isinstance(item.value, str) else item.value.strip()
    if value is None:
        findings.refuse(item.path, f"{item.path} must be a number of CPUs, not {shown(item.value)}", "write 8 or 500m")
        return None
    if value == "" or value.lower() == NONE or is_any(value):
        return ""
    try:
        millis = quantity.parse_cpu(value)
    except quantity.QuantityError as error:
        _refuse_quantity(item, findings, error)
        return None
    if millis > MAX_INT32:
        findings.refuse(item.path, f"{item.path} is {shown(value)}: no machine has that many CPUs")
        return None
    return value if millis else ""


def duration(minimum_ms: int, maximum_ms: int) -> Reader:
    def read(item: Item, findings: Findings) -> str | None:
        if isinstance(item.value, int | float) and not isinstance(item.value, bool):
            findings.refuse(item.path, f"{item.path} is {shown(item.value)}, without a unit", "write 30s, 15m or 24h")
            return None
        value = text(item, findings)
        if not value:
            return value
        try:
            milliseconds = quantity.parse_duration(value)
        except quantity.QuantityError as error:
            _refuse_quantity(item, findings, error)
            return None
        if not minimum_ms <= milliseconds <= maximum_ms:
            low, high = quantity.format_duration(minimum_ms), quantity.format_duration(maximum_ms)
            findings.refuse(item.path, f"{item.path} is {shown(value)}, but must be between {low} and {high}")
            return None
        return value

    return read


def flag(item: Item, findings: Findings) -> bool | None:
    if isinstance(item.value, bool):
        return item.value
    if isinstance(item.value, str) and item.value.lower() in ("true", "false"):
        return item.value.lower() == "true"
    findings.refuse(item.path, f"{item.path} must be true or false, not {shown(item.value)}", "write true or false")
    return None


# ---- lists and maps


def list_of(reader: Reader, *, at_most: int, single: bool = False) -> Reader:
    """A list; with `single` a lone value is a list of one, as older versions had it."""

    def read(item: Item, findings: Findings) -> list[Any] | None:
        entries = item.sequence
        if entries is None and single and item.mapping is None:
            entries = [item]
        if entries is None:
            findings.refuse(item.path, f"{item.path} must be a list, not {shown(item.value)}", "write [first, second]")
            return None
        if len(entries) > at_most:
            findings.refuse(item.path, f"{item.path} has {len(entries)} entries, but may have at most {at_most}")
            return None
        values = [reader(entry, findings) for entry in entries if not _missing(entry, findings)]
        return [value for value in values if value is not None]

    return read


def map_of(reader: Reader, *, key: Reader) -> Reader:
    """A mapping of text to what `reader` reads. An empty value counts as empty text."""

    def read(item: Item, findings: Findings) -> dict[str, Any] | None:
        entries = item.mapping
        if entries is None:
            findings.refuse(item.path, f"{item.path} must be a mapping, not {shown(item.value)}", "write {name: value}")
            return None
        values: dict[str, Any] = {}
        for word_, entry in entries.items():
            if key(Item(word_, entry.path), findings) is None:
                continue
            value = reader(Item("", entry.path) if entry.value is None else entry, findings)
            if value is not None:
                values[word_] = value
        return values

    return read


def any_or_names(item: Item, findings: Findings) -> list[str] | None:
    """Product names; a word for any is no restriction: an empty list."""
    values = list_of(text, at_most=64, single=True)(item, findings)
    if values is None:
        return None
    values = [value.strip() for value in values if value.strip()]
    return [] if any(is_any(value) for value in values) else values


def label_key(item: Item, findings: Findings) -> str | None:
    value = str(item.value)
    if not LABEL_KEY.fullmatch(value):
        findings.refuse(
            item.path,
            f"{shown(value)} is no name of a label",
            "use letters, digits, '-', '_', '.' and '/', at most 127",
        )
        return None
    return value


def own_label_key(item: Item, findings: Findings) -> str | None:
    """A label that users may set: `pwm.*` is how PWM finds its own things."""
    value = label_key(item, findings)
    if value is not None and value.lower().startswith("pwm."):
        said = f"label {shown(value)} is reserved: labels that begin with pwm. are PWM's own"
        findings.refuse(item.path, said, "choose another name")
        return None
    return value


# ---- shared parts


def shown_number(value: float) -> str:
    return f"{value:,}" if abs(value) <= MAX_EXACT_INT else "a huge number"


def _missing(entry: Item, findings: Findings) -> bool:
    if entry.value is None:
        findings.refuse(entry.path, f"{entry.path} is empty", "write a value or remove it")
    return entry.value is None


def _number_text(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MAX_EXACT_INT:
        return None
    return str(value) if isinstance(value, int) else f"{value:.6f}".rstrip("0").rstrip(".")


def _refuse_quantity(item: Item, findings: Findings, error: quantity.QuantityError) -> None:
    what, _, step = str(error).partition("; ")
    findings.refuse(item.path, f"{item.path}: {what}", step)


def _either(choices: Iterable[str]) -> str:
    words = list(choices)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
