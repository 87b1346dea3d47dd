"""The faults, each as what is done and what is measured. Every scenario leaves the cluster whole.

A scenario is run many times; what it returns are named figures (seconds, mostly), of which the report shows the
distribution. Promises that are not figures (nothing lost, nothing doubled, nothing touched) are the judge's.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.faults.bench_put import Putter
from tests.faults.cluster import FaultCluster, until
from tests.faults.judge import Judge
from tests.faults.ledger import Ledger
from tests.faults.network import Host

ZONE = "zone/default"
LEASE_S = 3.0
# What takes longer has failed; how long it took is in the figures.
LIMIT_S = 120.0
# Between two faults, so that each meets a cluster that has settled.
CALM_S = 0.5

Figures = dict[str, float]


@dataclass
class Scene:
    cluster: FaultCluster
    ledger: Ledger
    judge: Judge
    putter: Putter
    rng: random.Random
    number: int = 0

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def leader(self) -> Host:
        return self.cluster.host_of(self.judge.leader(ZONE))

    def others(self, host: Host) -> list[Host]:
        return [each for each in self.cluster.controllers if each is not host]

    async def etcd_leader(self) -> Host:
        async def leading() -> Host | None:
            members = await self.putter.members(self.cluster.etcds)
            return next((host for host, member in members.items() if member.leader), None)

        leader = await until(leading, "etcd has a leader")
        assert leader is not None
        return leader

    async def begin_workload(self, *, command: Sequence[str] = ("true",), cpu: str = "10m", **spec: Any) -> str:
        """A workload for the next leader to place. Applied, from now on, at whatever controller lives."""
        self.number += 1
        name = f"probe-{self.number}"
        await self.ledger.apply_until_acknowledged(name, command=command, cpu=cpu, **spec)
        return name

    async def remove_workload(self, name: str) -> None:
        await self.ledger.delete_until_acknowledged(name)

    async def settle(self) -> None:
        await self.cluster.revive()
        await asyncio.sleep(CALM_S)


async def leader_killed(scene: Scene) -> Figures:
    """kill -9 of the leading controller, and at that moment a workload is applied."""
    leader, began_s = scene.leader(), scene.now_s()
    scene.cluster.kill(leader.name)
    figures = await taken_over(scene, began_s)
    await scene.settle()
    return figures


async def leader_stopped(scene: Scene) -> Figures:
    """SIGTERM to the leading controller, as at an upgrade."""
    leader, began_s = scene.leader(), scene.now_s()
    scene.cluster.stop(leader.name)
    figures = await taken_over(scene, began_s)
    await asyncio.to_thread(scene.cluster.processes[leader.name].wait)
    await scene.settle()
    return figures


async def leader_frozen(scene: Scene) -> Figures:
    """SIGSTOP of the leading controller until long after another leads; then it goes on with what it believes."""
    leader, began_s = scene.leader(), scene.now_s()
    scene.cluster.freeze(leader.name)
    figures = await taken_over(scene, began_s)
    await asyncio.sleep(1.0)
    scene.cluster.thaw(leader.name)
    await scene.settle()
    return figures


async def leader_cut_from_etcd(scene: Scene) -> Figures:
    """The leading controller reaches everybody but etcd."""
    leader, began_s = scene.leader(), scene.now_s()
    for member in scene.cluster.etcds:
        scene.cluster.network.cut(leader, member)
    figures = await taken_over(scene, began_s)
    await scene.settle()
    return figures


async def leader_unheard(scene: Scene) -> Figures:
    """What the leading controller sends arrives nowhere; what others send arrives there."""
    leader, began_s = scene.leader(), scene.now_s()
    for host in (*scene.cluster.etcds, *scene.others(leader), *scene.cluster.nodes):
        scene.cluster.network.cut(leader, host, both_ways=False)
    figures = await taken_over(scene, began_s)
    await scene.settle()
    return figures


async def both_leaders_killed(scene: Scene) -> Figures:
    """kill -9 of the leading controller and of etcd's leader at once."""
    leader, member = scene.leader(), await scene.etcd_leader()
    began_s = scene.now_s()
    scene.cluster.kill(member.name)
    scene.cluster.kill(leader.name)
    figures = await taken_over(scene, began_s)
    figures["etcd_gap"] = scene.putter.gap_s(began_s, scene.now_s())
    figures["ledger_gap"] = scene.ledger.books.gap_s(began_s, scene.now_s())
    figures["takeover_over_etcd_gap"] = figures["placed"] / figures["etcd_gap"]
    await scene.settle()
    return figures


async def taken_over(scene: Scene, began_s: float) -> Figures:
    placing = asyncio.ensure_future(scene.begin_workload())
    won = await scene.judge.won_after(ZONE, began_s, limit_s=LIMIT_S)
    name = await placing
    placed = await scene.judge.placed_after(name, began_s, limit_s=LIMIT_S)
    return {"won": won, "placed": placed}


async def etcd_member_killed(scene: Scene) -> Figures:
    """kill -9 of one etcd member that does not lead."""
    leading = await scene.etcd_leader()
    member = scene.rng.choice([host for host in scene.cluster.etcds if host is not leading])
    began_s = scene.now_s()
    scene.cluster.kill(member.name)
    await asyncio.sleep(2.0)
    figures = {"ledger_gap": scene.ledger.books.gap_s(began_s, scene.now_s())}
    await scene.settle()
    return figures


