"""A whole PWM in one process and virtual time: real controllers, agents and store clients on simulated etcd, network,
clocks and Docker, with clients that keep a ledger and a list of faults. Everything random comes from the seed.

A run: everything starts in calm; then the storm, in which clients work and faults strike; then calm again, in
which everything has to settle. The judge (`checker`) looks at every transaction and every container.
"""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pwm.api.v1.common_pb2 import Actor
from pwm.api.v1.events_pb2 import TokenIssued, UserApplied
from pwm.api.v1.identity_pb2 import ResourceLimits, TokenSpec, UserSpec
from pwm.controlplane.auth import token_uid
from pwm.controlplane.core.decide import Change, change
from pwm.controlplane.core.nodes import NodeTimes
from pwm.controlplane.view import View
from tests.sim import faults
from tests.sim.checker import Broken, Checker
from tests.sim.docker import Machine
from tests.sim.etcd import PORT as ETCD_PORT
from tests.sim.etcd import EtcdCluster
from tests.sim.faults import Fault
from tests.sim.loop import ProcessFailed, Universe
from tests.sim.network import Host, Network
from tests.sim.processes import KEYS, NODE_TOKEN, Client, Command, Controller, NodeAgent
from tests.sim.watchdogs import Guard

WALL_MS = 1_700_000_000_000
# Before the first fault, everything runs; if not by then, something is wrong without any fault.
START_S = 20.0
STORM_S = 75.0
FAULTS = 45
# I7 gives two minutes after the last fault.
CALM_S = 120.0
LOOK_EVERY_S = 3.0
VIEWS_EVERY_S = 10.0
COMMANDS = 25
# The share of worlds in which there are limits.
LIMITED = 0.4
# When a silent node is lost; grace and self-fence follow from it. By default two minutes: too long to see much.
LOST_AFTER_MS = (10_000, 10_000, 14_000)
# Clocks run by so much too fast or slow at the most; ordinary ones are a hundred times better.
DRIFT = 0.005


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a world is; from the seed, too."""

    controllers: int
    machines: int
    clients: int


class World:
    """One run. `only` leaves out all faults but those, `commands` all commands but those."""

    def __init__(
        self,
        seed: int,
        *,
        only: Collection[int] | None = None,
        commands: Collection[int] | None = None,
        more: Sequence[str] = (),
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """`more`: kinds of faults that strike more often. `tell` is given a line for each thing that happens."""
        self.seed = seed
        self._tell = tell
        rng = self._rng("shape")
        self.shape = Shape(rng.choice([2, 3, 3]), rng.choice([2, 3, 4]), 2)
        made = faults.make(self._rng("faults"), count=FAULTS, storm_s=STORM_S, more=more)
        self.faults = [f for f in made if only is None or f.number in only]
        self.struck = 0
        self.universe = Universe()
        self.network = Network(self.universe, self._rng("network"))
        times = NodeTimes.of(lost_after_ms=rng.choice(LOST_AFTER_MS))
        self.checker = Checker(KEYS, self.universe, times=times, tell=tell)
        hosts = [self._host(f"e{i}", rng) for i in range(3)]
        self.etcd = EtcdCluster(self.network, self._rng("etcd"), hosts, self._committed)
        members = [f"{host.name}:{ETCD_PORT}" for host in hosts]
        self.controllers = [
            Controller(self.network, self._host(f"c{i}", rng), etcd=members, seed=seed, times=times, judge=self.checker)
            for i in range(self.shape.controllers)
        ]
        self.agents = [self._agent(i, rng) for i in range(self.shape.machines)]
        self.clients = self._clients(commands)
        self._last_trouble = ""

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.seed} {purpose}")

    def _host(self, name: str, rng: random.Random) -> Host:
        wall_ms = WALL_MS + rng.choice([0, 0, rng.randint(-2000, 2000)])
        return self.network.add(Host(name, rate=1 + rng.uniform(-DRIFT, DRIFT), wall_ms=wall_ms))

    def _agent(self, number: int, rng: random.Random) -> NodeAgent:
        machine = Machine(
            self.network, f"n{number}", gpus=rng.choice([0, 2, 4]), cpus=8, seed=self.seed,
            rate=1 + rng.uniform(-DRIFT, DRIFT), wall_ms=WALL_MS, witness=self.checker,
        )  # fmt: skip
        self.network.add(machine)
        servers = [controller.agents_address for controller in self.controllers]
        shift = number % len(servers)
        return NodeAgent(
            self.network, machine, servers=servers[shift:] + servers[:shift], judge=self.checker,
            guard=lambda machine, agent: Guard(self.network, machine, agent, judge=self.checker),
        )  # fmt: skip

    def _clients(self, only: Collection[int] | None) -> list[Client]:
        clients = []
        for i in range(self.shape.clients):
            rng = self._rng(f"client {i}")
            times = sorted(rng.uniform(0.0, STORM_S) for _ in range(COMMANDS))
            commands = [self._command(rng, i, i * COMMANDS + n, at_s) for n, at_s in enumerate(times)]
            kept = [c for c in commands if only is None or c.number in only]
            servers = [controller.users_address for controller in self.controllers]
            host = self.network.add(Host(f"k{i}", wall_ms=WALL_MS))
            clients.append(Client(self.network, host, servers=servers, commands=kept, ledger=self.checker))
        return clients

    @staticmethod
    def _command(rng: random.Random, client: int, number: int, at_s: float) -> Command:
        verb = rng.choice(["apply", "apply", "apply", "note", "note", "scale", "scale", "stop", "restart", "delete"])
        if verb == "note":
            return Command(number, at_s, verb, f"ledger{client}", number)
        value = rng.randint(0, 4) if verb == "scale" else rng.getrandbits(16)
        return Command(number, at_s, verb, f"w{rng.randrange(5)}", value)

    # ---- a run

    def run(self) -> None:
        """Raises Broken, or whatever else went wrong."""
        self._begin()
        start_s = self.universe.now_s
        for fault in self.faults:
            self.universe.later(fault.at_s, self._strike, fault)
        for client in self.clients:
            client.start()
        self.universe.later(VIEWS_EVERY_S, self._look_at_views)
        self.universe.run(lambda: self.universe.now_s >= start_s + STORM_S)
        self._calm_down()
        self._settle()
        self.checker.check_ledger()

    def _begin(self) -> None:
        for controller in self.controllers:
            controller.start()
        self._run_until(lambda: any(c.serving for c in self.controllers), "no controller serves")
        self._issue_token()
        self._limit()
        for agent in self.agents:
            agent.start()
        self._run_until(lambda: not self._trouble(), "the cluster does not begin")

    def _run_until(self, condition: Any, otherwise: str) -> None:
        deadline = self.universe.now_s + START_S
        self.universe.run(lambda: condition() or self.universe.now_s > deadline)
        if not condition():
            raise Broken(f"I7: {otherwise}: {self._last_trouble}")

    def _issue_token(self) -> None:
        uid = token_uid(NODE_TOKEN)
        token = Change("Token", uid, uid, "", None, (TokenIssued(spec=TokenSpec(node="pwm.all")),))
        self._change(lambda view: [token])

    def _limit(self) -> None:
        """In some worlds, what the user whom all clients are may have at once."""
        rng = self._rng("limits")
        if rng.random() >= LIMITED:
            return
        limits = ResourceLimits()
        limits.gpus.total, limits.cpus.total = rng.randint(1, 4), rng.randint(3, 9)
        limits.workloads.concurrently = rng.randint(2, 4)

        def applied(view: View) -> list[Change]:
            user: Any = view.by_name("User", "admin")
            spec = UserSpec()
            spec.CopyFrom(user.spec)
            spec.limits.resources.CopyFrom(limits)
            return [change(user, UserApplied(spec=spec))]

        self._change(applied)

    def _change(self, decide: Callable[[View], list[Change]]) -> None:
        """Something that is done once before anything else happens."""
        controller = next(c for c in self.controllers if c.serving)
        done = []

        async def write() -> None:
            plane = controller.plane
            assert plane is not None
            await plane.commands.run(lambda: decide(plane.view), actor=Actor(name="sim"))
            done.append(True)

        controller.process.loop.call_soon(lambda: controller.process.loop.create_task(write()) and None)
        self._run_until(lambda: done, "nothing can be written")

    def _strike(self, fault: Fault) -> None:
        self.struck += 1
        end = faults.KINDS[fault.kind].strike(self, random.Random(fault.luck))
        self._say(f"fault {fault}")
        if end is not None:
            self.universe.later(fault.lasts_s, end)

    def _calm_down(self) -> None:
        """Whatever is still down comes up; faults that last have ended by themselves."""
        self._say("the storm is over")
        self.universe.run(self._after(0.01))
        for member in self.etcd.members:
            self.etcd.start(member)
        for program in (*self.controllers, *self.agents):
            program.start()

    def _after(self, seconds: float) -> Any:
        until_s = self.universe.now_s + seconds
        self.universe.later(seconds, lambda: None)
        return lambda: self.universe.now_s >= until_s

    def _settle(self) -> None:
        """I7: within two minutes nothing is left to do, and stays so."""
        deadline = self.universe.now_s + CALM_S
        quiet = 0
        while quiet < 2:
            self.universe.run(self._after(LOOK_EVERY_S))
            trouble = self._trouble() or ("" if all(c.done for c in self.clients) else "a client still waits")
            quiet = 0 if trouble else quiet + 1
            if trouble and self.universe.now_s > deadline:
                raise Broken(trouble)
        for controller in self.controllers:
            assert controller.plane is not None
            self.checker.check_view(controller.plane.view, complete=True)

    def _trouble(self) -> str:
        """Why the cluster has not settled; empty: it has."""
        planes = [c.plane for c in self.controllers if c.running and c.serving and c.plane is not None]
        if len(planes) < len(self.controllers) or not all(agent.running for agent in self.agents):
            self._last_trouble = "somebody is not there"
            return self._last_trouble
        try:
            self.checker.check_views([plane.view for plane in planes])
            machines = [agent.machine for agent in self.agents]
            joined = sum(kind == "Node" for kind, _ in self.checker.states)
            if joined < len(machines):
                raise Broken(f"I7: {joined} of {len(machines)} nodes have joined")
            clocks_ms = [plane.clock.now_ms() for plane in planes]
            self.checker.check_settled(planes[0].cluster, machines, clocks_ms=clocks_ms)
        except Broken as broken:
            self._last_trouble = str(broken)
            return self._last_trouble
        return ""

    def _look_at_views(self) -> None:
        for controller in self.controllers:
            if controller.running and controller.plane is not None and controller.plane.view.synced:
                self.checker.check_view(controller.plane.view)
        self.universe.later(VIEWS_EVERY_S, self._look_at_views)

    # ---- what faults and the judge ask

    def leader(self) -> Controller | None:
        """The controller that leads the zone, as the store has it."""
        name = self.checker._leader.decode()
        return next((c for c in self.controllers if c.process.name == name and c.running), None)

    def _committed(self, revision: int, events: Any, author: Any) -> None:
        self.checker.transaction(revision, events, author)
        if self._tell is not None:
            self._tell(f"{'etcd':6} revision {revision} by {author.name if author else 'nobody'}")
            for event in self.checker.commits.get(revision, ()):
                payload = event.WhichOneof("payload")
                said = " ".join(str(getattr(event, payload)).split())[:160]
                self._tell(f"{'log':6} {event.kind} {event.name} v{event.version} {payload} {said}")

    def _say(self, what: str) -> None:
        if self._tell is not None:
            self._tell(what)


__all__ = ["Broken", "ProcessFailed", "World"]
