"""Why something does not start, in words, and what would help."""

import pytest

from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.node_pb2 import NodeStatus
from pwm.controlplane.core.scheduling.cluster import Cluster
from pwm.controlplane.core.scheduling.explain import explain
from pwm.controlplane.core.scheduling.verdicts import listed
from tests.unit.scheduling.machines import A100, GIB, T4, V100, cluster_of, container_of, node, planned, run, workload


def why(cluster: Cluster, **spec: object) -> str:
    return explain(cluster, workload("job", **spec)).reason.message  # type: ignore[arg-type]


def suggestions(cluster: Cluster, **spec: object) -> list[str]:
    return explain(cluster, workload("job", **spec)).suggestions  # type: ignore[arg-type]


def only_on(name: str) -> dict[str, object]:
    return {"node": {"name": name}}


# ---- the sentence


def test_an_empty_cluster_says_so() -> None:
    explanation = explain(cluster_of(), workload("job"))
    assert explanation.reason.code == Reason.NO_NODE_READY
    assert explanation.reason.message == "the cluster has no node yet"
    assert not explanation.possible


def test_volumes_are_refused_before_any_node_is_asked() -> None:
    explanation = explain(cluster_of(node("n1")), workload("job", volumes=[{"name": "home", "target": "/home"}]))
    assert explanation.reason.code == Reason.VOLUME_NOT_READY
    assert "not available in this version" in explanation.reason.message


def test_a_size_that_cannot_be_read_refuses_this_workload_alone() -> None:
    cluster = cluster_of(node("n1"))
    made = planned(cluster, workload("bad", memory="lots"), workload("good"))
    assert [placement.waiting.workload.metadata.name for placement in made.placements] == ["good"]
    assert made.refusals["bad"].reason.code == Reason.CONFIG_NOT_ALLOWED
    assert "'lots' is not a size" in made.refusals["bad"].reason.message


@pytest.mark.parametrize("spec", [{"memory": "999999999999999TiB"}, {"cpu": "999999999"}, {"gpus": 2**31 - 1}])
def test_absurd_amounts_are_refused_like_any_that_no_node_has(spec: dict[str, object]) -> None:
    cluster = cluster_of(node("n1", gpus=2))
    made = planned(cluster, workload("absurd", **spec), workload("good"))  # type: ignore[arg-type]
    assert [placement.waiting.workload.metadata.name for placement in made.placements] == ["good"]
    assert made.refusals["absurd"].reason.message.startswith("no node has ")
    assert not made.refusals["absurd"].possible


def test_what_is_free_is_told_in_numbers() -> None:
    cluster = cluster_of(node("n1", gpus=8, cores=64, memory=512 * GIB))
    run(cluster, workload("other", gpus=6, cpu="62", memory="500GiB"))
    assert why(cluster, gpus=4, models=["A100"]) == "needs 4 GPUs A100, 2 free of 8 on n1"
    assert why(cluster, cpu="2500m") == "needs 2.5 CPUs, 2 free of 64 on n1"
    assert why(cluster, cpu="1", memory="6GiB") == "needs 6GiB of memory, 4GiB free of 504GiB on n1"
    assert why(cluster, cpu="4", exclusive=True) == "needs 4 whole CPUs, 2 free of 64 on n1"


def test_gpus_that_do_not_work_are_counted_apart() -> None:
    cluster = cluster_of(node("n1", gpus=4, broken=[1]))
    assert why(cluster, gpus=4) == "needs 4 GPUs, 3 free of 4 (1 broken or in use by others) on n1"


def test_more_than_any_node_has_is_not_the_same_as_not_free_now() -> None:
    cluster = cluster_of(node("n1", gpus=8), node("n2", gpus=4, cores=32, memory=128 * GIB))
    explanation = explain(cluster, workload("job", gpus=16))
    assert explanation.reason.code == Reason.EMPTY_GPU_SELECTOR
    assert explanation.reason.message == "no node has 16 GPUs; the largest has 8 (n1)"
    assert not explanation.possible
    assert why(cluster, cpu="64") == "no node has 64 CPUs; the largest has 32 (n2)"
    assert "no node has 1TiB of memory; the largest has" in why(cluster, memory="1TiB")
    run(cluster, workload("other", gpus=8))
    busy = explain(cluster, workload("job", gpus=8))
    assert busy.reason.code == Reason.NO_GPU_FREE
    assert busy.possible


def test_the_node_that_got_furthest_gives_the_reason() -> None:
    cluster = cluster_of(node("t4", gpus=[T4]), node("a100", gpus=1, phase=NodeStatus.NOT_READY))
    explanation = explain(cluster, workload("job", gpus=1, models=["A100"]))
    assert explanation.reason.code == Reason.NODE_UNREACHABLE
    assert explanation.reason.message == "a100 is not ready"
    assert [(reason.message, nodes) for reason, nodes in explanation.refusals] == [
        ("is not ready", ("a100",)),
        (f"has {T4}, not A100", ("t4",)),
    ]


