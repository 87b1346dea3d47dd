"""Hosts, processes on them, and the network between: directed links that delay, hold back and lose nothing but time.

Connections behave as TCP's do. What is sent on one arrives in order or not at all; while a link is cut its
packets wait, are sent again once it heals, and a connection that the other end no longer answers on is given up
by whoever pings. A process that dies resets its connections as its kernel would; a host that loses its power says
nothing, and resets what it does not know when it is back. Each direction of a link can be cut alone.
"""

import random
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.sim.loop import Handle, ProcessLoop, Universe

# One way between two machines of a cluster, and how much longer now and then.
LATENCY_S = 0.0004
JITTER_S = 0.002
# TCP sends again after this long at first; by then a link that was cut may have healed a while ago.
RETRANSMIT_S = (0.02, 0.6)


class Host:
    """A machine: its clocks, and whether it has power."""

    def __init__(self, name: str, *, rate: float = 1.0, wall_ms: int = 0) -> None:
        self.name = name
        self.rate = rate
        self.wall_offset_ms = wall_ms
        self.up = True

    def disturbed(self) -> None:
        """A process on it was started, killed, stopped or set going again."""

    def now_ms(self, universe: Universe) -> int:
        """Its wall clock, which somebody may have set wrongly."""
        return self.wall_offset_ms + int(universe.now_s * self.rate * 1000)


class Process:
    """Something that runs on a host and can be frozen or killed, with its connections."""

    def __init__(self, network: "Network", host: Host, name: str) -> None:
        self.network = network
        self.host = host
        self.name = name
        self.loop = ProcessLoop(network.universe, name, rate=host.rate, clock_s=1000.0)
        self.connections: dict[Connection, None] = {}
        self.listening: dict[str, Any] = {}
        self.freezes = 0
        # Called when it has died.
        self.mourners: list[Callable[[], object]] = []
        host.disturbed()

    @property
    def alive(self) -> bool:
        return self.loop.alive

    @property
    def running(self) -> bool:
        return self.loop.alive and not self.loop.frozen

    def listen(self, address: str, server: Any) -> None:
        """`server` takes what `rpc` brings; one process a port."""
        holder = self.network.listeners.get(address)
        assert holder is None or not holder.alive, f"{address} is taken by {holder and holder.name}"
        self.network.listeners[address] = self
        self.listening[address] = server

    def stop_listening(self) -> None:
        for address in self.listening:
            if self.network.listeners.get(address) is self:
                del self.network.listeners[address]
        self.listening.clear()

    def kill(self, *, power_cut: bool = False) -> None:
        """kill -9, or with `power_cut` not even the kernel is left to say so."""
        if not self.alive:
            return
        self.loop.kill()
        self.host.disturbed()
        self.stop_listening()
        for connection in list(self.connections):
            connection.end_of(self).vanish(silently=power_cut)
        for tell in self.mourners:
            tell()

    def freeze(self) -> None:
        self.freezes += 1
        if self.freezes == 1 and self.loop.alive:
            self.loop.freeze()
            self.host.disturbed()
            for connection in list(self.connections):
                connection.suspect()

    def thaw(self) -> None:
        self.freezes -= 1
        if self.freezes == 0 and self.loop.alive:
            self.loop.thaw()
            self.host.disturbed()


class Link:
    """One direction between two hosts. It may be cut for several reasons at once."""

    def __init__(self, network: "Network", source: Host, target: Host) -> None:
        self.network = network
        self.source = source
        self.target = target
        self.cuts = 0
        self.slowness = 1.0
        self.holding: dict[Pipe, None] = {}

    def delay_s(self) -> float:
        if self.source is self.target:
            return 0.00005
        luck = self.network.luck()
        return (LATENCY_S + JITTER_S * luck * luck * luck) * self.slowness

    def cut(self) -> None:
        self.cuts += 1
        if self.cuts == 1:
            self.network.link_changed(self)

    def heal(self) -> None:
        self.cuts -= 1
        assert self.cuts >= 0
        if self.cuts == 0:
            holding, self.holding = self.holding, {}
            for pipe in holding:
                pipe.release()
            self.network.link_changed(self)


class Pipe:
    """One direction of a connection: in order."""

    __slots__ = ("_held", "_last_s", "_link", "_target", "_universe")

    def __init__(self, universe: Universe, link: Link, target: ProcessLoop) -> None:
        self._universe = universe
        self._link = link
        self._target = target
        self._last_s = 0.0
        self._held: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()

    @property
    def open(self) -> bool:
        return not self._link.cuts

    def send(self, arrive: Callable[..., None], *args: Any) -> None:
        """`arrive` is called by the receiving process, once this arrives."""
        if self._link.cuts or self._held:
            self._held.append((arrive, args))
            self._link.holding[self] = None
            return
        when_s = self._universe.now_s + self._link.delay_s()
        if when_s < self._last_s:
            when_s = self._last_s
        self._last_s = when_s
        self._universe.at(when_s, self._target, arrive, *args)

    def release(self) -> None:
        self._universe.later(self._link.network.rng.uniform(*RETRANSMIT_S), self._send_again)

    def _send_again(self) -> None:
        if self._link.cuts:
            self._link.holding[self] = None
            return
        held, self._held = self._held, deque()
        for arrive, args in held:
            self.send(arrive, *args)


