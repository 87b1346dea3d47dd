"""`pwm shell`: a command in a running container, on this terminal.

With a terminal on both sides it is like ssh: keys go through raw, so that Ctrl-C interrupts the command and
not us, and the window's size follows ours. Without one (a pipe, a script, `-T`) input is forwarded,
output and error stay apart. The terminal gets its settings back however this ends.

Two threads: the main one writes what the container prints and takes signals, the other one reads keys.
Ends with the command's own exit code, 125 when it could not be started.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading

from pwm.cli import exit_codes
from pwm.cli.command import SCOPE, Argument, Command, Option, whole_number
from pwm.cli.errors import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, TracebackType
    from typing import Any, Self

    from pwm.cli.invocation import Invocation
    from pwm.cli.websocket import ExecSession

READ_BYTES = 32 * 1024
STOP_TIMEOUT_S = 1.0


def shell(invocation: Invocation, *, words: tuple[str, ...], replica: int | None, no_tty: bool) -> int:
    from pwm.cli.target import target_of, words_and_command

    names, command = words_and_command(words)
    target = target_of(invocation, names, replica=replica)
    start: dict[str, Any] = {"name": target.name, "group": target.group, "cmd": command}
    if target.replica is not None:
        start["replica"] = target.replica
    return run_on_terminal(invocation, start, tty=not no_tty and sys.stdin.isatty() and sys.stdout.isatty())


def run_on_terminal(invocation: Invocation, start: dict[str, Any], *, tty: bool) -> int:
    """Runs `start` (ExecStart as JSON) with our input and output; returns its exit code."""
    from pwm.cli.websocket import ExecSession

    start = {**start, "tty": tty, "stdin": True}
    if tty:
        start["size"] = window_size()
    invocation.out.flush()
    with RawTerminal(enabled=tty):
        try:
            session = ExecSession(invocation.client, start)
        except CliError as error:
            error.exit_code = exit_codes.NEVER_STARTED
            raise
        keyboard = Keyboard(session, tty=tty)
        keyboard.start()
        try:
            return _print_until_end(session)
        finally:
            keyboard.stop()
            session.close()


def _print_until_end(session: ExecSession) -> int:
    from pwm.cli.streams import Output

    output, printed = Output(), False
    try:
        for event in session.events():
            if isinstance(event, int):
                return event
            channel, data = event
            output.write([(channel, memoryview(data))])
            printed = True
    except CliError as error:
        if not printed:
            error.exit_code = exit_codes.NEVER_STARTED
        raise
    raise AssertionError("events() ends with an exit code or an error")


def window_size() -> dict[str, int]:
    size = os.get_terminal_size(sys.stdout.fileno())
    return {"rows": size.lines, "columns": size.columns}


class RawTerminal:
    """The terminal hands on every key as it is; at the end it is as before, also when we are told to stop."""

    def __init__(self, *, enabled: bool) -> None:
        self._descriptor = sys.stdin.fileno() if enabled else -1
        self._settings: list[Any] = []
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._handlers[number] = signal.signal(number, _end_of_process)
        if self._descriptor >= 0:
            import termios
            import tty

            self._settings = termios.tcgetattr(self._descriptor)
            # Not at once: keys typed ahead are meant for the shell.
            tty.setraw(self._descriptor, termios.TCSADRAIN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._settings:
            import termios

            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._settings)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


def _end_of_process(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


class Keyboard:
    """Forwards standard input and window sizes to the session, in a thread."""

    def __init__(self, session: ExecSession, *, tty: bool) -> None:
        self._session = session
        self._tty = tty
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._thread = threading.Thread(target=self._run, name="keyboard", daemon=True)
        self._old_handler: Any = None

    def start(self) -> None:
        if self._tty:
            # The handler only wakes the thread: a lock that it needed could be held by what it interrupts.
            self._old_handler = signal.signal(signal.SIGWINCH, lambda *_: self._wake(b"w"))
        self._thread.start()

    def stop(self) -> None:
        if self._tty:
            signal.signal(signal.SIGWINCH, self._old_handler)
        self._wake(b"q")
        # A server that takes no more input may hold the thread in a send; closing the session frees it.
        self._thread.join(STOP_TIMEOUT_S)

    def _wake(self, why: bytes) -> None:
        try:
            os.write(self._wake_write, why)
        except BlockingIOError:
            return  # it is full of reasons to wake

    def _run(self) -> None:
        stdin = sys.stdin.fileno()
        sources = [self._wake_read, stdin]
        while True:
            ready, _, _ = select.select(sources, [], [])
            if self._wake_read in ready:
                why = os.read(self._wake_read, 64)
                if b"q" in why:
                    return
                self._session.send_size(**window_size())
            if stdin in ready and not self._forward(stdin):
                sources.remove(stdin)

    def _forward(self, stdin: int) -> bool:
        """Sends what can be read; False at the end of the input."""
        try:
            data = os.read(stdin, READ_BYTES)
        except OSError:  # the terminal has gone
            data = b""
        if data:
            self._session.send_stdin(data)
            return True
        self._session.end_stdin()
        return False


COMMANDS = {
    "shell": Command(
        "shell",
        shell,
        help="A shell, or a command after --, inside a running container. Ends with its exit code.",
        parameters=(
            Argument("words", multiple=True, metavar="wk NAME [-- CMD...]", completes="name"),
            Option("replica", "--replica", help="In this replica, from 0.", metavar="N", convert=whole_number),
            Option("no_tty", "-T", "--no-tty", help="No terminal: output and error stay apart.", flag=True),
            *SCOPE,
        ),
    )
}
