"""Filters that look at what a node is: they do not change while containers come and go.

Each takes a demand and a node kind and returns a refusal or nothing. Each looks at a small part of a demand,
which many demands share, and is asked once per such part and kind (`table.py` keeps the answers). The filters
that compare numbers are in `scratch.py`, where they run over all nodes at once; `survey.py` puts them in words.

How a model is named: the exact name as PWM shows it, in any case, or some of its words in a row. `A100`
finds `NVIDIA A100-SXM4-80GB`, `RTX 3090` finds `NVIDIA GeForce RTX 3090`. A word that makes another model of
it ends the match, so `RTX 3090`, even written out in full, does not find a `RTX 3090 Ti`.
"""

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache

from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.node_pb2 import NodeStatus
from pwm.controlplane.core.scheduling.demand import Demand
from pwm.controlplane.core.scheduling.nodes import GPUModel, NodeKind
from pwm.controlplane.core.scheduling.verdicts import Refusal, Stage, listed
from pwm.quantity import format_bytes

_WORD = re.compile(r"[^\W_]+(?:\.\d+)?")
_MARKS = re.compile(r"\((?:r|tm|c)\)", re.IGNORECASE)
# Words after a model's number that make it another model.
_VARIANTS = frozenset({"ti", "super", "laptop", "mobile", "max", "ada", "blackwell", "pro"})


@lru_cache(maxsize=16_384)
def product_matches(wanted: str, product: str) -> bool:
    """Whether a product is of the model that a selector names."""
    if wanted.casefold() == product.casefold():
        return True
    asked, words = _words(wanted), _words(product)
    for start in range(len(words) - len(asked) + 1) if asked else ():
        end = start + len(asked)
        if words[start:end] == asked and not (end < len(words) and words[end] in _VARIANTS):
            return True
    return False


def _words(name: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(_MARKS.sub(" ", name))]


def model_matches(demand: Demand, model: GPUModel) -> bool:
    """Whether a GPU of this model will do."""
    return _product_of(demand, model) and model.memory_bytes >= demand.gpu_memory_bytes


def _product_of(demand: Demand, model: GPUModel) -> bool:
    return not demand.gpu_products or any(product_matches(wanted, model.product) for wanted in demand.gpu_products)


def _zone(demand: Demand, kind: NodeKind) -> Refusal | None:
    if demand.zone == kind.zone:
        return None
    return Refusal(Stage.ZONE, Reason.EMPTY_NODE_SELECTOR, f"is in zone {kind.zone}, not in {demand.zone}")


def _labels(demand: Demand, kind: NodeKind) -> Refusal | None:
    missing = tuple([label for label in demand.labels if label not in kind.labels])
    return _without_labels(missing) if missing else None


@lru_cache(maxsize=1024)
def _without_labels(missing: tuple[tuple[str, str], ...]) -> Refusal:
    names = listed([f"{key}={value}" for key, value in missing])
    return Refusal(Stage.LABEL, Reason.EMPTY_LABEL_SELECTOR, f"does not have the label {names}")


def _type(demand: Demand, kind: NodeKind) -> Refusal | None:
    if kind.gpu_workloads if demand.gpus else kind.cpu_workloads:
        return None
    sort = "GPU" if demand.gpus else "CPU"
    return Refusal(Stage.TYPE, Reason.NODE_TYPE_NOT_ALLOWED, f"takes no {sort} workloads")


def _driver(demand: Demand, kind: NodeKind) -> Refusal | None:
    if kind.allowed and demand.driver not in kind.allowed:
        return Refusal(Stage.DRIVER, Reason.DRIVER_NOT_ALLOWED, f"does not allow the driver {demand.driver}")
    if kind.joined and all(driver.name != demand.driver for driver in kind.drivers):
        return Refusal(Stage.DRIVER, Reason.DRIVER_NOT_ALLOWED, f"does not offer the driver {demand.driver}")
    return None


def _cpu_model(demand: Demand, kind: NodeKind) -> Refusal | None:
    if not demand.cpu_products or not kind.joined:
        return None
    if any(product_matches(name, kind.cpu_product) for name in demand.cpu_products):
        return None
    sentence = f"has the CPU {kind.cpu_product}, not {listed(demand.cpu_products, word='or')}"
    return Refusal(Stage.CPU_MODEL, Reason.EMPTY_CPU_SELECTOR, sentence)


def _gpu_model(demand: Demand, kind: NodeKind) -> Refusal | None:
    if not demand.gpus or not kind.joined:
        return None
    matching = [model for model in kind.gpu_models if _product_of(demand, model)]
    if not matching:
        has = listed(sorted({model.product for model in kind.gpu_models})) or "no GPU"
        sentence = f"has {has}" + (f", not {listed(demand.gpu_products, word='or')}" if demand.gpu_products else "")
        return Refusal(Stage.GPU_MODEL, Reason.EMPTY_GPU_SELECTOR, sentence)
    most = max(model.memory_bytes for model in matching)
    if most < demand.gpu_memory_bytes:
        sentence = f"has GPUs with {format_bytes(most)}, {format_bytes(demand.gpu_memory_bytes)} are asked for"
        return Refusal(Stage.GPU_MEMORY, Reason.EMPTY_GPU_SELECTOR, sentence)
    return None


def _readiness(demand: Demand, kind: NodeKind) -> Refusal | None:
    if kind.maintenance or kind.phase in (NodeStatus.MAINTENANCE, NodeStatus.DRAINING):
        what = "is being drained" if kind.phase == NodeStatus.DRAINING else "is in maintenance"
        return Refusal(Stage.READY, Reason.NODE_IN_MAINTENANCE, what)
    if not kind.joined:
        return Refusal(Stage.READY, Reason.NODE_UNREACHABLE, "has not joined yet")
    if kind.phase != NodeStatus.READY:
        what = "is lost" if kind.phase == NodeStatus.LOST else "is not ready"
        return Refusal(Stage.READY, Reason.NODE_UNREACHABLE, what)
    for driver in kind.drivers:
        if driver.name == demand.driver and not driver.ready:
            why = f": {driver.message}" if driver.message else ""
            return Refusal(Stage.DRIVER_READY, Reason.DRIVER_UNREACHABLE, f"cannot use {driver.name}{why}")
    return None


@dataclass(frozen=True, slots=True)
class Filter:
    """`refuse` says why a node of a kind will not do. `asks` is the part of a demand that it looks at: demands that
    are alike in it get the same answers."""

    asks: Callable[[Demand], Hashable]
    refuse: Callable[[Demand, NodeKind], Refusal | None]


# What a node is: never changes while the demand waits.
SELECTORS = (
    Filter(lambda demand: demand.zone, _zone),
    Filter(lambda demand: demand.labels, _labels),
    Filter(lambda demand: demand.gpus > 0, _type),
    Filter(lambda demand: demand.driver, _driver),
    Filter(lambda demand: demand.cpu_products, _cpu_model),
    Filter(lambda demand: (demand.gpus > 0, demand.gpu_products, demand.gpu_memory_bytes), _gpu_model),
)
# Whether it takes anything at the moment; asked after what it could hold.
READINESS = Filter(lambda demand: demand.driver, _readiness)


def selector_refusal(demand: Demand, kind: NodeKind) -> Refusal | None:
    """Why a node of this kind can never run the demand, whatever is free."""
    return next((refusal for f in SELECTORS if (refusal := f.refuse(demand, kind)) is not None), None)


def readiness_refusal(demand: Demand, kind: NodeKind) -> Refusal | None:
    """Why a node of this kind takes nothing at the moment."""
    return READINESS.refuse(demand, kind)
