"""Filters that look at what a node is: they do not change while containers come and go.

Each takes a demand and a node kind and returns a refusal or nothing. They are asked once per pair of demand
and kind (`table.py` keeps the answers). The filters that compare numbers are in `scratch.py`, where they run
over all nodes at once, and are put in words by `explain.py`.

How a model is named: the exact name as PWM shows it, in any case, or some of its words in a row. `A100`
finds `NVIDIA A100-SXM4-80GB`, `RTX 3090` finds `NVIDIA GeForce RTX 3090`. A word that makes another model of
it ends the match, so `RTX 3090`, even written out in full, does not find a `RTX 3090 Ti`.
"""

import re
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


def selector_refusal(demand: Demand, kind: NodeKind) -> Refusal | None:
    """Why a node of this kind can never run the demand, whatever is free."""
    if demand.zone and demand.zone != kind.zone:
        where = f"is in zone {kind.zone}" if kind.zone else "is in no zone"
        return Refusal(Stage.ZONE, Reason.EMPTY_NODE_SELECTOR, f"{where}, not in {demand.zone}")
    missing = [f"{key}={value}" for key, value in demand.labels if (key, value) not in kind.labels]
    if missing:
        return Refusal(Stage.LABEL, Reason.EMPTY_LABEL_SELECTOR, f"does not have the label {listed(missing)}")
    if not (kind.gpu_workloads if demand.gpus else kind.cpu_workloads):
        sort = "GPU" if demand.gpus else "CPU"
        return Refusal(Stage.TYPE, Reason.NODE_TYPE_NOT_ALLOWED, f"takes no {sort} workloads")
    if kind.allowed and demand.driver not in kind.allowed:
        return Refusal(Stage.DRIVER, Reason.DRIVER_NOT_ALLOWED, f"does not allow the driver {demand.driver}")
    return _hardware_refusal(demand, kind) if kind.joined else None


def _hardware_refusal(demand: Demand, kind: NodeKind) -> Refusal | None:
    if demand.driver not in {driver.name for driver in kind.drivers}:
        return Refusal(Stage.DRIVER, Reason.DRIVER_NOT_ALLOWED, f"does not offer the driver {demand.driver}")
    if demand.cpu_products and not any(product_matches(name, kind.cpu_product) for name in demand.cpu_products):
        sentence = f"has the CPU {kind.cpu_product}, not {listed(demand.cpu_products, word='or')}"
        return Refusal(Stage.CPU_MODEL, Reason.EMPTY_CPU_SELECTOR, sentence)
    if not demand.gpus:
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


def readiness_refusal(demand: Demand, kind: NodeKind) -> Refusal | None:
    """Why a node of this kind takes nothing at the moment."""
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
