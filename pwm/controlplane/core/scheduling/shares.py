"""CPU and memory of a replica that did not say how much.

A GPU workload gets cores and memory in proportion to the GPUs it takes: 2 of a node's 8 GPUs come with a
quarter of its cores and of its allocatable memory, so that eight jobs of one GPU each always fit. A CPU
workload gets one core, and memory in proportion to the cores it takes. What is said explicitly is a limit
and counts as it is. Shares round down, so that shares of a whole never add up to more than it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pwm.api.v1.common_pb2 import Resources
from pwm.api.v1.node_pb2 import Node
from pwm.api.v1.workload_pb2 import Workload
from pwm.controlplane.core.scheduling.demand import CORE_MILLIS, Demand, demand_of
from pwm.controlplane.core.scheduling.nodes import NodeState

Ints = npt.NDArray[np.int64]

DEFAULT_CPU_MILLIS = CORE_MILLIS


@dataclass(frozen=True, slots=True)
class Requirements:
    """What one replica takes of one node: resources, and how many cores it gets for itself alone."""

    resources: Resources
    cores: int


def needs(demand: Demand, *, cores: Ints, memory_bytes: Ints, gpus: Ints) -> tuple[Ints, Ints]:
    """CPU (millis) and memory (bytes) that one replica takes on each of the nodes with these capacities."""
    node_millis = np.maximum(cores * CORE_MILLIS, 1)
    node_gpus = np.maximum(gpus, 1)
    cpu: Ints
    memory: Ints
    if demand.cpu_millis is not None:
        cpu = _everywhere(demand.cpu_millis, cores)
    elif not demand.gpus:
        cpu = _everywhere(DEFAULT_CPU_MILLIS, cores)
    else:
        cpu = node_millis * demand.gpus // node_gpus
    if demand.exclusive:
        cpu = np.maximum(cpu // CORE_MILLIS, 1) * CORE_MILLIS
    if demand.memory_bytes is not None:
        memory = _everywhere(demand.memory_bytes, memory_bytes)
    elif demand.gpus:
        memory = memory_bytes * demand.gpus // node_gpus
    else:
        # In floats: bytes times millis can pass 2^63. Exact to a few bytes, and rounded down to whole KiB.
        memory = (memory_bytes * (cpu / node_millis)).astype(np.int64) // 1024 * 1024
    return cpu, memory


def _everywhere(amount: int, nodes: Ints) -> Ints:
    """One amount for all nodes, without the memory of a column."""
    return np.broadcast_to(np.int64(amount), nodes.shape)


def requirements(workload: Workload, node: Node) -> Requirements:
    """What one replica of the workload would take of the node."""
    demand, state = demand_of(workload), NodeState.of(node)
    cpu, memory = needs(
        demand,
        cores=np.array([state.cores], np.int64),
        memory_bytes=np.array([state.memory_bytes], np.int64),
        gpus=np.array([len(state.gpus)], np.int64),
    )
    resources = Resources(cpu_millis=int(cpu[0]), memory_bytes=int(memory[0]), gpus=demand.gpus)
    return Requirements(resources, resources.cpu_millis // CORE_MILLIS if demand.exclusive else 0)
