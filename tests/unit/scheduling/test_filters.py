"""Which nodes a workload may use at all."""

from typing import Any

import pytest

from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.node_pb2 import DriverInfo, Node, NodeSpec, NodeStatus
from pwm.api.v1.workload_pb2 import Workload
from pwm.controlplane.core.scheduling.explain import explain
from pwm.controlplane.core.scheduling.filters import product_matches
from tests.unit.scheduling.machines import A100, T4, V100, cluster_of, node, nodes_of, planned, workload


@pytest.mark.parametrize(
    ("wanted", "product"),
    [
        ("NVIDIA A100-SXM4-80GB", A100),
        ("nvidia a100-sxm4-80gb", A100),
        ("A100", A100),
        ("a100-sxm4", A100),
        ("V100", V100),
        ("Tesla V100-SXM2-16GB", V100),
        ("RTX 3090", "NVIDIA GeForce RTX 3090"),
        ("RTX 3090 Ti", "NVIDIA GeForce RTX 3090 Ti"),
        ("Xeon Gold 6248", "Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz"),
        ("Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz", "Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz"),
        ("EPYC", "AMD EPYC 7742 64-Core Processor"),
    ],
)
def test_a_model_is_found_by_its_name_or_by_words_of_it(wanted: str, product: str) -> None:
    assert product_matches(wanted, product)


@pytest.mark.parametrize(
    ("wanted", "product"),
    [
        ("L4", "NVIDIA L40"),
        ("A10", A100),
        ("100", A100),
        ("A100 80GB", A100),
        ("RTX 3090", "NVIDIA GeForce RTX 3090 Ti"),
        ("NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 3090 Ti"),
        ("RTX 6000", "NVIDIA RTX 6000 Ada Generation"),
        ("-", A100),
        ("A100", ""),
    ],
)
def test_another_model_is_not_found(wanted: str, product: str) -> None:
    assert not product_matches(wanted, product)


@pytest.mark.parametrize("word", ["pwm.all", "All", "all", "empty", ""])
def test_magic_words_mean_any(word: str) -> None:
    cluster = cluster_of(node("n1", gpus=[T4]))
    spec = {"selectors": {"node": {"name": word}, "label": {"rack": word}, "gpu": {"product_name": [word], "count": 1}}}
    assert nodes_of(planned(cluster, workload("train", gpus=1, zone=word, **spec))) == ["n1"]


def test_the_admins_label_stands_over_the_agents() -> None:
    machine = node("n1", labels={"rack": "r1"})
    machine.status.inventory.labels.update({"rack": "r9", "disk": "ssd"})
    cluster = cluster_of(machine)
    assert planned(cluster, workload("a", selectors={"label": {"rack": "r1", "disk": "ssd"}})).placements
    assert not planned(cluster, workload("b", selectors={"label": {"rack": "r9"}})).placements


def test_a_driver_may_be_offered_and_still_not_allowed() -> None:
    both = [DriverInfo(name="pwm.docker", ready=True), DriverInfo(name="pwm.process", ready=True)]
    open_node, closed = node("open", drivers=both), node("closed", drivers=both)
    closed.spec.drivers.append("pwm.docker")
    cluster = cluster_of(open_node, closed)
    assert nodes_of(planned(cluster, workload("job", driver="pwm.process", cpu="12", replicas=2))) == ["open"]


def maintained() -> Node:
    machine = node("n1")
    machine.spec.maintenance = True
    return machine


def never_joined() -> Node:
    machine = Node()
    machine.metadata.name = "n1"
    return machine


REFUSALS: list[tuple[Node, dict[str, Any], Reason.Code.ValueType, str]] = [
    (node("n1", zone="east"), {"zone": "west"}, Reason.EMPTY_NODE_SELECTOR, "n1 is in zone east, not in west"),
    (node("n1"), {"zone": "west"}, Reason.EMPTY_NODE_SELECTOR, "n1 is in zone default, not in west"),
    # Its leader decides about it alone: another zone's must not.
    (node("n1", zone="east"), {}, Reason.EMPTY_NODE_SELECTOR, "n1 is in zone east, not in default"),
    (node("n1"), {"selectors": {"node": {"name": "n9"}}}, Reason.EMPTY_NODE_SELECTOR, "no node is called n9"),
    (
        node("n1", labels={"rack": "r1"}),
        {"selectors": {"label": {"rack": "r2"}}},
        Reason.EMPTY_LABEL_SELECTOR,
        "n1 does not have the label rack=r2",
    ),
    (node("n1", allow=[NodeSpec.GPUWorkload]), {}, Reason.NODE_TYPE_NOT_ALLOWED, "n1 takes no CPU workloads"),
    (
        node("n1", gpus=1, allow=[NodeSpec.CPUWorkload]),
        {"gpus": 1},
        Reason.NODE_TYPE_NOT_ALLOWED,
        "n1 takes no GPU workloads",
    ),
    (node("n1"), {"driver": "pwm.process"}, Reason.DRIVER_NOT_ALLOWED, "n1 does not offer the driver pwm.process"),
    (
        node("n1", drivers=[DriverInfo(name="pwm.docker", ready=False, message="cannot connect")]),
        {},
        Reason.DRIVER_UNREACHABLE,
        "n1 cannot use pwm.docker: cannot connect",
    ),
    (
        node("n1", cpu_product="AMD EPYC"),
        {"selectors": {"cpu": {"product_name": ["Xeon"]}}},
        Reason.EMPTY_CPU_SELECTOR,
        "n1 has the CPU AMD EPYC, not Xeon",
    ),
    (node("n1"), {"gpus": 1}, Reason.EMPTY_GPU_SELECTOR, "n1 has no GPU"),
    (
        node("n1", gpus=[T4]),
        {"gpus": 1, "models": ["A100", "H100"]},
        Reason.EMPTY_GPU_SELECTOR,
        f"n1 has {T4}, not A100 or H100",
    ),
    (
        node("n1", gpus=[T4]),
        {"gpus": 1, "selectors": {"gpu": {"count": 1, "memory": "40GiB"}}},
        Reason.EMPTY_GPU_SELECTOR,
        "n1 has GPUs with 15GiB, 40GiB are asked for",
    ),
    (node("n1", phase=NodeStatus.NOT_READY), {}, Reason.NODE_UNREACHABLE, "n1 is not ready"),
    (node("n1", phase=NodeStatus.LOST), {}, Reason.NODE_UNREACHABLE, "n1 is lost"),
    (node("n1", phase=NodeStatus.MAINTENANCE), {}, Reason.NODE_IN_MAINTENANCE, "n1 is in maintenance"),
    (node("n1", phase=NodeStatus.DRAINING), {}, Reason.NODE_IN_MAINTENANCE, "n1 is being drained"),
    (maintained(), {}, Reason.NODE_IN_MAINTENANCE, "n1 is in maintenance"),
    (never_joined(), {}, Reason.NODE_UNREACHABLE, "n1 has not joined yet"),
]


@pytest.mark.parametrize(("machine", "spec", "code", "message"), REFUSALS, ids=[row[3] for row in REFUSALS])
def test_the_only_node_refuses_and_says_why(
    machine: Node, spec: dict[str, Any], code: Reason.Code.ValueType, message: str
) -> None:
    cluster = cluster_of(machine)
    wanted: Workload = workload("job", **spec)
    made = planned(cluster, wanted)
    assert not made.placements
    for explanation in (made.refusals["job"], explain(cluster, wanted)):
        assert (explanation.reason.code, explanation.reason.message) == (code, message)
