"""Accepting connections: each is counted against its address before it may cost anything.

asyncio's own servers tell nobody where a connection comes from until a TLS handshake is over, and whoever wants to use
up a server does not hand-shake. So connections are taken from the listening socket here, and `core.antechamber` says at
once whether another one has to go for it. One that goes is shut down below everything that may be going on in it: a
handshake, half a request, an answer that nobody reads. Its transport sees the end and tidies up as always.
"""

import asyncio
import fcntl
import resource
import socket
import ssl
import struct
import termios
import time
from collections.abc import Callable
from contextlib import suppress

import structlog

from pwm.controlplane.core.addresses import neighbourhood, plain
from pwm.controlplane.core.antechamber import Antechamber, ConnectionLimits

log = structlog.get_logger(__name__)

# A handshake takes a few milliseconds of both sides' time; on a satellite line a few seconds.
HANDSHAKE_S = 10.0
# A thousand handshakes take a machine with one core so long.
YOUNG_S = 3.0
# Accepted in a row before others get a turn.
ACCEPTED_AT_ONCE = 64
# Between attempts while this process can open nothing more.
PAUSE_S = 0.2
# Files and connections that are not strangers': the store, agents, other replicas, and all who are known.
STRANGERS_SHARE = 1 / 2


class Arrival:
    """One connection, from before its handshake to its end."""

    __slots__ = ("_antechamber", "_came_s", "_socket", "address", "is_stranger", "peer")

    def __init__(self, antechamber: "Antechamber[Arrival]", connected: socket.socket, peer: str) -> None:
        self._antechamber = antechamber
        self._socket = connected
        self.peer = peer
        # What counts as one.
        self.address = neighbourhood(peer)
        self.is_stranger = True
        self._came_s = time.monotonic()

    def is_known(self) -> None:
        """Somebody has shown a valid token over it."""
        if self.is_stranger:
            self.is_stranger = False
            self._antechamber.leave(self.address, self)

    def is_over(self) -> None:
        self._antechamber.leave(self.address, self)

    def is_spared(self) -> bool:
        """Whether it has just come, or has sent something that has not been read yet."""
        if self._socket.fileno() < 0:
            return False
        if time.monotonic() - self._came_s < YOUNG_S:
            return True
        with suppress(OSError):
            waiting = fcntl.ioctl(self._socket.fileno(), termios.FIONREAD, bytes(4))
            return bool(struct.unpack("i", waiting)[0])
        return False

    def shut(self) -> None:
        """Ends it, whatever is going on."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class Arrivals:
    """
    connected: makes the protocol of a connection
    tls:       None: plain
    many:      addresses that speak for many others, such as proxies
    """

    def __init__(
        self,
        connected: Callable[[Arrival], asyncio.Protocol],
        *,
        limits: ConnectionLimits,
        tls: ssl.SSLContext | None,
        many: Callable[[str], bool],
    ) -> None:
        self._connected = connected
        self._tls = tls
        self._many = many
        self._antechamber: Antechamber[Arrival] = Antechamber(limits, spared=Arrival.is_spared)
        self._listeners: list[socket.socket] = []
        self._welcoming: set[asyncio.Task[None]] = set()
        self._full = False
        self.pushed_out = 0
        """Connections that had to go for newer ones, for the metrics."""

    @property
    def strangers(self) -> int:
        return self._antechamber.count

    async def start(self, host: str, port: int, *, backlog: int) -> int:
        """Listens at all addresses of the host; the port that was bound. Raises OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        trouble: OSError | None = None
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            try:
                listener = socket.create_server(address, family=family, backlog=backlog)
            except OSError as error:
                # A host may have addresses that this machine has not, such as ::1.
                trouble = trouble or error
                continue
            listener.setblocking(False)
            self._listeners.append(listener)
            loop.add_reader(listener, self._accept, listener)
        if not self._listeners:
            raise trouble or OSError(f"{host} has no address")
        bound: int = self._listeners[0].getsockname()[1]
        return bound

    def stop(self) -> None:
        """No new connections; those that are here stay, and finish their handshakes."""
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        self._listeners.clear()

    async def wait_stopped(self) -> None:
        """Ends handshakes that are not over."""
        for task in self._welcoming:
            task.cancel()
        await asyncio.gather(*self._welcoming, return_exceptions=True)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connected, peer = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(listener, error)
                return
            self._full = False
            connected.setblocking(False)
            self._enter(connected, plain(str(peer[0])))

    def _pause(self, listener: socket.socket, error: OSError) -> None:
        """Nothing more can be opened, and nothing will tell when that is over."""
        if not self._full:
            log.error("no more connections can be taken", why=str(error))
        self._full = True
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)

        def resume() -> None:
            if listener in self._listeners:
                loop.add_reader(listener, self._accept, listener)

        loop.call_later(PAUSE_S, resume)

    def _enter(self, connected: socket.socket, address: str) -> None:
        arrival = Arrival(self._antechamber, connected, address)
        gone = self._antechamber.enter(arrival.address, arrival, many=self._many(address))
        if gone is not None:
            self.pushed_out += 1
            gone.shut()
        task = asyncio.get_running_loop().create_task(self._welcome(connected, arrival))
        self._welcoming.add(task)
        task.add_done_callback(self._welcoming.discard)

    async def _welcome(self, connected: socket.socket, arrival: Arrival) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._connected(arrival),
                connected,
                ssl=self._tls,
                ssl_handshake_timeout=HANDSHAKE_S if self._tls is not None else None,
            )
        except (OSError, ssl.SSLError, TimeoutError):
            # Nobody to tell: it went away, or does not speak as we do.
            arrival.is_over()
            connected.close()
        except BaseException:
            arrival.is_over()
            connected.close()
            raise


def room() -> int:
    """Lets this process open as many files as it may; how many connections of strangers that leaves room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return int(soft * STRANGERS_SHARE)