async def etcd_member_frozen(scene: Scene) -> Figures:
    """SIGSTOP of any etcd member for a while."""
    member = scene.rng.choice(scene.cluster.etcds)
    began_s = scene.now_s()
    scene.cluster.freeze(member.name)
    await asyncio.sleep(4.0)
    scene.cluster.thaw(member.name)
    await writes_go_on(scene, scene.now_s())
    figures = {"ledger_gap": scene.ledger.books.gap_s(began_s, scene.now_s())}
    await scene.settle()
    return figures


async def quorum_lost(scene: Scene) -> Figures:
    """Two of three etcd members killed: writes are refused in good time, reads go on, and it recovers by itself."""
    books = scene.ledger.books
    killed = scene.rng.sample(scene.cluster.etcds, 2)
    answered = len(books.unavailable_s)
    for member in killed:
        scene.cluster.kill(member.name)

    async def refused() -> bool:
        return len(books.unavailable_s) > answered

    await until(refused, "a write is answered 503", limit_s=LIMIT_S)
    await until(lambda: scene.cluster.ask("/v1/resources/workload?allGroups=true"), "reads go on", limit_s=LIMIT_S)
    refused_s = max(books.unavailable_s[answered:])
    began_s = scene.now_s()
    for member in killed:
        scene.cluster.start_part(member.name)
    await scene.putter.first_put_after(began_s, limit_s=LIMIT_S)
    quorum_s = scene.now_s()
    await writes_go_on(scene, quorum_s)
    figures = {"refused_after": refused_s, "first_write_after_quorum": scene.now_s() - quorum_s}
    await scene.settle()
    return figures


async def agent_killed(scene: Scene) -> Figures:
    """kill -9 of an agent; it is started again at once."""
    node = scene.rng.choice(scene.cluster.nodes)
    scene.cluster.kill(node.name)
    scene.cluster.start_part(node.name)
    began_s = scene.now_s()
    await until(lambda: scene.cluster.node_is(node.name, "READY"), f"{node.name} is back", limit_s=LIMIT_S)
    figures = {"back": scene.now_s() - began_s}
    await scene.settle()
    return figures


async def agent_cut_off(scene: Scene) -> Figures:
    """A node is cut off from everything, for less than the time after which it would count as lost."""
    node = scene.rng.choice(scene.cluster.nodes)
    scene.cluster.network.isolate(node)
    await asyncio.sleep(scene.rng.uniform(1.0, 8.0))
    scene.cluster.network.mend()
    began_s = scene.now_s()
    await until(lambda: scene.cluster.node_is(node.name, "READY"), f"{node.name} is back", limit_s=LIMIT_S)
    figures = {"back": scene.now_s() - began_s}
    await scene.settle()
    return figures


async def docker_killed(scene: Scene) -> Figures:
    """kill -9 of dockerd (live-restore), which is started again at once."""
    await asyncio.to_thread(scene.cluster.docker.kill)
    await asyncio.to_thread(scene.cluster.start_docker)
    began_s = scene.now_s()
    for node in scene.cluster.nodes:
        await until(lambda node=node: scene.cluster.node_is(node.name, "READY"), f"{node.name} is back")
    figures = {"back": scene.now_s() - began_s}
    await scene.settle()
    return figures


async def links_flap(scene: Scene) -> Figures:
    """Links of random hosts come and go for a while."""
    began_s = scene.now_s()
    hosts = [*scene.cluster.etcds, *scene.cluster.controllers, *scene.cluster.nodes]
    for _ in range(6):
        one, other = scene.rng.sample(hosts, 2)
        scene.cluster.network.cut(one, other, both_ways=scene.rng.random() < 0.5)
        await asyncio.sleep(scene.rng.uniform(0.1, 0.8))
        scene.cluster.network.mend()
        await asyncio.sleep(scene.rng.uniform(0.05, 0.3))
    await writes_go_on(scene, scene.now_s())
    figures = {"ledger_gap": scene.ledger.books.gap_s(began_s, scene.now_s())}
    await scene.settle()
    return figures


async def packets_lost(scene: Scene) -> Figures:
    """Five percent of all packets are lost, everywhere."""
    began_s = scene.now_s()
    for host in (*scene.cluster.etcds, *scene.cluster.controllers, *scene.cluster.nodes):
        scene.cluster.network.lose(host, 0.05)
    await asyncio.sleep(5.0)
    scene.cluster.network.mend()
    figures = {"ledger_gap": scene.ledger.books.gap_s(began_s, scene.now_s())}
    await scene.settle()
    return figures


async def everything_killed(scene: Scene) -> Figures:
    """kill -9 of all controllers and all agents at once: containers go on, nothing is forgotten."""
    for host in (*scene.cluster.controllers, *scene.cluster.nodes):
        scene.cluster.kill(host.name)
    began_s = scene.now_s()
    await scene.cluster.revive()
    await writes_go_on(scene, began_s)
    figures = {"ledger_gap": scene.ledger.books.gap_s(began_s, scene.now_s())}
    await scene.settle()
    return figures


async def writes_go_on(scene: Scene, moment_s: float, *, limit_s: float = LIMIT_S) -> None:
    async def acknowledged() -> bool:
        return scene.ledger.books.first_ack_after(moment_s) is not None

    await until(acknowledged, "writes go on", limit_s=limit_s)
