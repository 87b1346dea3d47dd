"""A line on the terminal that says what is being waited for, and disappears when it is over.

Only on a terminal: a script that reads our standard error gets nothing but notes that matter.
"""

from __future__ import annotations

import os
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self, TextIO

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
BEAT_S = 0.1
CLEAR_LINE = "\r\x1b[K"
# Narrower than any window one works in, when the width cannot be known.
DEFAULT_COLUMNS = 80


class StatusLine:
    """`with StatusLine(sys.stderr) as line: line.say("hello: QUEUED")`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._text = ""
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def say(self, text: str) -> None:
        """Shows the text from now on."""
        with self._lock:
            self._text = text
        if self._live and self._thread is None:
            self._over.clear()
            self._thread = threading.Thread(target=self._animate, name="status-line", daemon=True)
            self._thread.start()

    def note(self, text: str) -> None:
        """A line that stays, above the status."""
        with self._lock:
            self._stream.write(f"{CLEAR_LINE if self._live else ''}{text}\n")
            self._stream.flush()

    def clear(self) -> None:
        """Takes the line away; the terminal is as before."""
        if self._thread is None:
            return
        self._over.set()
        self._thread.join()
        self._thread = None
        self._stream.write(CLEAR_LINE)
        self._stream.flush()

    def _animate(self) -> None:
        beat = 0
        while not self._over.wait(BEAT_S if beat else 0):
            with self._lock:
                text = f"{FRAMES[beat % len(FRAMES)]} {self._text}"
                self._stream.write(CLEAR_LINE + text[: self._columns() - 1])
                self._stream.flush()
            beat += 1

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or DEFAULT_COLUMNS
        except OSError:
            return DEFAULT_COLUMNS
