"""What goes wrong in a simulation: a list made from the seed before anything runs, so that any part of it can be
left out (`--faults 3,17`) and the rest stays the same.

A fault names its targets by number, or by a share that is resolved when it strikes ("the leader", "some
running container"). Most last for a while; all are over when the storm is.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.sim.network import Host, Link
from tests.sim.processes import Program

if TYPE_CHECKING:
    from tests.sim.world import World

DAY_MS = 86_400_000
LONG_LEASE_S = 3600


@dataclass(frozen=True, slots=True)
class Fault:
    """`luck` is the fault's own randomness: everything about it follows from that."""

    number: int
    at_s: float
    kind: str
    lasts_s: float
    luck: int

    def __str__(self) -> str:
        return f"{self.number}:{self.kind}@{self.at_s:.1f}s+{self.lasts_s:.1f}s"


# Begins the fault and returns how to end it.
End = Callable[[], None]
Strike = Callable[["World", random.Random], End | None]


@dataclass(frozen=True, slots=True)
class Kind:
    weight: int
    least_s: float
    most_s: float
    strike: Strike


KINDS: dict[str, Kind] = {}


def fault(*, weight: int, lasts_s: tuple[float, float] = (0.0, 0.0)) -> Callable[[Strike], Strike]:
    def register(strike: Strike) -> Strike:
        KINDS[strike.__name__.replace("_", "-")] = Kind(weight, *lasts_s, strike)
        return strike

    return register


def make(rng: random.Random, *, count: int, storm_s: float, more: Sequence[str] = ()) -> list[Fault]:
    """So many faults over the time of the storm, half of them of the kinds of which there are to be `more`.

    Long ones are rarer than short ones.
    """
    names = list(KINDS)
    weights = [KINDS[name].weight for name in names]
    times = sorted(rng.uniform(0.0, storm_s) for _ in range(count))
    made = []
    for number, at_s in enumerate(times):
        name = rng.choice(more) if more and rng.random() < 0.5 else rng.choices(names, weights)[0]
        kind = KINDS[name]
        lasts_s = kind.least_s + (kind.most_s - kind.least_s) * rng.random() ** 2
        made.append(Fault(number, at_s, name, min(lasts_s, storm_s - at_s), rng.getrandbits(32)))
    return made


# ---- controllers


def _down(program: Program, *, stop: bool = False) -> End | None:
    if not program.process.alive:
        return None
    if stop:
        program.stop()
    else:
        program.kill()
    return program.start


def _frozen(program: Program) -> End | None:
    process = program.process
    if not process.alive:
        return None
    process.freeze()
    return process.thaw


@fault(weight=3, lasts_s=(0.0, 6.0))
def kill_controller(world: "World", rng: random.Random) -> End | None:
    return _down(rng.choice(world.controllers))


@fault(weight=2, lasts_s=(0.0, 4.0))
def stop_controller(world: "World", rng: random.Random) -> End | None:
    return _down(rng.choice(world.controllers), stop=True)


@fault(weight=3, lasts_s=(0.3, 15.0))
def freeze_controller(world: "World", rng: random.Random) -> End | None:
    return _frozen(rng.choice(world.controllers))


@fault(weight=3, lasts_s=(0.0, 4.0))
def kill_leader(world: "World", rng: random.Random) -> End | None:
    leader = world.leader()
    return _down(leader) if leader is not None else None


@fault(weight=4, lasts_s=(2.0, 12.0))
def freeze_leader(world: "World", rng: random.Random) -> End | None:
    leader = world.leader()
    return _frozen(leader) if leader is not None else None


@fault(weight=1, lasts_s=(0.5, 5.0))
def kill_all_controllers(world: "World", rng: random.Random) -> End | None:
    for controller in world.controllers:
        controller.kill()
    return lambda: [controller.start() for controller in world.controllers] and None


# ---- etcd


@fault(weight=2, lasts_s=(0.5, 8.0))
def kill_member(world: "World", rng: random.Random) -> End | None:
    member = rng.choice(world.etcd.members)
    world.etcd.kill(member, power_cut=rng.random() < 0.3)
    return lambda: world.etcd.start(member)


@fault(weight=2, lasts_s=(0.5, 5.0))
def kill_etcd_leader(world: "World", rng: random.Random) -> End | None:
    member = world.etcd.leader
    if member is None:
        return None
    world.etcd.kill(member)
    return lambda: world.etcd.start(member)


@fault(weight=2, lasts_s=(0.5, 8.0))
def freeze_member(world: "World", rng: random.Random) -> End | None:
    member = rng.choice(world.etcd.members)
    process = member.process
    if not process.alive:
        return None
    world.etcd.freeze(member)
    return lambda: world.etcd.thaw(process)


@fault(weight=1, lasts_s=(1.0, 6.0))
def lose_quorum(world: "World", rng: random.Random) -> End | None:
    doomed = rng.sample(world.etcd.members, 2)
    for member in doomed:
        world.etcd.kill(member)
    return lambda: [world.etcd.start(member) for member in doomed] and None


