"""Learns that a log file grew, without asking: inotify on its folder, one descriptor for all of them.

Each watch fires once and is set anew when its log was read to the end: an engine that writes half a million
lines a second costs one wake-up per read, not one per line. Where inotify is not to be had (its limits are
shared by everything on the machine) logs are looked at by the clock instead.
"""

import asyncio
import ctypes
import os
import struct
from pathlib import Path

# <sys/inotify.h>
_IN_MODIFY, _IN_MOVED_TO, _IN_CREATE, _IN_ONESHOT = 0x2, 0x80, 0x100, 0x80000000
_EVENTS = _IN_MODIFY | _IN_MOVED_TO | _IN_CREATE | _IN_ONESHOT
_EVENT = struct.Struct("iIII")
_READ_BYTES = 64 << 10
# Between looks at a log that cannot be watched, or whose folder does not exist yet.
_POLL_S = 0.02
# Even a watched log is looked at this often: a watch that got lost must not silence a log for ever.
_WATCHED_POLL_S = 2.0

_libc = ctypes.CDLL(None, use_errno=True)


class Waker:
    """Belongs to the event loop it was opened in."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Event] = {}
        self._fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._on_events)

    def arm(self, folder: Path, event: asyncio.Event) -> bool:
        """Sets `event` at the next change in the folder; False when it cannot be watched now."""
        if self._fd < 0:
            return False
        watch: int = _libc.inotify_add_watch(self._fd, os.fsencode(folder), ctypes.c_uint32(_EVENTS))
        if watch < 0:
            return False
        self._waiting[watch] = event
        return True

    async def wait(self, event: asyncio.Event, *, armed: bool) -> None:
        """Until the event, or until it is time to look anyway."""
        try:
            async with asyncio.timeout(_WATCHED_POLL_S if armed else _POLL_S):
                await event.wait()
        except TimeoutError:
            pass

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _on_events(self) -> None:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            watch, _, _, name_bytes = _EVENT.unpack_from(data, at)
            at += _EVENT.size + name_bytes
            if event := self._waiting.pop(watch, None):
                event.set()