def test_a_claim_about_all_nodes_is_only_made_when_all_were_looked_at() -> None:
    cluster = cluster_of(node("n1", gpus=8, labels={"rack": "r1"}), node("n2", gpus=2, labels={"rack": "r2"}))
    said = why(cluster, gpus=4, selectors={"label": {"rack": "r2"}})
    assert said == "no node that matches has 4 GPUs; the largest has 2 (n2)"
    assert why(cluster, gpus=1, models=["H100"]) == f"no node has a GPU H100; there are {A100}"
    assert why(cluster, selectors={"label": {"rack": "r3"}}) == "no node has the label rack=r3"


def test_the_same_refusal_of_many_nodes_is_told_once_with_all_names() -> None:
    cluster = cluster_of(*(node(f"n{i}", gpus=2) for i in range(3)), node("n9", gpus=1))
    run(cluster, workload("other", gpus=2, replicas=3))
    explanation = explain(cluster, workload("job", gpus=2))
    assert [(reason.message, nodes) for reason, nodes in explanation.refusals] == [
        ("needs 2 GPUs, 0 free of 2", ("n0", "n1", "n2")),
        ("needs 2 GPUs, has 1", ("n9",)),
    ]
    assert explanation.reason.message == "needs 2 GPUs, 0 free of 2 on n0, the closest of 3 nodes"


def test_no_ready_node_at_all_is_its_own_reason() -> None:
    cluster = cluster_of(
        node("n1", phase=NodeStatus.LOST), node("n2", phase=NodeStatus.LOST), node("n3", phase=NodeStatus.MAINTENANCE)
    )
    explanation = explain(cluster, workload("job"))
    assert explanation.reason.code == Reason.NO_NODE_READY
    assert explanation.reason.message == "none of the 3 nodes is ready: 2 are lost and 1 is in maintenance"
    assert explanation.possible


def test_a_named_node_speaks_for_itself_only() -> None:
    cluster = cluster_of(node("n1", gpus=2), node("n2", gpus=8))
    explanation = explain(cluster, workload("job", gpus=4, selectors=only_on("n1") | {"gpu": {"count": 4}}))
    assert [nodes for _, nodes in explanation.refusals] == [("n1",)]
    assert "n2" not in explanation.reason.message


def test_what_fits_waits_for_its_turn() -> None:
    explanation = explain(cluster_of(node("n1")), workload("job"))
    assert explanation.reason.code == Reason.WAITING_FOR_SCHEDULER
    assert explanation.reason.message == "fits on n1 and waits for its turn"
    assert explanation.refusals == []
    assert explanation.suggestions == []


def test_a_gang_counts_the_room_for_what_is_missing_of_it() -> None:
    cluster = cluster_of(node("n1", gpus=4))
    gang = workload("gang", gpus=1, replicas=5, gang=True)
    explanation = explain(cluster, gang)
    assert explanation.reason.code == Reason.GANG_DOES_NOT_FIT
    assert explanation.reason.message == "needs room for 5 replicas at once, the nodes that match have room for 4"
    assert not explanation.possible
    cluster.set_node(node("n2", gpus=2))
    run(cluster, workload("other", gpus=2))
    assert explain(cluster, gang).reason.message == "needs room for 5 replicas at once, there is room for 4 now"
    assert explain(cluster, gang).possible
    cluster.set_container(container_of(planned(cluster, workload("gang", gpus=1)).placements[0]))
    assert explain(cluster, gang).reason.message == "needs room for 4 replicas at once, there is room for 3 now"


def test_answers_are_kept_until_something_changes() -> None:
    cluster = cluster_of(node("n1", gpus=1))
    first = explain(cluster, workload("a", gpus=2))
    assert explain(cluster, workload("b", gpus=2)) is first
    cluster.set_node(node("n2", gpus=2))
    assert explain(cluster, workload("a", gpus=2)).reason.code == Reason.WAITING_FOR_SCHEDULER


def test_a_plans_refusal_follows_the_cluster_once_that_changed() -> None:
    cluster = cluster_of(node("n1", gpus=1))
    made = planned(cluster, workload("job", gpus=2))
    assert made.refusals["job"].reason.code == Reason.EMPTY_GPU_SELECTOR
    cluster.set_node(node("n1", gpus=2, broken=[0]))
    assert made.refusals["job"].reason.code == Reason.NO_GPU_FREE


def test_replicas_that_got_no_place_are_explained_with_those_placed_counted() -> None:
    cluster = cluster_of(node("n1", gpus=3))
    made = planned(cluster, workload("job", gpus=1, replicas=5))
    assert len(made.placements) == 3
    assert made.refusals["job"].reason.message == "needs 1 GPU, 0 free of 3 on n1"


