"""How fast the scheduler plans. Run: `python bench/bench_scheduling.py [--json FILE]`.

Pure computation on one core, measured in processor time: no log, no network. Shown are placements a second
on a large cluster with a long queue (three families of it), the time to place one workload on a small
cluster, which every `apply` waits for, and the time to explain a queue of 2,000. Each figure is the median of
several rounds, with the fastest and the slowest beside it.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from pwm.api.v1.node_pb2 import DriverInfo, GPUDevice, Inventory, Node, NodeStatus
from pwm.api.v1.workload_pb2 import Config, Container, ContainerStatus, Workload
from pwm.controlplane.core.scheduling.cluster import Cluster
from pwm.controlplane.core.scheduling.explain import explain
from pwm.controlplane.core.scheduling.plan import plan
from pwm.controlplane.core.scheduling.queue import Waiting
from pwm.controlplane.core.scheduling.spec import container_spec

GIB = 1024**3
NODES, GPUS, QUEUE = 5_000, 8, 100_000
MODELS = (("NVIDIA A100-SXM4-80GB", 80), ("NVIDIA H100 80GB HBM3", 80), ("Tesla V100-SXM2-16GB", 16))
ROUNDS = 5


def node(name: str, *, model: tuple[str, int], rack: int) -> Node:
    machine = Node()
    machine.metadata.name = name
    machine.spec.labels["rack"] = f"rack{rack:02}"
    machine.status.phase = NodeStatus.READY
    gpus = [
        GPUDevice(
            uuid=f"GPU-{name}-{index}",
            index=index,
            product_name=model[0],
            memory_bytes=model[1] * GIB,
            numa_node=index // 4,
            healthy=True,
        )
        for index in range(GPUS)
    ]
    drivers = [DriverInfo(name="pwm.docker", ready=True)]
    inventory = Inventory(cpu_product="AMD EPYC 7742", cpu_count=64, memory_bytes=512 * GIB, gpus=gpus, drivers=drivers)
    machine.status.inventory.CopyFrom(inventory)
    return machine


def cluster(nodes: int) -> Cluster:
    made = Cluster()
    for number in range(nodes):
        made.set_node(node(f"n{number:04}", model=MODELS[number % len(MODELS)], rack=number // 20))
    return made


def workload(name: str, random: Random, *, affinity: Config.Affinity.ValueType = Config.Fill) -> Workload:
    """A workload as a lab has them: most of one GPU, some of more, some of CPU alone, a few that choose a rack."""
    made = Workload()
    made.metadata.name = made.metadata.uid = name
    made.metadata.group = "bench"
    made.spec.config.affinity = affinity
    if random.random() < 0.8:
        made.spec.selectors.gpu.count = random.choice((1, 1, 1, 1, 2, 2, 4, 8))
        if random.random() < 0.5:
            made.spec.selectors.gpu.product_name.append(random.choice(("A100", "H100", "V100")))
    if random.random() < 0.5:
        made.spec.selectors.cpu.count = random.choice(("1", "2", "4", "500m"))
        made.spec.config.memory = random.choice(("4GiB", "8GiB", "16GiB"))
    if random.random() < 0.1:
        made.spec.selectors.label["rack"] = f"rack{random.randrange(NODES // 20):02}"
    return made


def queue(workloads: int, affinity: Config.Affinity.ValueType = Config.Fill) -> list[Waiting]:
    random = Random(1)
    made = [workload(f"w{number}", random, affinity=affinity) for number in range(workloads)]
    return [Waiting(made[i % workloads], i // workloads, 1, 1_000 + i % workloads) for i in range(QUEUE)]


def measured(run: Callable[[], float], *, rounds: int = ROUNDS) -> dict[str, float]:
    run()
    values = sorted(run() for _ in range(rounds))
    return {"median": statistics.median(values), "min": values[0], "max": values[-1]}


def placements_per_second(large: Cluster, waiting: list[Waiting]) -> float:
    start = time.process_time()
    placed = len(plan(large, waiting, now_ms=2_000, seed=1).placements)
    return placed / (time.process_time() - start)


def placing_one_us(small: Cluster, one: Workload) -> float:
    repeats = 500
    start = time.process_time()
    for _ in range(repeats):
        assert plan(small, [Waiting(one, 0, 1, 0)], now_ms=0, seed=0).placements
    return (time.process_time() - start) / repeats * 1e6


def explaining_rows_ms(full: Cluster, rows: list[Workload], change: Container) -> float:
    full.set_container(change)  # a change, so that no answer is left from the round before
    full.drop_container(change.metadata.uid)
    start = time.process_time()
    for row in rows:
        explain(full, row)
    return (time.process_time() - start) * 1e3


def full_cluster(nodes: int) -> tuple[Cluster, Container]:
    made, last = cluster(nodes), Container()
    filler = Workload()
    filler.metadata.name = filler.metadata.uid = "filler"
    filler.spec.selectors.gpu.count = GPUS
    for placement in plan(made, [Waiting(filler, i, 1, 0) for i in range(nodes)], now_ms=0, seed=0).placements:
        last = Container()
        last.metadata.uid = last.metadata.name = f"filler.{placement.waiting.replica}.1"
        last.spec.CopyFrom(container_spec(filler, placement, revision=1))
        last.status.phase = ContainerStatus.RUNNING
        made.set_container(last)
    change = Container()
    change.CopyFrom(last)
    change.metadata.uid = "change"
    change.spec.resources.Clear()
    return made, change


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", type=Path, help="write the figures to this file")
    target = arguments.parse_args().json
    large, small = cluster(NODES), cluster(3)
    rows = [workload(f"q{number}", Random(number)) for number in range(2_000)]
    huge, huge_change = full_cluster(NODES)
    lab, lab_change = full_cluster(26)
    one = Workload()
    one.metadata.uid = one.metadata.name = "hello"
    arrays, singles, spread = queue(1_000), queue(QUEUE), queue(QUEUE, Config.Distribute)
    results = {
        "1,000 arrays of 100 replicas, Fill (placements/s)": measured(lambda: placements_per_second(large, arrays)),
        "100,000 single workloads, Fill (placements/s)": measured(lambda: placements_per_second(large, singles)),
        "100,000 single workloads, Distribute (placements/s)": measured(lambda: placements_per_second(large, spread)),
        "one workload on 3 nodes (µs)": measured(lambda: placing_one_us(small, one)),
        "explain 2,000 rows, 26 nodes (ms)": measured(lambda: explaining_rows_ms(lab, rows, lab_change)),
        "explain 2,000 rows, 5,000 nodes (ms)": measured(lambda: explaining_rows_ms(huge, rows, huge_change), rounds=1),
    }
    for name, value in results.items():
        print(f"{name:52} {value['median']:>12,.0f}   ({value['min']:,.0f} - {value['max']:,.0f})")
    if target:
        target.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
