"""gRPC as the code under test sees it, over the simulated network: channels for generated stubs, servers for
generated servicers, with deadlines, cancellation, half a second of silence and the errors of a broken connection.

Messages are bytes on the way, so that no process ever holds another's object. Behaves as grpc.aio does where
the product depends on it: a call fails at once while a connection is refused and waits while one is being made;
`read` gives EOF or raises the call's error; a call whose `read` is cancelled is over; a handler is cancelled
when its client goes away.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from tests.sim.loop import Handle
from tests.sim.network import Connection, End, Network, Process

CONNECT_TIMEOUT_S = 20.0
SYN_AGAIN_S = 1.0
BACK_OFF_S = 0.2
DEFAULT_KEEPALIVE_S = (7200.0, 20.0)
_REFUSED = "failed to connect to all addresses; last error: connection refused"
_NO_ANSWER = "failed to connect to all addresses; last error: timed out"

Code = grpc.StatusCode
Metadata = Sequence[tuple[str, str]]


def _failure(code: Code, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, details=details)


# ---- the client's side


class Channel:
    """One connection to an address, made when it is needed and again when it broke."""

    def __init__(
        self, network: Network, process: Process, address: str, options: Sequence[tuple[str, Any]] | None = None
    ) -> None:
        self._network = network
        self._process = process
        self._address = address
        given = dict(options or ())
        self._keepalive_s = (
            given.get("grpc.keepalive_time_ms", DEFAULT_KEEPALIVE_S[0] * 1000) / 1000,
            given.get("grpc.keepalive_timeout_ms", DEFAULT_KEEPALIVE_S[1] * 1000) / 1000,
        )
        self._end: End | None = None
        self._waiting: dict[_ClientCall, None] = {}
        self._connecting = 0
        self._refused_until_s = -1.0
        self._refusal = ""
        self._closed = False

    async def __aenter__(self) -> "Channel":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        self._closed = True
        self._connecting += 1
        waiting, self._waiting = self._waiting, {}
        for call in waiting:
            call.over(Code.CANCELLED, "Channel closed!")
        if self._end is not None:
            for call in list(self._end.calls):
                call.cancel()
            self._end.close()

    # generated stubs ask for these

    def unary_unary(self, path: str, serialize: Any = None, deserialize: Any = None, *_: Any, **kw: Any) -> Any:
        serialize, deserialize = serialize or kw["request_serializer"], deserialize or kw["response_deserializer"]

        def start(request: Any, *, timeout: float | None = None, metadata: Metadata = (), **_: Any) -> Any:
            return _UnaryCall(self, path, serialize(request), deserialize, timeout, metadata).answer

        return start

    def unary_stream(self, path: str, serialize: Any = None, deserialize: Any = None, *_: Any, **kw: Any) -> Any:
        serialize, deserialize = serialize or kw["request_serializer"], deserialize or kw["response_deserializer"]

        def start(request: Any, *, timeout: float | None = None, metadata: Metadata = (), **_: Any) -> Any:
            return _StreamCall(self, path, serialize, deserialize, timeout, metadata, first=serialize(request))

        return start

    def stream_stream(self, path: str, serialize: Any = None, deserialize: Any = None, *_: Any, **kw: Any) -> Any:
        serialize, deserialize = serialize or kw["request_serializer"], deserialize or kw["response_deserializer"]

        def start(
            request_iterator: Any = None, *, timeout: float | None = None, metadata: Metadata = (), **_: Any
        ) -> Any:
            assert request_iterator is None, "streams are written to"
            return _StreamCall(self, path, serialize, deserialize, timeout, metadata)

        return start

    stream_unary = None

    # connecting

    def begin(self, call: "_ClientCall") -> None:
        """Send the call on its way, now or once there is a connection."""
        if self._closed:
            raise grpc.aio.UsageError("Channel is closed.")
        if self._end is not None and self._end.open:
            call.sent(self._end)
            return
        loop = self._process.loop
        if loop.time() < self._refused_until_s:
            loop.call_soon(call.over, Code.UNAVAILABLE, self._refusal)
            return
        self._waiting[call] = None
        if len(self._waiting) == 1:
            self._connecting += 1
            self._syn(self._connecting, self._network.universe.now_s + CONNECT_TIMEOUT_S)

    def forget(self, call: "_ClientCall") -> None:
        self._waiting.pop(call, None)

    def _syn(self, attempt: int, until_s: float) -> None:
        """One packet to the server and one back, sent again while nothing comes back."""
        network, here = self._network, self._process.host
        there = network.hosts[self._address.partition(":")[0]]
        link, back = network.link(here, there), network.link(there, here)
        if link.cuts:
            self._no_answer(attempt, until_s)
        else:
            network.universe.later(link.delay_s(), self._syn_arrives, attempt, until_s, there, back)

    def _syn_arrives(self, attempt: int, until_s: float, there: Any, back: Any) -> None:
        network = self._network
        listener = network.listeners.get(self._address)
        if not there.up or back.cuts or (listener is not None and not listener.running):
            self._no_answer(attempt, until_s)
            return
        connection = None
        if listener is not None and self._process.alive:
            connection = Connection(network, self._process, listener, keepalive_s=self._keepalive_s)
        when_s = network.universe.now_s + back.delay_s()
        network.universe.at(when_s, self._process.loop, self._connected, attempt, connection)

    def _no_answer(self, attempt: int, until_s: float) -> None:
        universe = self._network.universe
        if attempt != self._connecting or not self._process.alive:
            return
        if universe.now_s >= until_s:
            universe.at(universe.now_s, self._process.loop, self._failed, attempt, _NO_ANSWER)
        else:
            universe.later(SYN_AGAIN_S, self._syn, attempt, until_s)

    def _connected(self, attempt: int, connection: Connection | None) -> None:
        if connection is None:
            self._failed(attempt, _REFUSED)
            return
        end = connection.client
        if attempt != self._connecting or not end.open:
            end.close()
            if attempt == self._connecting:
                self._failed(attempt, "Connection reset by peer")
            return
        self._end = end
        waiting, self._waiting = self._waiting, {}
        for call in waiting:
            call.sent(end)

    def _failed(self, attempt: int, why: str) -> None:
        if attempt != self._connecting:
            return
        self._refused_until_s, self._refusal = self._process.loop.time() + BACK_OFF_S, why
        waiting, self._waiting = self._waiting, {}
        for call in waiting:
            call.over(Code.UNAVAILABLE, why)


class _ClientCall(ABC):
    """What both shapes of calls share. `peer` is the server's side, once it exists."""

    def __init__(
        self,
        channel: Channel,
        path: str,
        deserialize: Any,
        timeout: float | None,
        metadata: Metadata,
        first: bytes | None,
    ) -> None:
        self.peer: ServerCall | None = None
        self._channel = channel
        self._path = path
        self._metadata = metadata
        self._first = first
        self._deserialize = deserialize
        self._end: End | None = None
        self._deadline: Handle | None = None
        self._finished = False
        loop = channel._process.loop
        if timeout is not None:
            self._deadline = loop.call_later(max(timeout, 0.0), self._too_late)
        channel.begin(self)

    def sent(self, end: End) -> None:
        self._end = end
        end.calls[self] = None
        end.pipe.send(_serve, end.connection, self, self._channel._address, self._path, self._metadata, self._first)

    def broken(self, why: str) -> None:
        self.over(Code.UNAVAILABLE, why)

    def over(self, code: Code, details: str) -> None:
        """The call has its status."""
        if self._finished:
            return
        self._finished = True
        if self._deadline is not None:
            self._deadline.cancel()
        if self._end is not None:
            self._end.calls.pop(self, None)
        else:
            self._channel.forget(self)
        self._ended(code, details)

    @abstractmethod
    def _ended(self, code: Code, details: str) -> None: ...

    @abstractmethod
    def received(self, payload: bytes) -> None: ...

    def _too_late(self) -> None:
        self._abandon(Code.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def cancel(self) -> bool:
        if self._finished:
            return False
        self._abandon(Code.CANCELLED, "Locally cancelled by application!")
        return True

    def _abandon(self, code: Code, details: str) -> None:
        if self._finished:
            return
        end = self._end
        self.over(code, details)
        if end is not None and end.open:
            end.pipe.send(_cancelled, self)


class _UnaryCall(_ClientCall):
    def __init__(
        self, channel: Channel, path: str, first: bytes, deserialize: Any, timeout: float | None, metadata: Metadata
    ) -> None:
        self.answer = channel._process.loop.create_future()
        self.answer.add_done_callback(self._answered)
        super().__init__(channel, path, deserialize, timeout, metadata, first)

    def received(self, payload: bytes) -> None:
        if not self._finished:
            if not self.answer.done():
                self.answer.set_result(self._deserialize(payload))
            self.over(Code.OK, "")

    def _ended(self, code: Code, details: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(_failure(code, details))

    def _answered(self, answer: Any) -> None:
        if answer.cancelled():
            self.cancel()
        else:
            answer.exception()  # seen: whoever gave up waiting for it is not told


class _StreamCall(_ClientCall):
    def __init__(
        self,
        channel: Channel,
        path: str,
        serialize: Any,
        deserialize: Any,
        timeout: float | None,
        metadata: Metadata,
        *,
        first: bytes | None = None,
    ) -> None:
        loop = channel._process.loop
        self._serialize = serialize
        self._messages: deque[bytes] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._connected: asyncio.Future[None] = loop.create_future()
        self._status: tuple[Code, str] | None = None
        self._loop = loop
        super().__init__(channel, path, deserialize, timeout, metadata, first)

    def sent(self, end: End) -> None:
        super().sent(end)
        if not self._connected.done():
            self._connected.set_result(None)

    def received(self, payload: bytes) -> None:
        if not self._finished:
            self._messages.append(payload)
            self._notify()

    def _ended(self, code: Code, details: str) -> None:
        self._status = code, details
        if not self._connected.done():
            self._connected.set_result(None)
        self._notify()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _raise(self) -> None:
        assert self._status is not None
        code, details = self._status
        if code is Code.CANCELLED and details.startswith("Locally"):
            raise asyncio.CancelledError
        if code is not Code.OK:
            raise _failure(code, details)

    async def _until(self, condition: Callable[[], object]) -> None:
        try:
            while not condition():
                self._wake = self._loop.create_future()
                await self._wake
        except asyncio.CancelledError:
            self.cancel()
            raise

    async def read(self) -> Any:
        await self._until(lambda: self._messages or self._status)
        if self._messages:
            return self._deserialize(self._messages.popleft())
        self._raise()
        return grpc.aio.EOF

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message

    async def write(self, message: Any) -> None:
        if self._status is not None:
            raise asyncio.InvalidStateError("RPC already finished.")
        payload = self._serialize(message)
        if not self._connected.done():
            await asyncio.shield(self._connected)
            if self._status is not None:
                self._raise()
        assert self._end is not None
        self._end.pipe.send(_message, self, payload)

    async def done_writing(self) -> None:
        if self._status is None:
            if not self._connected.done():
                await asyncio.shield(self._connected)
            if self._end is not None and self._end.open:
                self._end.pipe.send(_half_closed, self)

    async def code(self) -> Code:
        await self._until(lambda: self._status)
        assert self._status is not None
        return self._status[0]

    async def details(self) -> str:
        await self._until(lambda: self._status)
        assert self._status is not None
        return self._status[1]

    def done(self) -> bool:
        return self._status is not None


# ---- what arrives at the server; each runs as the server's process


def _serve(
    connection: Connection, call: _ClientCall, address: str, path: str, metadata: Metadata, first: bytes | None
) -> None:
    end = connection.server
    if not end.open:
        return
    served = ServerCall(end, call, metadata)
    call.peer = served
    server = end.process.listening.get(address)
    if server is None:
        served.finish(Code.UNAVAILABLE, "the server has stopped")
    else:
        server.serve(path, served, first)


def _message(call: _ClientCall, payload: bytes) -> None:
    if call.peer is not None and call.peer.open:
        call.peer.on_message(payload)


def _half_closed(call: _ClientCall) -> None:
    if call.peer is not None and call.peer.open:
        call.peer.on_half_closed()


def _cancelled(call: _ClientCall) -> None:
    if call.peer is not None:
        call.peer.broken("cancelled by the client")


class ServerCall:
    """The server's side of one call, whoever serves it: set `on_...` to hear, `send` and `finish` to answer."""

    __slots__ = ("_client", "_end", "metadata", "on_gone", "on_half_closed", "on_message", "open")

    def __init__(self, end: End, client: _ClientCall, metadata: Metadata) -> None:
        self._end = end
        self._client = client
        self.metadata = metadata
        self.open = True
        self.on_message: Callable[[bytes], None] = _ignore
        self.on_half_closed: Callable[[], None] = _ignore
        self.on_gone: Callable[[], None] = _ignore
        end.calls[self] = None

    @property
    def client(self) -> Process:
        """Who calls: for judges only."""
        return self._end.connection.client.process

    def send(self, payload: bytes) -> None:
        if self.open:
            self._end.pipe.send(self._client.received, payload)

    def finish(self, code: Code, details: str = "") -> None:
        if self.open:
            self.open = False
            self._end.calls.pop(self, None)
            self._end.pipe.send(self._client.over, code, details)

    def broken(self, why: str) -> None:
        if self.open:
            self.open = False
            self._end.calls.pop(self, None)
            self.on_gone()


def _ignore(*_: Any) -> None:
    """Nobody wants to know."""


# ---- servers


class Server:
    """Serves generated servicers (it is what `add_..._to_server` wants) and plain callables, by path."""

    def __init__(self, process: Process, *, heard: Callable[[Process], None] | None = None) -> None:
        """`heard` is told from whom messages come: for judges."""
        self._process = process
        self._heard = heard
        self._handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """The registered ones are the same."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        for name, handler in handlers.items():
            self._handlers[f"/{service}/{name}"] = handler

    def add_raw(self, path: str, handler: Callable[[ServerCall, bytes | None], None]) -> None:
        self._handlers[path] = handler

    def serve(self, path: str, call: ServerCall, first: bytes | None) -> None:
        handler = self._handlers.get(path)
        if handler is None:
            call.finish(Code.UNIMPLEMENTED, f"no such method: {path}")
        elif isinstance(handler, grpc.RpcMethodHandler):
            Context(self._process, handler, call, first, heard=self._heard)
        else:
            handler(call, first)


class Context:
    """grpc.aio's ServicerContext, as far as it is used, and the task that runs the handler."""

    def __init__(
        self,
        process: Process,
        handler: Any,
        call: ServerCall,
        first: bytes | None,
        *,
        heard: Callable[[Process], None] | None,
    ) -> None:
        self._heard = heard
        self._handler = handler
        self._call = call
        self._loop = process.loop
        self._messages: deque[bytes] = deque()
        self._closed = False
        self._wake: asyncio.Future[None] | None = None
        call.on_message = self._arrived
        call.on_half_closed = self._half_closed
        call.on_gone = self._gone
        self._task = process.loop.create_task(self._run(first))

    async def _run(self, first: bytes | None) -> None:
        handler, call = self._handler, self._call
        try:
            request = handler.request_deserializer(first) if first is not None else self._requests()
            function = (
                (handler.stream_stream if handler.request_streaming else handler.unary_stream)
                if handler.response_streaming
                else handler.unary_unary
            )
            answer = function(request, self)
            if hasattr(answer, "__aiter__"):
                async for message in answer:
                    await self.write(message)
            else:
                message = await answer
                if message is not None and not handler.response_streaming:
                    call.send(handler.response_serializer(message))
            call.finish(Code.OK)
        except grpc.aio.AbortError:
            pass
        except asyncio.CancelledError:
            call.finish(Code.CANCELLED, "the handler was cancelled")
        except Exception as error:
            if call.open or not isinstance(error, asyncio.InvalidStateError):
                # gRPC would log it and answer UNKNOWN; a servicer that lets that happen is wrong.
                self._loop.call_exception_handler({"message": "a servicer failed", "exception": error})
            call.finish(Code.UNKNOWN, f"Unexpected {type(error)}: {error}")

    def _arrived(self, payload: bytes) -> None:
        if self._heard is not None:
            self._heard(self._call.client)
        self._messages.append(payload)
        self._notify()

    def _half_closed(self) -> None:
        self._closed = True
        self._notify()

    def _gone(self) -> None:
        self._closed = True
        self._task.cancel()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _requests(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message

    # what servicers use

    def invocation_metadata(self) -> Metadata:
        return self._call.metadata

    async def read(self) -> Any:
        while not self._messages:
            if self._closed:
                return grpc.aio.EOF
            self._wake = self._loop.create_future()
            await self._wake
        return self._handler.request_deserializer(self._messages.popleft())

    async def write(self, message: Any) -> None:
        if not self._call.open:
            raise asyncio.InvalidStateError("RPC already finished.")
        self._call.send(self._handler.response_serializer(message))

    async def abort(self, code: Code, details: str = "", trailing_metadata: Metadata = ()) -> None:
        self._call.finish(code, details)
        raise grpc.aio.AbortError("Locally aborted.")