@fault(weight=4, lasts_s=(0.5, 6.0))
def etcd_misbehaves(world: "World", rng: random.Random) -> End | None:
    share = rng.choice([0.1, 0.3, 0.6])
    world.etcd.flaky += share
    return lambda: setattr(world.etcd, "flaky", max(0.0, world.etcd.flaky - share))


@fault(weight=2, lasts_s=(1.0, 8.0))
def slow_disk(world: "World", rng: random.Random) -> End | None:
    member, factor = rng.choice(world.etcd.members), rng.choice([20.0, 200.0, 800.0])
    member.slowness *= factor
    return lambda: setattr(member, "slowness", member.slowness / factor)


@fault(weight=3, lasts_s=(2.0, 15.0))
def watches_lag(world: "World", rng: random.Random) -> End | None:
    """A member has more to do than to keep its watchers up to date; whoever asks it is answered at once."""
    member, lag_s = rng.choice(world.etcd.members), rng.choice([0.5, 2.0, 6.0])
    member.watch_lag_s += lag_s
    return lambda: setattr(member, "watch_lag_s", max(0.0, member.watch_lag_s - lag_s))


@fault(weight=2)
def hang_up_watches(world: "World", rng: random.Random) -> End | None:
    rng.choice(world.etcd.members).hang_up("etcdserver: watch broken")
    return None


@fault(weight=3)
def compact_all(world: "World", rng: random.Random) -> End | None:
    world.etcd.compact(world.etcd.store._revision)
    return None


@fault(weight=2)
def end_a_lease(world: "World", rng: random.Random) -> End | None:
    # One that somebody keeps alive, and was late; those of receipts are not renewed, and last for a day.
    leases = [number for number, lease in world.etcd.store._leases.items() if lease.ttl_s < LONG_LEASE_S]
    if leases:
        world.etcd.store._end_lease(rng.choice(leases))
    return None


@fault(weight=1)
def etcd_is_full(world: "World", rng: random.Random) -> End | None:
    world.etcd.fill_up()
    return None


# ---- the network


def _cut(links: list[Link]) -> End:
    for link in links:
        link.cut()
    return lambda: [link.heal() for link in links] and None


def _between(world: "World", ones: list[Host], others: list[Host], ways: int) -> list[Link]:
    """ways: 0 from ones to others, 1 back, 2 both."""
    network, links = world.network, []
    for one in ones:
        for other in others:
            if one is not other:
                links += [network.link(one, other)] if ways in (0, 2) else []
                links += [network.link(other, one)] if ways in (1, 2) else []
    return links


def _ways(rng: random.Random) -> int:
    return rng.choice([0, 1, 2, 2])


@fault(weight=4, lasts_s=(0.5, 20.0))
def cut_controller_from_etcd(world: "World", rng: random.Random) -> End | None:
    members = [member.host for member in world.etcd.members]
    some = members if rng.random() < 0.5 else rng.sample(members, rng.randint(1, 2))
    return _cut(_between(world, [rng.choice(world.controllers).host], some, _ways(rng)))


@fault(weight=2, lasts_s=(0.5, 12.0))
def cut_leader_from_etcd(world: "World", rng: random.Random) -> End | None:
    leader = world.leader()
    if leader is None:
        return None
    return _cut(_between(world, [leader.host], [member.host for member in world.etcd.members], _ways(rng)))


@fault(weight=5, lasts_s=(1.0, 60.0))
def cut_agent_off(world: "World", rng: random.Random) -> End | None:
    node = rng.choice(world.agents).host
    controllers = [controller.host for controller in world.controllers]
    return _cut(_between(world, [node], controllers, _ways(rng)))


@fault(weight=3, lasts_s=(0.5, 20.0))
def cut_agent_from_a_controller(world: "World", rng: random.Random) -> End | None:
    return _cut(_between(world, [rng.choice(world.agents).host], [rng.choice(world.controllers).host], _ways(rng)))


@fault(weight=2, lasts_s=(0.5, 20.0))
def cut_controller_from_all_agents(world: "World", rng: random.Random) -> End | None:
    nodes = [agent.host for agent in world.agents]
    return _cut(_between(world, [rng.choice(world.controllers).host], nodes, _ways(rng)))


@fault(weight=2, lasts_s=(0.5, 15.0))
def cut_controllers_apart(world: "World", rng: random.Random) -> End | None:
    one, other = rng.sample(world.controllers, 2)
    return _cut(_between(world, [one.host], [other.host], _ways(rng)))


@fault(weight=2, lasts_s=(0.5, 10.0))
def cut_members_apart(world: "World", rng: random.Random) -> End | None:
    one, other = rng.sample(world.etcd.members, 2)
    return _cut(_between(world, [one.host], [other.host], _ways(rng)))


@fault(weight=2, lasts_s=(0.5, 15.0))
def isolate_member(world: "World", rng: random.Random) -> End | None:
    """From the other members; its clients still reach it."""
    one = rng.choice(world.etcd.members)
    return _cut(_between(world, [one.host], [member.host for member in world.etcd.members], 2))


