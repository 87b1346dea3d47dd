"""`pwm shell`: a command in a running container, on this terminal.

With a terminal on both sides it is like ssh: keys go through raw, so that Ctrl-C interrupts the command and
not us, and the window's size follows ours. Without one (a pipe, a script, `-T`) input is forwarded,
output and error stay apart. The terminal gets its settings back however this ends.

The command is the agent's, and outlives servers and connections (`shell_session.py`). Ends with the
command's own exit code, 125 when it could not be started, 255 when it was lost sight of.
"""

from __future__ import annotations

import os
import signal
import sys

from pwm.cli import exit_codes
from pwm.cli.command import SCOPE, Argument, Command, Option, whole_number
from pwm.cli.errors import PERMISSION_DENIED, UNAUTHENTICATED, CliError, ServerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType
    from typing import Any, Self

    from pwm.cli.invocation import Invocation


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
    from pwm.cli.shell_session import Screen, ShellSession

    invocation.out.flush()
    with RawTerminal(enabled=tty), WindowChanges(enabled=tty) as changes:
        session = ShellSession(
            invocation.client,
            start,
            screen=Screen(),
            keyboard=sys.stdin.fileno(),
            note=_beside_the_output(invocation, raw=tty),
            window=window_size if tty else None,
            wake=changes.descriptor,
        )
        try:
            return session.run()
        except CliError as error:
            # Who was put out in the midst of it (the token was revoked) knows what has become of the command.
            if error.exit_code != exit_codes.INTERRUPTED and not (session.begun and _was_put_out(error)):
                error.exit_code = exit_codes.LOST_SIGHT if session.begun else exit_codes.NEVER_STARTED
            raise


def _was_put_out(error: CliError) -> bool:
    return isinstance(error, ServerError) and error.status in (UNAUTHENTICATED, PERMISSION_DENIED)


def _beside_the_output(invocation: Invocation, *, raw: bool) -> Callable[[str], None]:
    """Shows a line. A raw terminal does not return the carriage by itself, and the command may be in mid-line."""

    def note(text: str) -> None:
        invocation.err.write(f"\r\n[{text}]\r\n" if raw else f"[{text}]\n")
        invocation.err.flush()

    return note


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


class WindowChanges:
    """A descriptor that is readable when the size of the window has changed."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self.descriptor = self._wake = -1
        self._old_handler: Any = None

    def __enter__(self) -> Self:
        if self._enabled:
            self.descriptor, self._wake = os.pipe()
            os.set_blocking(self._wake, False)
            self._old_handler = signal.signal(signal.SIGWINCH, self._changed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled:
            signal.signal(signal.SIGWINCH, self._old_handler)
            os.close(self.descriptor)
            os.close(self._wake)

    def _changed(self, number: int, frame: FrameType | None) -> None:
        try:
            os.write(self._wake, b"w")
        except BlockingIOError:
            return  # it is full of reasons to wake


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
