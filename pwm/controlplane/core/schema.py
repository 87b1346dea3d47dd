"""From a document's tree to a message, guided by the message's own descriptor.

The proto files say which fields there are; this module adds what they cannot say: which text is a size,
which number has which limits. Fields that are not named in `_READERS` are read by their type. Nothing is
dropped in silence: a field that the message does not have is refused, with the nearest one that it has.

A part that ends up empty (`gpu: {}`) is left unset, so that the same meaning has one form only; what is
written back by `get` reads as the very same message.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from pwm.controlplane.core import fields, targets
from pwm.controlplane.core.document import Findings, Item, shown, suggestion
from pwm.controlplane.core.fields import Reader
from pwm.controlplane.core.notices import KINDS

# An array of 10,000 replicas is one commit and one list; beyond it, split the work.
MAX_REPLICAS = 10_000
MAX_GPUS_PER_REPLICA = 1_024
MAX_ATTEMPTS = 1_000
MAX_VOLUMES = 64
MAX_SECRETS = 64
MAX_ENTRIES = 1_024
MAX_ADDRESSES = 16
MAX_PRIORITY = 1_000
MAX_PORT = 65_535
SECOND_MS = 1_000
HOUR_MS = 3_600_000
YEAR_MS = 366 * 24 * HOUR_MS


def _priority(item: Item, findings: Findings) -> str | None:
    """low, normal, high, or a whole number as text."""
    if isinstance(item.value, str) and item.value.lower() in ("", "low", "normal", "high"):
        return item.value.lower()
    if isinstance(item.value, str) and not item.value.lstrip("-").isdecimal():
        step = "write low, normal or high, or a whole number"
        findings.refuse(item.path, f"{item.path} is {shown(item.value)}, which is no priority", step)
        return None
    number: int | None = fields.whole(-MAX_PRIORITY, MAX_PRIORITY)(item, findings)
    return None if number is None else str(number)


def _max_replicas() -> Reader:
    return fields.whole(0, MAX_REPLICAS, why="split the work into several workloads")


def _address(item: Item, findings: Findings) -> str | None:
    """Where a notice goes. What is wrong is said without the address: there may be a token in it."""
    address = fields.text(item, findings)
    said, step = targets.wrong(address) if address else ("", "")
    if said:
        findings.refuse(item.path, f"{item.path} {said}", step)
        return None
    return address


_GIBIBYTES = fields.size(bare_unit="GiB")
_WORDS = fields.list_of(fields.scalar_text, at_most=MAX_ENTRIES)
_NAMES = fields.list_of(fields.text, at_most=MAX_ENTRIES, single=True)
_POLICY = fields.word("rw", "readonly", synonyms={"ro": "readonly", "read-only": "readonly", "readwrite": "rw"})
_OWN_LABELS = fields.map_of(fields.scalar_text, key=fields.own_label_key)
_LABELS = fields.map_of(fields.scalar_text, key=fields.label_key)
_SECONDS_TO_HOUR = fields.duration(SECOND_MS, HOUR_MS)

# (message, field) -> how it is read, where the type alone does not say.
_READERS: dict[tuple[str, str], Reader] = {
    ("Metadata", "labels"): _OWN_LABELS,
    ("Metadata", "group"): fields.group_name,
    ("WorkloadSpec", "priority"): _priority,
    ("Replica", "count"): _max_replicas(),
    ("NodeSelector", "name"): fields.optional_name,
    ("Selectors", "label"): _LABELS,
    ("GPUSelector", "product_name"): fields.any_or_names,
    ("GPUSelector", "count"): fields.whole(0, MAX_GPUS_PER_REPLICA),
    ("GPUSelector", "memory"): _GIBIBYTES,
    ("CPUSelector", "product_name"): fields.any_or_names,
    ("CPUSelector", "count"): fields.cpu_count,
    ("Image", "image"): fields.image,
    ("Image", "registry"): fields.registry,
    ("Image", "repository"): fields.repository,
    ("Config", "cmd"): _WORDS,
    ("Config", "entrypoint"): _WORDS,
    ("Config", "working_dir"): fields.absolute_path,
    ("Config", "memory"): _GIBIBYTES,
    ("Config", "shm_size"): fields.size(bare_unit="B"),
    ("Config", "max_attempts"): fields.whole(0, MAX_ATTEMPTS),
    ("Config", "time_limit"): fields.duration(SECOND_MS, YEAR_MS),
    ("Config", "stop_grace"): _SECONDS_TO_HOUR,
    ("Config", "labels"): _OWN_LABELS,
    ("Config", "hostname"): fields.host_name,
    ("SecretKey", "secret"): fields.name,
    ("SecretKey", "group"): fields.group_name,
    ("SecretRef", "name"): fields.name,
    ("SecretRef", "group"): fields.group_name,
    ("SecretFiles", "name"): fields.name,
    ("SecretFiles", "group"): fields.group_name,
    ("SecretFiles", "target"): fields.absolute_path,
    ("Port", "port"): fields.whole(1, MAX_PORT),
    ("Port", "name"): fields.name,
    ("Port", "protocol"): fields.word("tcp", "udp"),
    ("RunAs", "uid"): fields.whole(0, fields.MAX_INT32),
    ("RunAs", "gid"): fields.whole(0, fields.MAX_INT32),
    ("Health", "cmd"): _WORDS,
    ("Health", "interval"): _SECONDS_TO_HOUR,
    ("Health", "timeout"): _SECONDS_TO_HOUR,
    ("Health", "retries"): fields.whole(0, 100),
    ("VolumeMount", "group"): fields.group_name,
    ("VolumeMount", "storage"): fields.optional_name,
    ("VolumeMount", "target"): fields.absolute_path,
    ("VolumeMount", "sub_path"): fields.relative_path,
    ("VolumeMount", "policy"): _POLICY,
    ("Idle", "pause_after"): fields.duration(60 * SECOND_MS, YEAR_MS),
    ("Idle", "warn_before"): fields.duration(SECOND_MS, YEAR_MS),
    ("Notify", "on"): fields.list_of(fields.word(*KINDS), at_most=MAX_ADDRESSES, single=True),
    ("Notify", "to"): fields.list_of(_address, at_most=MAX_ADDRESSES, single=True),
    ("NodeSpec", "labels"): _LABELS,
    ("NodeSpec", "zone"): fields.name,
    ("NodeSpec", "drivers"): fields.list_of(fields.word("pwm.docker", "pwm.process"), at_most=8, single=True),
    ("NodeSpec", "address"): _NAMES,
    ("WorkloadSpec", "zone"): fields.optional_name,
    ("WorkloadSpec", "driver"): fields.word("pwm.docker", "pwm.process"),
    ("ZoneSpec", "endpoints"): _NAMES,
    ("Membership", "name"): fields.text,
    ("Membership", "role"): fields.name,
    ("CreditLimits", "weekly"): fields.amount,
    ("PerTime", "hour"): fields.amount,
    ("ResourceLimits", "memory"): _GIBIBYTES,
    ("NodeLimits", "allow"): _NAMES,
    ("NodeLimits", "deny"): _NAMES,
    ("StorageSpec", "kind"): fields.word("nfs", "local"),
    ("StorageSpec", "capacity"): _GIBIBYTES,
    ("NFS", "path"): fields.absolute_path,
    ("LocalDirectory", "path"): fields.absolute_path,
    ("LocalDirectory", "node"): fields.name,
    ("VolumeSpec", "storage"): fields.name,
    ("VolumeSpec", "sub_path"): fields.relative_path,
    ("VolumeSpec", "policy"): _POLICY,
    ("VolumeSpec", "size"): _GIBIBYTES,
    ("VolumeSpec", "target"): fields.absolute_path,
}

# Fields that the server sets: what `get` writes may be applied again, they are passed over.
_SERVER_SET = {"Metadata": frozenset({"uid", "createdAt", "updatedAt", "version", "createdBy"})}
# Most entries of lists of messages.
_MAX_PARTS = {
    ("WorkloadSpec", "volumes"): MAX_VOLUMES,
    ("Config", "ports"): 256,
    ("Config", "secrets"): MAX_SECRETS,
}

Writer = Callable[[Message, Item, Findings], None]


def read(message: Message, item: Item, findings: Findings) -> None:
    """Fill `message` from a mapping; what is wrong goes to `findings`."""
    mapping = item.mapping
    if mapping is None:
        findings.refuse(item.path, f"{item.path} must be a mapping, not {shown(item.value)}", _example(message))
        return
    shape = _shape(message.DESCRIPTOR)
    for key, child in mapping.items():
        writer = shape.writers.get(key)
        if writer is not None:
            if child.value is not None:
                writer(message, child, findings)
        elif key not in shape.passed_over:
            where = item.path or "the document"
            findings.refuse(child.path, f"{where} has no field {shown(key)}", suggestion(key, shape.writers))


@dataclass(frozen=True, slots=True)
class _Shape:
    writers: Mapping[str, Writer]
    passed_over: frozenset[str]


@cache
def _shape(descriptor: Descriptor) -> _Shape:
    passed_over = _SERVER_SET.get(descriptor.name, frozenset())
    writers = {f.json_name: _writer(f) for f in descriptor.fields if f.json_name not in passed_over}
    return _Shape(writers, passed_over)


def _writer(field: FieldDescriptor) -> Writer:
    assert field.containing_type is not None
    place = (field.containing_type.name, field.name)
    reader = _READERS.get(place)
    if _is_map(field):
        assert field.message_type is not None
        value = field.message_type.fields_by_name["value"]
        if value.message_type is not None:
            return _message_map(field.name)
        return _container_of(field.name, reader or fields.map_of(fields.scalar_text, key=fields.text))
    if field.message_type is not None:
        if field.is_repeated:
            return _messages(field.name, _MAX_PARTS.get(place, MAX_ENTRIES))
        return _message(field.name)
    if field.is_repeated:
        return _container_of(field.name, reader or fields.list_of(_scalar(field), at_most=MAX_ENTRIES, single=True))
    return _single(field.name, reader or _scalar(field))


def _scalar(field: FieldDescriptor) -> Reader:
    if field.enum_type is not None:
        return fields.enum_word(field.enum_type)
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return fields.text
        case FieldDescriptor.CPPTYPE_BOOL:
            return fields.flag
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return fields.amount
        case _:
            return fields.whole(0, fields.MAX_INT32)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _single(name: str, reader: Reader) -> Writer:
    def write(message: Message, item: Item, findings: Findings) -> None:
        value = reader(item, findings)
        if value is not None:
            setattr(message, name, value)

    return write


def _container_of(name: str, reader: Reader) -> Writer:
    """Repeated scalars and maps of text."""

    def write(message: Message, item: Item, findings: Findings) -> None:
        value = reader(item, findings)
        if isinstance(value, dict):
            getattr(message, name).update(value)
        elif value is not None:
            getattr(message, name).extend(value)

    return write


def _message(name: str) -> Writer:
    def write(message: Message, item: Item, findings: Findings) -> None:
        part = getattr(message, name)
        read(part, item, findings)
        if not part.ByteSize():
            message.ClearField(name)

    return write


def _messages(name: str, at_most: int) -> Writer:
    def write(message: Message, item: Item, findings: Findings) -> None:
        entries = item.sequence
        if entries is None:
            findings.refuse(item.path, f"{item.path} must be a list, not {shown(item.value)}", "write [{…}, {…}]")
            return
        if len(entries) > at_most:
            findings.refuse(item.path, f"{item.path} has {len(entries)} entries, but may have at most {at_most}")
            return
        for entry in entries:
            read(getattr(message, name).add(), entry, findings)

    return write


def _message_map(name: str) -> Writer:
    def write(message: Message, item: Item, findings: Findings) -> None:
        entries = item.mapping
        if entries is None:
            findings.refuse(item.path, f"{item.path} must be a mapping, not {shown(item.value)}", "write {name: …}")
            return
        for key, entry in entries.items():
            if entry.value is not None:
                read(getattr(message, name)[key], entry, findings)

    return write


def _example(message: Message) -> str:
    names = list(_shape(message.DESCRIPTOR).writers)
    return f"write {{{names[0]}: …}}" if names else ""