@fault(weight=2, lasts_s=(0.5, 20.0))
def isolate_host(world: "World", rng: random.Random) -> End | None:
    hosts = list(world.network.hosts.values())
    return _cut(_between(world, [rng.choice(hosts)], hosts, _ways(rng)))


@fault(weight=2, lasts_s=(1.0, 10.0))
def split_in_two(world: "World", rng: random.Random) -> End | None:
    hosts = list(world.network.hosts.values())
    rng.shuffle(hosts)
    half = rng.randrange(2, len(hosts) - 1)
    return _cut(_between(world, hosts[:half], hosts[half:], _ways(rng)))


@fault(weight=2, lasts_s=(0.5, 10.0))
def cut_client_off(world: "World", rng: random.Random) -> End | None:
    client, controller = rng.choice(world.clients).host, rng.choice(world.controllers).host
    return _cut(_between(world, [client], [controller], _ways(rng)))


@fault(weight=2, lasts_s=(1.0, 15.0))
def slow_links(world: "World", rng: random.Random) -> End | None:
    hosts = list(world.network.hosts.values())
    links, factor = _between(world, [rng.choice(hosts)], hosts, _ways(rng)), rng.choice([20.0, 100.0, 500.0])
    for link in links:
        link.slowness *= factor
    return lambda: [setattr(link, "slowness", link.slowness / factor) for link in links] and None


@fault(weight=3)
def reset_connections(world: "World", rng: random.Random) -> End | None:
    """Of one process, all of them: somebody restarted a firewall."""
    process = rng.choice([p.process for p in (*world.controllers, *world.agents)])
    for connection in list(process.connections):
        for end in (connection.client, connection.server):
            world.universe.at(world.universe.now_s, end.process.loop, end.reset, "Connection reset by peer")
    return None


# ---- agents, machines, engines


@fault(weight=3, lasts_s=(0.0, 8.0))
def kill_agent(world: "World", rng: random.Random) -> End | None:
    return _down(rng.choice(world.agents))


@fault(weight=2, lasts_s=(8.0, 45.0))
def lose_agent(world: "World", rng: random.Random) -> End | None:
    """Killed or frozen for so long that its watchdog has to do what it promised."""
    agent = rng.choice(world.agents)
    return _down(agent) if rng.random() < 0.5 else _frozen(agent)


@fault(weight=1)
def kill_watchdog(world: "World", rng: random.Random) -> End | None:
    for watchdog in rng.choice(world.agents).machine.watchdogs:
        watchdog.kill()
    return None


@fault(weight=1, lasts_s=(0.5, 15.0))
def freeze_watchdog(world: "World", rng: random.Random) -> End | None:
    watchdogs = [w for w in rng.choice(world.agents).machine.watchdogs if w.process.alive]
    return _frozen(watchdogs[-1]) if watchdogs else None


@fault(weight=2, lasts_s=(0.0, 20.0))
def stop_agent(world: "World", rng: random.Random) -> End | None:
    return _down(rng.choice(world.agents), stop=True)


@fault(weight=2, lasts_s=(0.5, 15.0))
def freeze_agent(world: "World", rng: random.Random) -> End | None:
    return _frozen(rng.choice(world.agents))


@fault(weight=1, lasts_s=(2.0, 40.0))
def power_cut(world: "World", rng: random.Random) -> End | None:
    agent = rng.choice(world.agents)
    if not agent.machine.up:
        return None
    agent.kill(power_cut=True)
    agent.machine.power_cut()

    def back() -> None:
        world.network.power_on(agent.machine)
        agent.start()

    return back


@fault(weight=2, lasts_s=(0.5, 10.0))
def engine_is_away(world: "World", rng: random.Random) -> End | None:
    machine = rng.choice(world.agents).machine
    machine.trouble("away", True)
    return lambda: machine.trouble("away", False)


@fault(weight=2, lasts_s=(0.5, 15.0))
def engine_hangs(world: "World", rng: random.Random) -> End | None:
    machine = rng.choice(world.agents).machine
    machine.trouble("hangs", True)
    return lambda: machine.trouble("hangs", False)


@fault(weight=3)
def box_crashes(world: "World", rng: random.Random) -> End | None:
    machine = rng.choice(world.agents).machine
    if running := machine.running():
        machine.crash(rng.choice(running), oom=rng.random() < 0.5)
    return None


@fault(weight=2)
def box_is_removed(world: "World", rng: random.Random) -> End | None:
    """By somebody with `docker rm -f`."""
    machine = rng.choice(world.agents).machine
    if machine.boxes and machine.up and not machine.away and not machine.hangs:
        machine.remove(rng.choice(list(machine.boxes.values())))
    return None


# ---- clocks


@fault(weight=5)
def clock_jumps(world: "World", rng: random.Random) -> End | None:
    """And stays so: nobody sets it right."""
    host = rng.choice(list(world.network.hosts.values()))
    host.wall_offset_ms += rng.choice([-3 * DAY_MS, 3 * DAY_MS, -3_600_000, 3_600_000, -20_000, 20_000])
    return None
