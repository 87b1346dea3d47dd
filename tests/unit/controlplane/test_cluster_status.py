"""`pwm admin status` and what a drill refuses, for control planes in every state of disrepair."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.common_pb2 import Actor
from pwm.api.v1.events_pb2 import NodeJoined
from pwm.api.v1.node_pb2 import Inventory
from pwm.api.v1.peer_pb2 import FREEZE, KILL, DescribeResponse, FailRequest
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import timestamp
from pwm.controlplane.core.decide import Change
from pwm.controlplane.core.nodes import DEFAULT_TIMES, Contact
from pwm.controlplane.errors import ApiError
from pwm.controlplane.replicas import CannotFail
from pwm.controlplane.services.cluster_status import ClusterStatus
from pwm.controlplane.services.drill import Drill
from pwm.controlplane.store.kv import Member, Status
from tests.unit.controlplane.conftest import Plane

NOW_MS = 1_700_000_000_000
ZONE, CHORES = "zone/default", "cluster"


@dataclass
class Cluster:
    """Three replicas a, b and c of which a answers; a test breaks what it likes."""

    plane: Plane
    replicas: dict[str, dict[str, object]] = field(default_factory=dict)
    described: dict[str, DescribeResponse] = field(default_factory=dict)
    leaders: list[tuple[str, str, int]] = field(default_factory=list)
    members: list[Member] = field(default_factory=lambda: [Member(f"m{i}", f"h{i}:1") for i in range(3)])
    alarms: tuple[str, ...] = ()
    failed: list[tuple[str, FailRequest]] = field(default_factory=list)
    cannot_fail: str = ""

    def __post_init__(self) -> None:
        for name in "abc":
            self.replicas[name] = {"address": f"http://{name}:4700", "version": "3.0.0", "started_ms": NOW_MS}
            self.described[name] = DescribeResponse(
                replica=name, revision=self.plane.view.revision, time=timestamp(NOW_MS)
            )
        self.leaders = [(CHORES, "b", NOW_MS), (ZONE, "a", NOW_MS)]
        self.described["a"].roles.append(ZONE)
        self.described["b"].roles.append(CHORES)

    # What it stands in for: presence (`replicas`), etcd's status, and the replicas.

    async def status(self) -> Status:
        return Status(self.plane.view.revision, tuple(self.members), self.alarms)

    async def describe(self) -> dict[str, DescribeResponse]:
        return self.described

    async def fail(self, replica: str, request: FailRequest) -> None:
        if self.cannot_fail:
            raise CannotFail(self.cannot_fail)
        self.failed.append((replica, request))

    async def who_leads(self) -> list[tuple[str, str, int]]:
        return self.leaders

    def contact(self, node: str) -> Contact:
        connected = any(agent.node == node for said in self.described.values() for agent in said.agents)
        return Contact(connected=connected, silent_ms=20_000)

    def lose(self, replica: str) -> None:
        """It is gone for good: announced no longer."""
        del self.replicas[replica], self.described[replica]

    @property
    def asked(self) -> ClusterStatus:
        itself: Any = self
        return ClusterStatus(
            replica="a",
            view=self.plane.view,
            store=self.plane.store,
            kv=itself,
            presence=itself,
            replicas=itself,
            clock=Clock(),
            leaders=self.who_leads,
            roles=lambda: {ZONE, CHORES},
            times=DEFAULT_TIMES,
            stale_since_ms=lambda: 0,
            doubt=lambda: None,
        )

    async def warnings(self) -> list[str]:
        return list((await self.asked.read()).warnings)

    async def drill(self, **request: Any) -> api.DrillResponse:
        itself: Any = self
        drill = Drill(status=self.asked, replicas=itself, clock=Clock())
        return await drill.run(api.DrillRequest(**{"role": ZONE, "failure": KILL, **request}), by="ann")


@pytest.fixture
def cluster(plane: Plane) -> Cluster:
    return Cluster(plane)


async def test_a_whole_cluster_has_no_warnings_and_every_replica_is_told(cluster: Cluster) -> None:
    cluster.described["b"].agents.add(node="n1", epoch=4)
    answer = await cluster.asked.read()
    assert list(answer.warnings) == []
    assert [(r.id, r.answering, list(r.roles), r.lag, r.agents) for r in answer.replicas] == [
        ("a", True, [ZONE], 0, 0),
        ("b", False, [CHORES], 0, 1),
        ("c", False, [], 0, 0),
    ]
    assert [(x.role, x.replica, x.at_work) for x in answer.leaders] == [(CHORES, "b", True), (ZONE, "a", True)]


async def test_a_replica_that_does_not_answer_is_said_with_what_it_leads(cluster: Cluster) -> None:
    del cluster.described["b"]
    answer = await cluster.asked.read()
    assert answer.replicas[1].trouble == "does not answer"
    assert not answer.leaders[0].at_work
    assert list(answer.warnings) == [
        "replica b (http://b:4700) does not answer: it hangs, or is cut off, and leads cluster until its lease ends"
    ]


async def test_a_replica_behind_is_counted_in_revisions(cluster: Cluster) -> None:
    for _ in range(3):
        await cluster.plane.kv.put(b"/test/head/Group/a", b"")
    newest = await cluster.plane.store.newest_event(after_revision=0)
    cluster.plane.view.revision = newest
    for name in "ab":
        cluster.described[name].revision = newest
    cluster.described["c"].revision = newest - 2
    answer = await cluster.asked.read()
    assert [replica.lag for replica in answer.replicas] == [0, 0, 2]


async def test_roles_without_a_leader_are_said(cluster: Cluster) -> None:
    cluster.leaders = [(CHORES, "gone", NOW_MS)]
    assert await cluster.warnings() == [
        "cluster is led by gone, which is not here: its lease ends in a few seconds",
        "nobody leads zone/default: nothing is placed there until a replica takes over",
    ]


@pytest.mark.parametrize(
    ("members", "replicas", "warning"),
    [
        (1, 1, ""),
        (1, 3, "etcd has one member: while it is away nothing can be changed, however many controllers there are"),
        (4, 3, "etcd has 4 members and survives the loss of 1, as with 3: use an odd number"),
        (3, 3, ""),
    ],
)
async def test_the_number_of_etcd_members_matters_with_several_replicas(
    cluster: Cluster, members: int, replicas: int, warning: str
) -> None:
    cluster.members = [Member(f"m{i}", f"h{i}:1") for i in range(members)]
    cluster.leaders = [(CHORES, "a", NOW_MS), (ZONE, "a", NOW_MS)]
    for name in "bc"[: 3 - replicas]:
        cluster.lose(name)
    assert await cluster.warnings() == ([warning] if warning else [])


async def test_clocks_versions_deafness_and_alarms_are_said(cluster: Cluster) -> None:
    cluster.described["b"].time.FromMilliseconds(NOW_MS + 5_000)
    cluster.replicas["c"]["version"] = "3.1.0"
    cluster.replicas["b"]["deaf"] = True
    cluster.alarms = ("NOSPACE",)
    warnings = "\n".join(await cluster.warnings())
    assert "the clock of replica b (http://b:4700) is 5.0 s ahead of that of the one that answers" in warnings
    assert "replicas run different versions (3.0.0, 3.1.0)" in warnings
    assert "no agent reaches replica b" in warnings
    assert "NOSPACE" in warnings


# ---- drills


async def test_a_drill_makes_the_leader_fail_and_names_it(cluster: Cluster) -> None:
    answer = await cluster.drill()
    assert answer.replica == "a"
    assert [(replica, request.failure, request.role) for replica, request in cluster.failed] == [("a", KILL, ZONE)]


async def test_a_freeze_is_longer_than_a_lease_unless_said(cluster: Cluster) -> None:
    await cluster.drill(failure=FREEZE)
    assert cluster.failed[0][1].freeze.ToMilliseconds() == 5_000
    too_long = api.DrillRequest()
    too_long.freeze.FromSeconds(61)
    with pytest.raises(ApiError, match="up to a minute"):
        await cluster.drill(failure=FREEZE, freeze=too_long.freeze)


async def test_a_request_that_arrives_twice_does_harm_once(cluster: Cluster) -> None:
    await cluster.drill(replica="a")
    cluster.leaders = [(ZONE, "b", NOW_MS)]
    cluster.described["b"].roles.append(ZONE)
    with pytest.raises(ApiError, match="led by b, not by a any more"):
        await cluster.drill(replica="a")
    assert len(cluster.failed) == 1


async def test_what_makes_a_drill_dangerous_is_refused(cluster: Cluster) -> None:
    with pytest.raises(ApiError, match="which failure"):
        await cluster.drill(failure=0)
    with pytest.raises(ApiError, match="nobody leads 'zone/moon'"):
        await cluster.drill(role="zone/moon")
    cluster.described["a"].roles.remove(ZONE)
    with pytest.raises(ApiError, match="only just begun"):
        await cluster.drill()
    cluster.described["b"].stale_since.FromMilliseconds(NOW_MS)
    with pytest.raises(ApiError, match=r"replica b .* cannot reach etcd"):
        await cluster.drill()
    del cluster.described["c"]
    cluster.lose("b")
    with pytest.raises(ApiError, match=r"replica c .* does not answer"):
        await cluster.drill()
    del cluster.replicas["c"]
    with pytest.raises(ApiError, match="one replica only") as caught:
        await cluster.drill()
    assert "pwm controller" in caught.value.problems[0].next_step
    assert cluster.failed == []


async def test_a_leader_that_cannot_be_asked_is_said(cluster: Cluster) -> None:
    cluster.cannot_fail = "replica a could not be asked: gone"
    with pytest.raises(ApiError, match="could not be asked"):
        await cluster.drill()


async def test_silence_of_half_of_the_nodes_is_told_as_one(cluster: Cluster, plane: Plane) -> None:
    joined = NodeJoined(inventory=Inventory(cpu_count=8))
    silent, heard = ["n1", "n2"], ["n3", "n4"]
    nodes = [Change("Node", name, name, "", None, (joined,)) for name in (*silent, *heard)]
    await plane.commands.run(lambda: nodes, actor=Actor(name="test"))
    for name in heard:
        cluster.described["a"].agents.add(node=name)
    found = await cluster.warnings()
    assert any(warning.startswith("2 of 4 nodes are silent: the network is the suspect") for warning in found), found
    cluster.described["b"].agents.add(node="n2")
    assert not any("the suspect" in warning for warning in await cluster.warnings())
