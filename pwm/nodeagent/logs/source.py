"""What the store needs of whatever a container's output comes from."""

from pathlib import Path
from typing import Protocol

from pwm.nodeagent.drivers.driver import LogSource
from pwm.nodeagent.logs.batch import Batch, Cursor
from pwm.nodeagent.logs.engine_tail import EngineTail
from pwm.nodeagent.logs.tail import FileTail


class Source(Protocol):
    """Blocking; used by one thread at a time. Methods raise OSError as the system gives it."""

    @property
    def folder(self) -> Path | None:
        """Where something changes when there is more to read; None: look by the clock."""
        ...

    @property
    def cursor(self) -> Cursor:
        """Where to go on after everything that `read` returned."""
        ...

    def read(self) -> Batch:
        """The next batch; an empty one when there is nothing at the moment."""
        ...

    def ended(self) -> None:
        """The container has ended: from now on an empty batch means the end of its output."""
        ...

    def rewind(self, cursor: Cursor) -> None:
        """Reads again from there."""
        ...

    def close(self) -> None: ...


def open_source(source: LogSource, cursor: Cursor) -> Source:
    """Opens nothing yet: the file may appear later. What was begun through the engine goes on through it."""
    begun_with_engine = cursor[0] == 0 and cursor[1] > 0
    if source.engine and (begun_with_engine or not _may_read(source.path)):
        return EngineTail(source.engine, source.runtime_id, cursor=cursor)
    return FileTail(source.path, source.format, cursor=cursor)


def _may_read(path: Path) -> bool:
    """A file or folder that is not there yet may become readable: it is not refused."""
    try:
        with path.open("rb"):
            return True
    except FileNotFoundError:
        return True
    except PermissionError:
        return False