# ---- what would help


def test_fewer_gpus_are_suggested_when_some_are_free() -> None:
    cluster = cluster_of(node("n1", gpus=8), node("n2", gpus=8))
    run(cluster, workload("train", gpus=6, replicas=2))
    assert suggestions(cluster, gpus=4) == [
        "ask for at most 2 GPUs instead of 4",
        "wait for 2 GPUs, 4 CPUs and 15.7GiB of memory held by vision/train.0.1 on n1",
    ]


def test_less_cpu_and_memory_are_suggested_when_they_are_short() -> None:
    cluster = cluster_of(node("n1", cores=16, memory=100 * GIB))
    run(cluster, workload("other", cpu="14", memory="90GiB"))
    assert suggestions(cluster, cpu="4", memory="1GiB")[0] == "ask for 2 CPUs instead of 4"
    assert suggestions(cluster, cpu="1", memory="32GiB")[0] == "ask for 8192MiB of memory instead of 32GiB"
    both = "ask for 2 CPUs instead of 4, and 8192MiB of memory instead of 32GiB"
    assert suggestions(cluster, cpu="4", memory="32GiB")[0] == both


def test_a_default_that_is_too_much_names_the_field_to_set() -> None:
    cluster = cluster_of(node("n1", cores=16, gpus=2))
    run(cluster, workload("web", cpu="12", memory="1GiB"))
    said = suggestions(cluster, gpus=1)[0]
    assert said == "ask for 4 CPUs instead of 8 (the default): set selectors.cpu.count"


def test_another_model_is_suggested_only_where_it_would_start() -> None:
    cluster = cluster_of(node("n1", gpus=[V100]), node("n2", gpus=1))
    run(cluster, workload("other", gpus=1, models=["A100"]))
    assert suggestions(cluster, gpus=1, models=["A100"])[0] == f"accept {V100} too, in selectors.gpu.product_name"
    run(cluster, workload("another", gpus=1))
    assert [said[:4] for said in suggestions(cluster, gpus=1, models=["A100"])] == ["wait"]


def test_a_selector_that_nothing_matches_is_suggested_to_go() -> None:
    cluster = cluster_of(node("n1", labels={"rack": "r1", "disk": "ssd"}))
    assert suggestions(cluster, selectors={"label": {"rack": "r2"}}) == ["leave the label rack=r2 out"]
    named = suggestions(cluster, selectors=only_on("n7"))
    assert named == ["leave selectors.node.name out to run on any node"]
    both = suggestions(cluster, selectors={"label": {"rack": "r2", "disk": "tape"}})
    assert both == ["leave the labels out"]


def test_more_than_any_node_has_can_be_cut_down_to_the_largest() -> None:
    cluster = cluster_of(node("n1", gpus=8))
    assert suggestions(cluster, gpus=16) == ["ask for at most 8 GPUs instead of 16"]
    run(cluster, workload("other", gpus=8))
    assert suggestions(cluster, gpus=16) == ["ask for at most 8 GPUs, which is what n1 has, and wait for it"]


def test_waiting_names_the_fewest_containers_in_the_way() -> None:
    cluster = cluster_of(node("n1", gpus=4, cores=64))
    run(cluster, workload("small", gpus=1, cpu="1", memory="1GiB", replicas=2))
    run(cluster, workload("large", gpus=2, cpu="1", memory="1GiB"))
    wanted = {"gpus": 2, "cpu": "1", "memory": "1GiB"}
    assert suggestions(cluster, **wanted) == ["wait for 2 GPUs held by vision/large.0.1 on n1"]
    wanted["gpus"] = 3
    held = "vision/large.0.1 and vision/small.0.1"
    assert suggestions(cluster, **wanted) == [f"wait for 3 GPUs held by {held} on n1"]


def test_a_node_that_has_not_joined_is_waited_for_by_who_is_no_gang() -> None:
    coming = node("n1", cores=0, memory=0, phase=NodeStatus.NOT_READY, drivers=())
    coming.status.ClearField("inventory")
    cluster = cluster_of(coming)
    assert suggestions(cluster, cpu="1") == ["wait for n1, which has not joined yet"]
    whole = "set gang to false to start replicas one by one"
    assert suggestions(cluster, cpu="1", replicas=2, gang=True) == [whole]


def test_a_gang_may_start_in_part() -> None:
    cluster = cluster_of(node("n1", gpus=4))
    assert suggestions(cluster, gpus=1, replicas=5, gang=True) == ["set gang to false to start 4 of 5 now"]


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "c"], "a, b and c"),
        (list("abcdef"), "a, b, c, d and 2 more"),
    ],
)
def test_lists_read_like_sentences(items: list[str], text: str) -> None:
    assert listed(items) == text
