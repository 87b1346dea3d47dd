"""What holds for every plan, on any cluster and for any queue.

The oracle below is written from the messages alone, node by node and slowly, and shares no code with the
scheduler but the shares of what was not asked for.
"""

from collections import Counter
from dataclasses import dataclass
from random import Random

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.node_pb2 import Node, NodeSpec, NodeStatus
from pwm.api.v1.workload_pb2 import Container, ContainerStatus, Workload
from pwm.controlplane.core.nodes import has_joined
from pwm.controlplane.core.scheduling.cluster import Cluster
from pwm.controlplane.core.scheduling.explain import explain
from pwm.controlplane.core.scheduling.filters import product_matches
from pwm.controlplane.core.scheduling.nodes import allocatable_memory
from pwm.controlplane.core.scheduling.plan import RESERVE_AFTER_MS, Plan, plan
from pwm.controlplane.core.scheduling.queue import Waiting
from pwm.controlplane.core.scheduling.shares import requirements
from pwm.controlplane.core.scheduling.verdicts import Change
from pwm.quantity import parse_bytes
from tests.unit.scheduling.machines import A100, GIB, T4, V100, cluster_of, container_of, node, waiting_for, workload

thorough = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])

RACKS = ("r1", "r2")
READY_MOSTLY = [NodeStatus.READY] * 5 + [NodeStatus.NOT_READY, NodeStatus.LOST, NodeStatus.DRAINING]
ALLOW = [[], [], [NodeSpec.CPUWorkload, NodeSpec.GPUWorkload], [NodeSpec.GPUWorkload], [NodeSpec.CPUWorkload]]


@st.composite
def nodes(draw: st.DrawFn, name: str) -> Node:
    models = draw(st.lists(st.sampled_from([A100, A100, V100, T4]), max_size=6))
    return node(
        name,
        cores=draw(st.integers(1, 12)),
        memory=draw(st.integers(1, 40)) * GIB + draw(st.integers(0, 3)) * 12_345,
        gpus=models,
        broken=draw(st.sets(st.integers(0, 5), max_size=2)),
        labels={"rack": draw(st.sampled_from(RACKS))},
        phase=draw(st.sampled_from(READY_MOSTLY)),
        allow=draw(st.sampled_from(ALLOW)),
    )


@st.composite
def fleets(draw: st.DrawFn) -> list[Node]:
    return [draw(nodes(f"n{number}")) for number in range(draw(st.integers(1, 5)))]


@st.composite
def workloads(draw: st.DrawFn, name: str) -> Workload:
    gpus = draw(st.sampled_from([0, 0, 1, 1, 2, 3, 5]))
    selectors: dict[str, object] = {}
    if draw(st.integers(0, 4)) == 0:
        selectors["label"] = {"rack": draw(st.sampled_from([*RACKS, "r9"]))}
    if draw(st.integers(0, 6)) == 0:
        selectors["node"] = {"name": draw(st.sampled_from(["n0", "n1", "n9"]))}
    wanted = workload(
        name,
        gpus=gpus,
        models=draw(st.lists(st.sampled_from(["A100", "V100", "Tesla T4", "H100"]), max_size=2)) if gpus else [],
        cpu=draw(st.sampled_from(["", "", "250m", "1", "1.5", "4", "16"])),
        exclusive=draw(st.integers(0, 3)) == 0,
        memory=draw(st.sampled_from(["", "", "300MiB", "2GiB", "10GiB", "64GiB"])),
        affinity=draw(st.sampled_from(["Fill", "Fill", "Distribute", "Random"])),
        replicas=draw(st.integers(1, 4)),
        gang=draw(st.integers(0, 3)) == 0,
        priority=draw(st.sampled_from(["", "low", "high"])),
        selectors=selectors,
    )
    if gpus and draw(st.integers(0, 4)) == 0:
        wanted.spec.selectors.gpu.memory = draw(st.sampled_from(["16GiB", "60GiB"]))
    return wanted


@st.composite
def demands(draw: st.DrawFn) -> list[Workload]:
    return [draw(workloads(f"w{number}")) for number in range(draw(st.integers(1, 6)))]


# ---- the oracle