class End:
    """One end of a connection, as the process there sees it. `calls` are rpc's."""

    __slots__ = ("calls", "connection", "open", "pipe", "process")

    def __init__(self, connection: "Connection", process: Process) -> None:
        self.connection = connection
        self.process = process
        self.pipe: Pipe = None  # type: ignore[assignment]  # set by Connection, which makes both ends first
        self.calls: dict[Any, None] = {}
        self.open = True

    def vanish(self, *, silently: bool) -> None:
        """The process is gone."""
        self.open = False
        self.process.connections.pop(self.connection, None)
        other = self.connection.other(self)
        if silently:
            self.connection.network.unanswered.setdefault(self.process.host, []).append(self)
            self.connection.suspect()
        else:
            self.pipe.send(other.reset, "Connection reset by peer")

    def close(self) -> None:
        """In good order; the other end is told."""
        if self.open:
            self._drop("the channel was closed")
            self.pipe.send(self.connection.other(self).reset, "Socket closed")

    def reset(self, why: str) -> None:
        """The connection is over, said the network."""
        if self.open:
            self._drop(why)

    def _drop(self, why: str) -> None:
        self.open = False
        self.process.connections.pop(self.connection, None)
        calls, self.calls = self.calls, {}
        for call in calls:
            call.broken(why)


class Connection:
    """Between a client's process and a server's. It is `established` once both have said so."""

    def __init__(
        self, network: "Network", client: Process, server: Process, *, keepalive_s: tuple[float, float]
    ) -> None:
        self.network = network
        self.client = End(self, client)
        self.server = End(self, server)
        there, back = network.link(client.host, server.host), network.link(server.host, client.host)
        self.client.pipe = Pipe(network.universe, there, server.loop)
        self.server.pipe = Pipe(network.universe, back, client.loop)
        self._keepalive_s = keepalive_s
        self._watchdog: Handle | None = None
        client.connections[self] = None
        server.connections[self] = None

    def other(self, end: End) -> End:
        return self.server if end is self.client else self.client

    def end_of(self, process: Process) -> End:
        return self.client if self.client.process is process else self.server

    def _answers(self) -> bool:
        return self.client.pipe.open and self.server.pipe.open and self.server.open and self.server.process.running

    def suspect(self) -> None:
        """Something is wrong with the path or the server: the client finds out by its pings."""
        if self._watchdog is None and self.client.open and not self._answers():
            every_s, patience_s = self._keepalive_s
            delay_s = self.network.rng.random() * every_s + patience_s
            self._watchdog = self.network.universe.later(delay_s, self._bark)

    def _bark(self) -> None:
        self._watchdog = None
        if self.client.open and not self._answers():
            # Judged by the client itself, when it gets to it: by then an answer may have come after all.
            self.network.universe.at(self.network.universe.now_s, self.client.process.loop, self._give_up)

    def _give_up(self) -> None:
        if self.client.open and not self._answers():
            self.client.reset("keepalive watchdog timeout")
            self.client.pipe.send(self.server.reset, "Connection reset by peer")


class Network:
    """All hosts and links."""

    def __init__(self, universe: Universe, rng: random.Random) -> None:
        self.universe = universe
        self.rng = rng
        self.luck = rng.random
        self.hosts: dict[str, Host] = {}
        self.listeners: dict[str, Process] = {}
        self.unanswered: dict[Host, list[End]] = {}
        self._links: dict[tuple[Host, Host], Link] = {}
        self._observers: list[Callable[[], None]] = []

    def add(self, host: Host) -> Host:
        self.hosts[host.name] = host
        return host

    def link(self, source: Host, target: Host) -> Link:
        key = source, target
        link = self._links.get(key)
        if link is None:
            link = self._links[key] = Link(self, source, target)
        return link

    def reachable(self, a: Host, b: Host) -> bool:
        """Both ways."""
        return not self.link(a, b).cuts and not self.link(b, a).cuts

    def on_change(self, observer: Callable[[], None]) -> None:
        """Called when a link was cut or healed."""
        self._observers.append(observer)

    def link_changed(self, link: Link) -> None:
        ends = {link.source, link.target}
        if link.cuts:
            for process in list(self.listeners.values()):
                if process.host in ends:
                    for connection in list(process.connections):
                        if {connection.client.process.host, connection.server.process.host} == ends:
                            connection.suspect()
        for observer in self._observers:
            observer()

    def power_on(self, host: Host) -> None:
        """What others still send to connections of before is answered with a reset."""
        host.up = True
        for end in self.unanswered.pop(host, ()):
            other = end.connection.other(end)
            self.universe.later(self.rng.uniform(0.0, 10.0), end.pipe.send, other.reset, "Connection reset by peer")
