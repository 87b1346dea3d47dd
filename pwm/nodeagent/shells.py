"""Commands inside containers that outlive the connection of whoever started them.

A *shell* here is one command (`pwm shell`, or any exec) with its input and output. What carries its bytes is a relay
stream, which breaks when a controller dies or the agent's session moves to another replica. So the command belongs
to the agent: it runs on while its client is away, for `GRACE_S`, and keeps what it prints until the client has it
(`replay.py`). A client that comes back names the session, says how many bytes it has, and is told how many of its own
arrived. In between no byte is lost, none comes twice.

    process ─▶ Replay ─▶ Attachment.outputs ─▶ relay stream        one reader and one writer for a shell's whole life,
    process ◀─ queue ◀── Attachment.take ◀──── relay stream        one attachment at a time: the newest connection's

While nobody reads, the buffer fills up and the command waits. A client that says `hang_up`, or does not come back
in time, ends the command with SIGHUP, as a terminal that is closed does. The exit code of a command that ended
meanwhile is kept for the same time. A shell without a session (an older client) ends with its stream.

Ids of sessions that are over are remembered, so that a request which was held up in a frozen controller does not
start a command a second time.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

import structlog

from pwm.api.v1.agent_pb2 import ExecAttached, ExecInput, ExecOutput, StartExec, TerminalSize
from pwm.nodeagent.drivers.driver import DriverError, ExecSession
from pwm.nodeagent.replay import Replay

log = structlog.get_logger(__name__)

# How long a command waits for its client: longer than any fail-over of the control plane, and than a laptop needs to
# change from one network to the next.
GRACE_S = 60.0
# How long a client has to say that it has got the exit code, before its controller is let go.
FAREWELL_S = 5.0
# Input that waits for the command to read. Clients send no more than this unconfirmed (agent.proto), so that frames
# that are no input are read at once; one that does is held up by its stream.
INPUT_LIMIT_BYTES = 256 * 1024
# Shells of one node, those that wait for their clients included. Each may keep 1 MiB of output.
MAX_SHELLS = 500
# Ids of sessions that are over. A request is not held up for longer than it takes so many to end.
REMEMBERED_ENDS = 10_000

Begin = Callable[[], Awaitable[ExecSession]]


class ShellGone(Exception):
    """There is no such session (any more); the message is for the user."""


class Superseded(Exception):
    """A newer connection of the client has the session."""


class TooManyShells(Exception):
    """The node has as many shells as it keeps."""


class Shells:
    """All shells of a node. `run` owns them: they end with it."""

    def __init__(self, *, grace_s: float = GRACE_S) -> None:
        self._grace_s = grace_s
        self._tasks: asyncio.TaskGroup | None = None
        self._shells: set[Shell] = set()
        self._sessions: dict[str, Shell] = {}
        # A dict for its order: the oldest are forgotten first.
        self._ended: dict[str, None] = {}

    async def run(self) -> None:
        """Until cancelled; then every command is hung up on."""
        async with asyncio.TaskGroup() as self._tasks:
            await asyncio.Event().wait()

    async def open(self, request: StartExec, begin: Begin) -> "Shell":
        """The shell that a request is about: begun by `begin`, or the one its session names.

        Raises DriverError (it could not be begun), ShellGone, Superseded, TooManyShells.
        """
        shell = self._find(request) or self._add(request, begin)
        try:
            await asyncio.shield(shell.begun)
        except asyncio.CancelledError:
            if not shell.kept:
                shell.hang_up()
            raise
        return shell

    def _find(self, request: StartExec) -> "Shell | None":
        wanted = request.session
        if not wanted.id:
            return None
        shell = self._sessions.get(wanted.id)
        if shell is not None and shell.belongs_to(request) and not shell.over:
            return shell
        if shell is not None or wanted.id in self._ended or wanted.resume:
            raise ShellGone(
                f"the session is over: its agent was restarted, or nobody came back to it within {self._grace_s:.0f} s"
            )
        return None

    def _add(self, request: StartExec, begin: Begin) -> "Shell":
        assert self._tasks is not None, "run() comes first"
        if len(self._shells) >= MAX_SHELLS:
            raise TooManyShells(f"the node has {MAX_SHELLS:,} shells open, which is the most it keeps")
        shell = Shell(request, grace_s=self._grace_s)
        self._shells.add(shell)
        if shell.kept:
            self._sessions[request.session.id] = shell
        self._tasks.create_task(self._hold(shell, begin))
        return shell

    async def _hold(self, shell: "Shell", begin: Begin) -> None:
        try:
            await shell.run(begin)
        except Exception:
            log.exception("a shell failed", container=shell.container_uid)
        finally:
            self._shells.discard(shell)
            if shell.kept:
                self._sessions.pop(shell.session_id, None)
                self._ended[shell.session_id] = None
                if len(self._ended) > REMEMBERED_ENDS:
                    del self._ended[next(iter(self._ended))]


class Shell:
    """One command, from its start until nobody needs to know of it any more."""

    def __init__(self, request: StartExec, *, grace_s: float) -> None:
        self.container_uid = request.container_uid
        self.session_id = request.session.id
        # Whether it waits for its client when the connection is lost.
        self.kept = bool(request.session.id)
        # Done when the command runs; the error if it could not be begun.
        self.begun: asyncio.Future[ExecSession] = asyncio.get_running_loop().create_future()
        self.exit_code: int | None = None
        self.output = Replay()
        self._user = request.user
        self._grace_s = grace_s
        self._input: deque[bytes] = deque()
        self._input_bytes = 0
        self.taken = 0
        self._input_ended = False
        # The newest connection's number, and what holds it.
        self._connection = 0
        self._attachment: Attachment | None = None
        # Set whenever something of this changes; whoever waits looks again.
        self._changed = asyncio.Event()
        self._over = asyncio.Event()
        self._waiting_for_client: asyncio.TimerHandle | None = None
        self._wait_for_client()

    def belongs_to(self, request: StartExec) -> bool:
        return self.container_uid == request.container_uid and self._user == request.user

    # -- its life

    async def run(self, begin: Begin) -> None:
        try:
            command = await begin()
        except BaseException as error:
            self._fail(error)
            if isinstance(error, DriverError):
                return
            raise
        self.begun.set_result(command)
        tasks = [asyncio.ensure_future(work) for work in (self._read(command), self._feed(command))]
        try:
            await self._over.wait()
        finally:
            ending = asyncio.ensure_future(self._end(command, tasks))
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:
                # Not interrupted: a command that nobody hangs up on would run for ever.
                await ending
                raise

    async def _end(self, command: ExecSession, tasks: "Sequence[asyncio.Future[None]]") -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.hang_up()
        if self._waiting_for_client is not None:
            self._waiting_for_client.cancel()
        await command.close()

    def _fail(self, error: BaseException) -> None:
        self.hang_up()
        if self._waiting_for_client is not None:
            self._waiting_for_client.cancel()
        if isinstance(error, Exception):
            self.begun.set_exception(error)
            # Whoever asked may be gone; then nobody looks at the error.
            self.begun.exception()
        else:
            self.begun.cancel()

    async def _read(self, command: ExecSession) -> None:
        try:
            async for chunk in command.output():
                if chunk.WhichOneof("output") == "exit_code":
                    self.exit_code = chunk.exit_code
                else:
                    self.output.append(chunk.stdout or chunk.stderr, stderr=bool(chunk.stderr))
                self._change()
                await self._until(lambda: not self.output.full)
        except Exception:
            log.exception("a shell's output broke off", container=self.container_uid)
            self.hang_up()

    async def _feed(self, command: ExecSession) -> None:
        """Input to the command, in its order, however the connections come and go."""
        try:
            while True:
                await self._until(lambda: self._input or self._input_ended)
                while self._input:
                    data = self._input.popleft()
                    await command.write(data)
                    self._input_bytes -= len(data)
                    self._change()
                if self._input_ended:
                    await command.close_stdin()
                    return
        except Exception:
            log.exception("a shell's input broke off", container=self.container_uid)
            self.hang_up()

    # -- connections

    @contextmanager
    def attach(self, request: StartExec) -> "Iterator[Attachment]":
        """The connection has the shell while the block runs. Raises Superseded, ShellGone."""
        number, received = request.session.connection, request.session.received
        if self.kept and number <= self._connection:
            raise Superseded("another connection of the same client has the session")
        if self.over or not self.output.start <= received <= self.output.end:
            raise ShellGone(f"the session keeps nothing from byte {received} of its output on")
        self._connection = number
        if self._waiting_for_client is not None:
            self._waiting_for_client.cancel()
            self._waiting_for_client = None
        attachment = self._attachment = Attachment(self, received)
        self._change()
        try:
            yield attachment
        finally:
            if self._attachment is attachment:
                self._attachment = None
                if self.kept and not self._over.is_set():
                    self._wait_for_client()
                else:
                    self.hang_up()

    def _wait_for_client(self) -> None:
        self._waiting_for_client = asyncio.get_running_loop().call_later(self._grace_s, self.hang_up)

    def has(self, attachment: "Attachment") -> bool:
        return self._attachment is attachment

    @property
    def over(self) -> bool:
        return self._over.is_set()

    def hang_up(self) -> None:
        """Nobody needs it any more."""
        self._over.set()
        self._change()

    # -- what connections do

    async def take(self, data: bytes, attachment: "Attachment") -> None:
        """Input, once there is room for it; dropped when a newer connection came meanwhile, which sends it again."""
        await self._until(lambda: self._input_bytes < INPUT_LIMIT_BYTES or not self.has(attachment))
        if self.has(attachment) and data:
            self._input.append(data)
            self._input_bytes += len(data)
            self.taken += len(data)
            self._change()

    def end_input(self) -> None:
        self._input_ended = True
        self._change()

    async def resize(self, size: TerminalSize) -> None:
        await self.begun.result().resize(size)

    def acknowledge(self, offset: int) -> None:
        self.output.acknowledge(offset)
        self._change()

    # -- waiting

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await self._changed.wait()

    async def changed(self) -> None:
        """Until something has changed since the caller last looked, without an await in between."""
        await self._changed.wait()


class Attachment:
    """A shell as one connection sees it."""

    def __init__(self, shell: Shell, received: int) -> None:
        self._shell = shell
        # How far this connection was sent to, and told of its input.
        self._sent = received
        self._told = shell.taken

    async def outputs(self) -> AsyncIterator[ExecOutput]:
        """What to send, to its end: after the exit code, until the client has said that it has it.

        Raises Superseded when a newer connection has taken the shell over.
        """
        shell = self._shell
        if shell.kept:
            yield ExecOutput(attached=ExecAttached(input_taken=self._told))
        while not shell.over:
            if not shell.has(self):
                raise Superseded("another connection of the same client has the session")
            if shell.kept and shell.taken != self._told:
                self._told = shell.taken
                yield ExecOutput(input_taken=self._told)
            elif (piece := shell.output.after(max(self._sent, shell.output.start))) is not None:
                stderr, data = piece
                self._sent = max(self._sent, shell.output.start) + len(data)
                yield ExecOutput(stderr=data) if stderr else ExecOutput(stdout=data)
                if not shell.kept:
                    shell.acknowledge(self._sent)
            elif shell.exit_code is not None:
                yield ExecOutput(exit_code=shell.exit_code)
                await self._farewell()
                return
            else:
                await shell.changed()

    async def _farewell(self) -> None:
        shell = self._shell
        try:
            async with asyncio.timeout(FAREWELL_S if shell.kept else 0):
                while not shell.over and shell.has(self):
                    await shell.changed()
        except TimeoutError:
            return

    async def give(self, given: ExecInput) -> None:
        """One frame from the client; one that comes late, when a newer connection has the shell, does nothing."""
        shell = self._shell
        if not shell.has(self):
            return
        match given.WhichOneof("input"):
            case "stdin":
                await shell.take(given.stdin, self)
            case "resize":
                await shell.resize(given.resize)
            case "close_stdin":
                shell.end_input()
            case "acknowledged":
                shell.acknowledge(given.acknowledged)
            case "hang_up":
                shell.hang_up()