@dataclass
class Books:
    """What is left of each node, kept by hand."""

    machine: Node
    cpu_millis: int
    memory_bytes: int
    cores: set[int]
    gpus: set[str]

    @staticmethod
    def of(machine: Node, containers: list[Container]) -> "Books":
        inventory = machine.status.inventory
        left = Books(
            machine,
            inventory.cpu_count * 1000,
            allocatable_memory(inventory.memory_bytes),
            set(range(inventory.cpu_count)),
            {gpu.uuid for gpu in inventory.gpus if gpu.healthy},
        )
        for container in containers:
            if container.spec.node == machine.metadata.name:
                left.cpu_millis -= container.spec.resources.cpu_millis
                left.memory_bytes -= container.spec.resources.memory_bytes
                left.cores -= set(container.spec.cpu_ids)
                left.gpus -= set(container.spec.gpu_uuids)
        return left

    def fits(self, wanted: Workload) -> bool:
        """Whether one replica may start here now."""
        selectors, spec, inventory = wanted.spec.selectors, self.machine.spec, self.machine.status.inventory
        need = requirements(wanted, self.machine)
        sort = NodeSpec.GPUWorkload if selectors.gpu.count else NodeSpec.CPUWorkload
        right_gpus = {gpu.uuid for gpu in inventory.gpus if gpu_will_do(wanted, gpu.product_name, gpu.memory_bytes)}
        return (
            self.machine.status.phase == NodeStatus.READY
            and selectors.node.name in ("", self.machine.metadata.name)
            and all(spec.labels[key] == value for key, value in selectors.label.items())
            and (not spec.allow or sort in spec.allow)
            and self.cpu_millis >= need.resources.cpu_millis
            and self.memory_bytes >= need.resources.memory_bytes
            and len(self.cores) >= need.cores
            and len(self.gpus & right_gpus) >= selectors.gpu.count
        )


def gpu_will_do(wanted: Workload, product: str, memory_bytes: int) -> bool:
    gpu = wanted.spec.selectors.gpu
    least = parse_bytes(gpu.memory) if gpu.memory else 0
    named = not gpu.product_name or any(product_matches(name, product) for name in gpu.product_name)
    return named and memory_bytes >= least


def containers_of(made: Plan) -> list[Container]:
    return [container_of(placement) for placement in made.placements]


def plan_for(fleet: list[Node], wanted: list[Workload], *, seed: int = 0) -> Plan:
    return plan(cluster_of(*fleet), [i for w in wanted for i in waiting_for(w)], now_ms=0, seed=seed)


def fits_somewhere(fleet: list[Node], running: list[Container], wanted: Workload) -> bool:
    return any(Books.of(machine, running).fits(wanted) for machine in fleet)


# ---- the properties


@thorough
@given(fleets(), demands(), demands(), st.integers(0, 3))
def test_no_node_is_over_its_capacity_and_no_device_is_given_twice(
    fleet: list[Node], first: list[Workload], second: list[Workload], seed: int
) -> None:
    cluster, running = cluster_of(*fleet), list[Container]()
    for number, wanted in enumerate((first, second)):
        for each in wanted:
            each.metadata.uid = each.metadata.name = f"{each.metadata.name}-{number}"
        made = plan(cluster, [i for w in wanted for i in waiting_for(w)], now_ms=0, seed=seed)
        for container in containers_of(made):
            (machine,) = [m for m in fleet if m.metadata.name == container.spec.node]
            owner = next(w for w in wanted if w.metadata.uid == container.spec.workload_uid)
            left = Books.of(machine, running)
            assert left.fits(owner)
            assert left.gpus >= set(container.spec.gpu_uuids)
            assert left.cores >= set(container.spec.cpu_ids)
            assert len(set(container.spec.gpu_uuids)) == owner.spec.selectors.gpu.count
            products = {gpu.uuid: gpu for gpu in machine.status.inventory.gpus}
            for uuid in container.spec.gpu_uuids:
                assert gpu_will_do(owner, products[uuid].product_name, products[uuid].memory_bytes)
            assert container.spec.resources == requirements(owner, machine).resources
            assert len(container.spec.cpu_ids) == requirements(owner, machine).cores
            running.append(container)
            cluster.set_container(container)
        event(f"placed {min(len(made.placements), 5)}")


