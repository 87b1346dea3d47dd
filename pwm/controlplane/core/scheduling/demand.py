"""What one replica asks for, as a value.

Workloads come in arrays and in families: thousands of them ask for the same. A `Demand` holds only what
placement depends on, with quantities read and magic words gone, and compares by value, so that everything
that is worked out for one (which nodes match, why it does not fit) is worked out once for all its equals.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from pwm.api.v1.workload_pb2 import Config, Selectors, Workload
from pwm.controlplane.core.limits import NodeRule
from pwm.quantity import QuantityError, parse_bytes, parse_cpu

DEFAULT_DRIVER = "pwm.docker"
# Words that mean "any", as users of every version wrote them; compared in lower case.
DEFAULT_ZONE = "default"
ANY_WORDS = frozenset({"", "pwm.all", "all", "empty"})
CORE_MILLIS = 1000
# Sizes that no machine has are cut to this, so that they are refused as such and sums stay within 64 bits.
SIZE_MAX = 1 << 60
# Workloads differ in their selectors far less than in their number; beyond this many the oldest is read again.
_DEMANDS_KEPT = 65_536


@dataclass(frozen=True, slots=True)
class Demand:
    """Needs of one replica. `cpu_millis` and `memory_bytes` are None where the share of the node decides."""

    driver: str = DEFAULT_DRIVER
    zone: str = DEFAULT_ZONE
    node: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    cpu_products: tuple[str, ...] = ()
    gpu_products: tuple[str, ...] = ()
    gpus: int = 0
    gpu_memory_bytes: int = 0
    cpu_millis: int | None = None
    exclusive: bool = False
    memory_bytes: int | None = None
    affinity: Config.Affinity.ValueType = Config.Fill
    volumes: bool = False
    # Of the accounts that it counts for: which nodes they may use.
    rules: tuple[NodeRule, ...] = ()
    # A sentence when the spec cannot be read; such a workload is refused alone and never stops the others.
    invalid: str = ""
    # Demands are looked up far more often than made.
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = (self.node, self.labels, self.gpu_products, self.gpus, self.cpu_millis, self.memory_bytes)
        object.__setattr__(self, "_hash", hash(parts))

    def __hash__(self) -> int:
        return self._hash


def demand_of(workload: Workload) -> Demand:
    """The demand of each replica of a workload; equal specs give the same object."""
    spec = workload.spec
    config = spec.config
    return _read(
        spec.selectors.SerializeToString(),
        spec.driver,
        spec.zone,
        config.memory,
        config.affinity,
        len(spec.volumes) > 0,
    )


def is_any(word: str) -> bool:
    """Whether a selector's value stands for anything."""
    return word.lower() in ANY_WORDS


def zone_of(named: str) -> str:
    """The zone of a node or a workload: the one that its spec names, or the default.

    Each belongs to exactly one, and only that one's leader decides about it. Were a workload without a zone placed
    on any node, the leaders of two zones could give the same GPU away at the same moment.
    """
    return DEFAULT_ZONE if is_any(named) else named


@lru_cache(maxsize=_DEMANDS_KEPT)
def _read(
    selectors: bytes, driver: str, zone: str, memory: str, affinity: Config.Affinity.ValueType, volumes: bool
) -> Demand:
    wanted = Selectors.FromString(selectors)
    gpu, cpu = wanted.gpu, wanted.cpu
    invalid = "" if gpu.count >= 0 else f"selectors.gpu.count is {gpu.count}; it cannot be negative"
    cpu_millis = memory_bytes = None
    gpu_memory_bytes = 0
    try:
        cpu_millis = None if is_any(cpu.count) else parse_cpu(cpu.count)
        memory_bytes = min(parse_bytes(memory), SIZE_MAX) if memory else None
        gpu_memory_bytes = parse_bytes(gpu.memory) if gpu.memory else 0
    except QuantityError as error:
        invalid = str(error)
    if cpu_millis is not None and cpu.exclusive:  # whole cores only: 1.5 takes two
        cpu_millis = -(-cpu_millis // CORE_MILLIS) * CORE_MILLIS
    return Demand(
        driver=driver or DEFAULT_DRIVER,
        zone=zone_of(zone),
        node="" if is_any(wanted.node.name) else wanted.node.name,
        labels=tuple(sorted((key, value) for key, value in wanted.label.items() if not is_any(value))),
        cpu_products=_products(cpu.product_name),
        gpu_products=_products(gpu.product_name) if gpu.count > 0 else (),
        gpus=max(0, gpu.count),
        gpu_memory_bytes=gpu_memory_bytes if gpu.count > 0 else 0,
        cpu_millis=cpu_millis or None,  # 0 is how old files said "not told"
        exclusive=cpu.exclusive,
        memory_bytes=memory_bytes or None,
        affinity=affinity or Config.Fill,
        volumes=volumes,
        invalid=invalid,
    )


def _products(names: Sequence[str]) -> tuple[str, ...]:
    return () if any(is_any(name) for name in names) else tuple(names)
