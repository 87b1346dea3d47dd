"""A shell over a connection that is cut anywhere: every byte arrives once, in its order, in both directions.

The agent's side (`Shells`) and the client's (`Typed` and a counter of what was shown) are the real ones. Between them
is a line that carries frames in order and is cut after any number of them, in either direction, again and again; what
was on it then is lost. Replicas may be slow: a connection that was given up may deliver what it still holds, or
be attached, after the next one was made.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pwm.api.v1.agent_pb2 import ExecInput, ExecOutput, ExecSession, StartExec, TerminalSize
from pwm.cli.shell_session import Typed
from pwm.nodeagent import shells as shells_module
from pwm.nodeagent.replay import Replay
from pwm.nodeagent.shells import Attachment, ShellGone, Shells, Superseded

LIMIT_S = 5.0
EXIT_CODE = 7


class Command:
    """Prints what it is to print, takes what it is given, ends when its input ends and all is printed."""

    def __init__(self, prints: list[tuple[bool, bytes]]) -> None:
        self._prints = prints
        self.given = b""
        self.closed = 0
        self.over = asyncio.Event()
        self._input_ended = asyncio.Event()

    async def output(self) -> AsyncIterator[ExecOutput]:
        for stderr, data in self._prints:
            await asyncio.sleep(0)
            yield ExecOutput(stderr=data) if stderr else ExecOutput(stdout=data)
        await self._input_ended.wait()
        yield ExecOutput(exit_code=EXIT_CODE)

    async def write(self, data: bytes) -> None:
        for byte in data:
            # In pieces: whoever cuts the connection meanwhile must not cut this.
            if byte % 7 == 0:
                await asyncio.sleep(0)
            self.given += bytes([byte])

    async def close_stdin(self) -> None:
        self._input_ended.set()

    async def resize(self, size: TerminalSize) -> None:
        raise AssertionError("nobody has a window here")

    async def close(self) -> None:
        self.closed += 1
        self.over.set()


@dataclass
class Cut:
    """How a connection goes: after so many frames each way it is cut. `late` of the input frames come afterwards."""

    inward: int
    outward: int
    late: bool = False


@dataclass
class Client:
    keys: list[bytes]
    typed: Typed = field(default_factory=lambda: Typed(64))
    shown: dict[bool, bytes] = field(default_factory=lambda: {False: b"", True: b""})
    connections: int = 0
    begun: bool = False
    exit_code: int | None = None

    @property
    def received(self) -> int:
        return len(self.shown[False]) + len(self.shown[True])

    def start(self) -> StartExec:
        self.connections += 1
        session = ExecSession(id="5e" * 16, connection=self.connections, resume=self.begun, received=self.received)
        return StartExec(container_uid="c", cmd=["sh"], stdin=True, session=session, user="ann")

    def take(self, frame: ExecOutput) -> None:
        match frame.WhichOneof("output"):
            case "attached":
                self.begun = True
                self.typed.go_on_at(frame.attached.input_taken)
            case "input_taken":
                self.typed.confirmed(frame.input_taken)
            case "stdout" | "stderr":
                self.shown[bool(frame.stderr)] += frame.stdout or frame.stderr
            case "exit_code":
                self.exit_code = frame.exit_code

    def frames(self) -> list[ExecInput]:
        """What there is to send now."""
        while self.keys and self.typed.room >= len(self.keys[0]):
            self.typed.add(self.keys.pop(0))
        frames = []
        while piece := self.typed.unsent():
            frames.append(ExecInput(stdin=piece))
        if not self.keys and self.typed.room:
            frames.append(ExecInput(close_stdin=True))
        return [*frames, ExecInput(acknowledged=self.received)]


async def connect(
    shells: Shells, client: Client, command: Command, cut: Cut | None
) -> list[tuple[Attachment, ExecInput]]:
    """One connection until it is cut or the command has ended. Returns input that is still somewhere on the way."""
    late: list[tuple[Attachment, ExecInput]] = []
    request = client.start()

    async def begin() -> Command:
        return command

    shell = await shells.open(request, begin)
    inward = cut.inward if cut else 1_000_000
    outward = cut.outward if cut else 1_000_000
    with shell.attach(request) as attachment:
        async for frame in attachment.outputs():
            if not outward:
                break
            outward -= 1
            client.take(frame)
            if client.exit_code is not None:
                await attachment.give(ExecInput(hang_up=True))
                continue
            for sent in client.frames():
                if inward:
                    inward -= 1
                    await attachment.give(sent)
                else:
                    late.append((attachment, sent))
            if late:
                break
    return late if cut and cut.late else []


async def play(prints: list[tuple[bool, bytes]], keys: list[bytes], cuts: list[Cut]) -> None:
    command, client = Command(prints), Client(list(keys))
    shells = Shells(grace_s=LIMIT_S)
    running = asyncio.ensure_future(shells.run())
    await asyncio.sleep(0)
    late: list[tuple[Attachment, ExecInput]] = []
    try:
        async with asyncio.timeout(LIMIT_S):
            for cut in [*cuts, None]:
                if client.exit_code is None:
                    on_its_way = await connect(shells, client, command, cut)
                    for attachment, frame in late:
                        await attachment.give(frame)
                    late = on_its_way
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert client.exit_code == EXIT_CODE
    assert command.given == b"".join(keys), "what was typed arrived, once"
    for stderr in (False, True):
        assert client.shown[stderr] == b"".join(data for error, data in prints if error == stderr)
    assert command.closed == 1


PRINTS = st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=40)), max_size=12)
KEYS = st.lists(st.binary(min_size=1, max_size=30), max_size=12)
CUTS = st.lists(st.builds(Cut, inward=st.integers(0, 6), outward=st.integers(0, 8), late=st.booleans()), max_size=8)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prints=PRINTS, keys=KEYS, cuts=CUTS)
def test_however_often_the_connection_is_cut_every_byte_arrives_once(
    monkeypatch: pytest.MonkeyPatch, prints: list[tuple[bool, bytes]], keys: list[bytes], cuts: list[Cut]
) -> None:
    # Small, so that a client that is away holds the command up.
    monkeypatch.setattr(shells_module, "Replay", lambda: Replay(600))
    asyncio.run(play(prints, keys, cuts))


@settings(max_examples=300, deadline=None)
@given(
    chunks=st.lists(st.tuples(st.booleans(), st.binary(max_size=20))),
    acknowledged=st.lists(st.integers(0, 300)),
    start=st.integers(0, 300),
)
def test_what_was_not_acknowledged_can_be_had_again_from_any_byte(
    chunks: list[tuple[bool, bytes]], acknowledged: list[int], start: int
) -> None:
    replay = Replay()
    for stderr, data in chunks:
        replay.append(data, stderr=stderr)
    for offset in acknowledged:
        replay.acknowledge(offset)
    whole = b"".join(data for _, data in chunks)
    assert replay.end == len(whole)
    assert replay.start == min(max([0, *acknowledged]), len(whole))
    channels = b"".join(bytes([stderr]) * len(data) for stderr, data in chunks)
    at = min(max(start, replay.start), replay.end)
    got, got_channels, first = b"", b"", at
    while (piece := replay.after(at)) is not None:
        stderr, data = piece
        got, got_channels, at = got + data, got_channels + bytes([stderr]) * len(data), at + len(data)
    assert (got, got_channels) == (whole[first:], channels[first:])


def test_single_bytes_are_kept_together_and_forgotten_when_acknowledged() -> None:
    replay = Replay()
    for _ in range(200_000):
        replay.append(b"x", stderr=False)
    assert not replay.full
    replay.acknowledge(199_999)
    assert replay.after(199_999) == (False, b"x")
    assert not replay.full


async def test_a_session_is_only_for_the_user_and_the_container_that_it_was_begun_for() -> None:
    shells = Shells()
    running = asyncio.ensure_future(shells.run())
    await asyncio.sleep(0)
    client, command = Client([]), Command([(False, b"secret")])

    async def begin() -> Command:
        return command

    async def attempt(request: StartExec) -> None:
        shell = await shells.open(request, begin)
        with shell.attach(request):
            raise AssertionError("it was let in")

    try:
        first = client.start()
        with (await shells.open(first, begin)).attach(first):
            pass
        for member, value in (("user", "bob"), ("container_uid", "other")):
            request = client.start()
            setattr(request, member, value)
            with pytest.raises(ShellGone):
                await attempt(request)
        with pytest.raises(Superseded):
            await attempt(first)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert command.closed == 1, "the agent's end is the end of its shells"


async def test_a_command_whose_client_does_not_come_back_is_hung_up_on_and_not_begun_again() -> None:
    shells = Shells(grace_s=0.05)
    running = asyncio.ensure_future(shells.run())
    await asyncio.sleep(0)
    client, command = Client([]), Command([])
    begun = 0

    async def begin() -> Command:
        nonlocal begun
        begun += 1
        return command

    try:
        request = client.start()
        with (await shells.open(request, begin)).attach(request) as attachment:
            await anext(attachment.outputs())
        async with asyncio.timeout(LIMIT_S):
            await command.over.wait()
        for resume in (True, False):
            late = client.start()
            late.session.resume = resume
            with pytest.raises(ShellGone):
                await shells.open(late, begin)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert begun == 1


class Flood(Command):
    """Prints without an end; `held_up` once it could not for a while."""

    def __init__(self, prints: list[tuple[bool, bytes]]) -> None:
        super().__init__(prints)
        self.printed = 0
        self.held_up = asyncio.Event()

    async def output(self) -> AsyncIterator[ExecOutput]:
        while True:
            yield ExecOutput(stdout=b"x" * 1000)
            self.printed += 1000
            asyncio.get_running_loop().call_later(0.05, self._look, self.printed)

    def _look(self, printed: int) -> None:
        if printed == self.printed:
            self.held_up.set()


async def test_a_command_that_prints_on_while_its_client_is_away_has_to_wait() -> None:
    shells = Shells()
    running = asyncio.ensure_future(shells.run())
    await asyncio.sleep(0)
    client, flood = Client([]), Flood([])

    async def begin() -> Command:
        return flood

    try:
        request = client.start()
        shell = await shells.open(request, begin)
        with shell.attach(request) as attachment:
            outputs = attachment.outputs()
            while client.received < 500_000:
                client.take(await anext(outputs))
        async with asyncio.timeout(LIMIT_S):
            await flood.held_up.wait()
        assert 500_000 < flood.printed < 1_200_000
        request = client.start()
        with shell.attach(request) as attachment:
            async for frame in attachment.outputs():
                client.take(frame)
                await attachment.give(ExecInput(acknowledged=client.received))
                if client.received > 3_000_000:
                    break
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert flood.printed > 3_000_000