@thorough
@given(fleets(), demands())
def test_a_gang_starts_with_all_its_replicas_or_with_none(fleet: list[Node], wanted: list[Workload]) -> None:
    placed = Counter(p.waiting.workload.metadata.uid for p in plan_for(fleet, wanted).placements)
    for each in wanted:
        if each.spec.gang:
            assert placed[each.metadata.uid] in (0, each.spec.replica.count)


@thorough
@given(fleets(), demands(), st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_same_state_gives_the_same_plan_however_it_came_about(
    fleet: list[Node], wanted: list[Workload], seed: int, random: Random
) -> None:
    expected = plan_for(fleet, wanted, seed=seed)
    cluster = Cluster()
    queue = [item for each in wanted for item in waiting_for(each)]
    stray = containers_of(plan_for(fleet, [workload("stray", cpu="250m", memory="1MiB", replicas=3)]))
    shuffled = [*fleet]
    random.shuffle(shuffled)
    random.shuffle(queue)
    for machine in shuffled:
        other = Node()
        other.CopyFrom(machine)
        other.status.phase = NodeStatus.LOST
        cluster.set_node(other)
        explain(cluster, wanted[0])  # so that there are columns to be changed
        for container in stray:
            cluster.set_container(container)
        cluster.set_node(machine)
    for container in stray:
        container.status.phase = ContainerStatus.EXITED
        cluster.set_container(container)
    made = plan(cluster, queue, now_ms=0, seed=seed)
    assert made.placements == expected.placements
    assert list(made.refusals) == list(expected.refusals)
    for uid, explanation in expected.refusals.items():
        assert made.refusals[uid] == explanation


@thorough
@given(fleets(), demands())
def test_nothing_waits_that_could_start(fleet: list[Node], wanted: list[Workload]) -> None:
    made = plan_for(fleet, wanted)
    running = containers_of(made)
    placed = Counter(container.spec.workload_uid for container in running)
    for each in wanted:
        left = each.spec.replica.count - placed[each.metadata.uid]
        assert (each.metadata.uid in made.refusals) == (left > 0)
        if left and not each.spec.gang:
            assert not fits_somewhere(fleet, running, each)


@thorough
@given(fleets(), demands())
def test_every_refusal_has_a_reason_that_is_true(fleet: list[Node], wanted: list[Workload]) -> None:
    made = plan_for(fleet, wanted)
    running = containers_of(made)
    for each in wanted:
        if each.metadata.uid not in made.refusals:
            continue
        explanation = made.refusals[each.metadata.uid]
        code = explanation.reason.code
        event(Reason.Code.Name(code))
        assert explanation.reason.message
        named = each.spec.selectors.node.name
        names = [name for _, refused in explanation.refusals for name in refused]
        assert len(names) == len(set(names)), "a node refuses once"
        if not each.spec.gang:
            asked = {m.metadata.name for m in fleet if named in ("", m.metadata.name)}
            assert set(names) == asked, "every node that was asked refuses"
        true_of_some_node(each, code, fleet, running)


def true_of_some_node(
    wanted: Workload, code: Reason.Code.ValueType, fleet: list[Node], running: list[Container]
) -> None:
    """The claim of a main reason, checked by hand: it holds for a node, and no node is beyond it."""
    selectors = wanted.spec.selectors
    ready = [m for m in fleet if m.status.phase == NodeStatus.READY and selectors.node.name in ("", m.metadata.name)]
    left = [(Books.of(machine, running), requirements(wanted, machine)) for machine in ready]
    gpus = selectors.gpu.count
    if code == Reason.GANG_DOES_NOT_FIT:
        assert wanted.spec.gang
        fits = sum(room_on(machine, running, wanted) for machine in fleet)
        could = sum(room_on(brought_up(machine), [], wanted) for machine in fleet)
        assert 0 < fits < wanted.spec.replica.count or 0 < could < wanted.spec.replica.count
        return
    assert not fits_somewhere(fleet, running, wanted)
    if code == Reason.NO_GPU_FREE:
        assert any(len(books.gpus) < len(books.machine.status.inventory.gpus) >= gpus for books, _ in left)
    elif code == Reason.NO_CPU_FREE:
        assert any(
            books.cpu_millis < need.resources.cpu_millis or len(books.cores) < need.cores for books, need in left
        )
    elif code == Reason.NO_MEMORY_FREE:
        everywhere = [(Books.of(machine, running), requirements(wanted, machine)) for machine in fleet]
        assert any(books.memory_bytes < need.resources.memory_bytes for books, need in everywhere)
    elif code == Reason.EMPTY_NODE_SELECTOR:
        assert selectors.node.name not in {machine.metadata.name for machine in fleet}
    elif code == Reason.EMPTY_LABEL_SELECTOR:
        assert all(machine.spec.labels["rack"] != selectors.label["rack"] for machine in fleet_of(wanted, fleet))
    elif code == Reason.EMPTY_GPU_SELECTOR:
        for books, _ in left:
            matching = [
                g for g in books.machine.status.inventory.gpus if gpu_will_do(wanted, g.product_name, g.memory_bytes)
            ]
            assert len(matching) < gpus or not may_use(wanted, books.machine)
    elif code == Reason.EMPTY_CPU_SELECTOR:
        for books, need in left:
            small = books.machine.status.inventory.cpu_count * 1000 < need.resources.cpu_millis
            assert small or not may_use(wanted, books.machine) or gpus
    elif code == Reason.NODE_TYPE_NOT_ALLOWED:
        assert any(not may_use(wanted, machine) for machine in fleet)
    else:
        assert code in (Reason.NO_NODE_READY, Reason.NODE_UNREACHABLE, Reason.NODE_IN_MAINTENANCE)
        assert any(machine.status.phase != NodeStatus.READY for machine in fleet)


def room_on(machine: Node, running: list[Container], wanted: Workload) -> int:
    """How many replicas fit on one node, placed there one after the other."""
    alone = cluster_of(machine)
    for container in running:
        if container.spec.node == machine.metadata.name:
            alone.set_container(container)
    single = Workload()
    single.CopyFrom(wanted)
    single.spec.gang = False
    return len(plan(alone, waiting_for(single), now_ms=0, seed=0).placements)


def brought_up(machine: Node) -> Node:
    up = Node()
    up.CopyFrom(machine)
    up.status.phase = NodeStatus.READY
    return up


def fleet_of(wanted: Workload, fleet: list[Node]) -> list[Node]:
    return [machine for machine in fleet if wanted.spec.selectors.node.name in ("", machine.metadata.name)]


def may_use(wanted: Workload, machine: Node) -> bool:
    selectors = wanted.spec.selectors
    sort = NodeSpec.GPUWorkload if selectors.gpu.count else NodeSpec.CPUWorkload
    labelled = all(machine.spec.labels[key] == value for key, value in selectors.label.items())
    return labelled and (not machine.spec.allow or sort in machine.spec.allow)


@thorough
@given(fleets(), demands(), demands())
def test_a_suggestion_that_is_followed_lets_the_workload_start(
    fleet: list[Node], before: list[Workload], wanted: list[Workload]
) -> None:
    cluster = cluster_of(*fleet)
    for container in containers_of(plan_for(fleet, before)):
        container.metadata.uid = f"before/{container.metadata.uid}"
        container.spec.workload_uid = f"before/{container.spec.workload_uid}"
        cluster.set_container(container)
    for each in wanted:
        made = plan(cluster, waiting_for(each), now_ms=0, seed=0)
        if each.metadata.uid not in made.refusals or made.placements:
            continue
        for change in made.refusals[each.metadata.uid].changes:
            if not change.at_once:
                # Nobody knows what a node has that has not joined.
                unknown = any(not has_joined(node) for node in fleet)
                assert made.refusals[each.metadata.uid].possible or change.fields or unknown
                continue
            event(change.fields[0][0].split(".label.")[0])
            helped = plan(cluster, waiting_for(followed(each, change)), now_ms=0, seed=0).placements
            assert len(helped) == each.spec.replica.count if followed(each, change).spec.gang else helped


def followed(wanted: Workload, change: Change) -> Workload:
    """The workload as it is when the user does what the suggestion says."""
    changed = Workload()
    changed.CopyFrom(wanted)
    selectors = changed.spec.selectors
    for field, value in change.fields:
        if field == "selectors.gpu.count":
            selectors.gpu.count = int(value)
        elif field == "selectors.gpu.product_name":
            selectors.gpu.product_name.append(value)
        elif field == "selectors.gpu.memory":
            selectors.gpu.memory = value
        elif field == "selectors.cpu.count":
            selectors.cpu.count = value
        elif field == "selectors.node.name":
            selectors.node.name = value
        elif field.startswith("selectors.label."):
            del selectors.label[field.removeprefix("selectors.label.")]
        elif field == "config.memory":
            changed.spec.config.memory = value
        else:
            assert field == "gang", field
            changed.spec.gang = False
    return changed


@thorough
@given(fleets(), demands(), st.data())
def test_the_accounting_is_the_same_after_any_history(
    fleet: list[Node], wanted: list[Workload], data: st.DataObject
) -> None:
    cluster = Cluster()
    known: dict[str, Node] = {}
    containers = {c.metadata.uid: c for c in containers_of(plan_for(fleet, wanted))}
    live: dict[str, Container] = {}
    for _ in range(data.draw(st.integers(5, 25))):
        what = data.draw(st.sampled_from(["node", "drop node", "start", "start", "end", "look"]))
        machine = data.draw(st.sampled_from(fleet))
        if what == "node":
            known[machine.metadata.name] = machine
            cluster.set_node(machine)
        elif what == "drop node":
            known.pop(machine.metadata.name, None)
            cluster.drop_node(machine.metadata.name)
        elif what == "look":
            explain(cluster, wanted[0])
        elif containers:
            uid = data.draw(st.sampled_from(sorted(containers)))
            container = Container()
            container.CopyFrom(containers[uid])
            if what == "end":
                container.status.phase = ContainerStatus.FAILED
                live.pop(uid, None)
            else:
                live[uid] = container
            cluster.set_container(container)
    for machine in known.values():
        left = Books.of(machine, list(live.values()))
        state = cluster.nodes[machine.metadata.name]
        assert state.capacity.cpu_millis - state.used.cpu_millis == left.cpu_millis
        assert state.capacity.memory_bytes - state.used.memory_bytes == left.memory_bytes
        assert {gpu.uuid for gpu in state.free_gpus()} == left.gpus
        assert set(range(state.cores)) - state.core_holders.keys() == left.cores
    fresh = cluster_of(*known.values())
    for container in live.values():
        fresh.set_container(container)
    queue = [Waiting(w, 100 + i, 1, 0) for w in wanted for i in range(w.spec.replica.count)]
    assert plan(cluster, queue, now_ms=0, seed=1).placements == plan(fresh, queue, now_ms=0, seed=1).placements


@thorough
@given(fleets(), demands(), demands())
def test_a_head_that_waited_long_starts_as_soon_as_its_node_is_empty(
    fleet: list[Node], running: list[Workload], behind: list[Workload]
) -> None:
    cluster = cluster_of(*fleet)
    for container in containers_of(plan_for(fleet, running)):
        container.metadata.uid = f"running/{container.metadata.uid}"
        cluster.set_container(container)
    head = workload("head", gpus=1, cpu="1", memory="1GiB", priority="1000")
    queue = [*waiting_for(head), *(i for w in behind for i in waiting_for(w, since_ms=1))]
    before = plan(cluster, queue, now_ms=RESERVE_AFTER_MS, seed=0)
    if before.placements and before.placements[0].waiting.workload is head:
        event("started at once")
        return
    for placement in before.placements:
        cluster.set_container(container_of(placement))
    for uid in [uid for state in cluster.nodes.values() for uid in state.holdings if uid.startswith("running/")]:
        cluster.drop_container(uid)
    after = plan(cluster, waiting_for(head), now_ms=RESERVE_AFTER_MS, seed=0)
    able = plan(cluster_of(*fleet), waiting_for(head), now_ms=0, seed=0)
    event("starts now" if able.placements else "can never start")
    assert bool(after.placements) == bool(able.placements)
