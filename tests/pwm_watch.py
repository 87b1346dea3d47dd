"""`pwm get KIND -w` in the background, and what it has shown so far."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from tests.pwm_cluster import PwmCluster, eventually

_numbers = count(1)


class Watching:
    def __init__(self, pwm: PwmCluster, kind: str, *more: str) -> None:
        self._file = pwm.directory / f"watched-{next(_numbers)}"
        self._errors = self._file.with_suffix(".err")
        with self._file.open("wb") as out, self._errors.open("wb") as err:
            self._child = subprocess.Popen(
                pwm.command("get", kind, "-w", *more), stdout=out, stderr=err, env=pwm.cli_environment
            )

    def lines(self) -> list[str]:
        return self._file.read_text().splitlines()

    def saw(self, text: str) -> bool:
        return any(text in line for line in self.lines())

    def close(self) -> None:
        ended = self._child.poll()
        self._child.kill()
        self._child.wait()
        assert ended is None, f"the watch ended: {self._errors.read_text()}"


@contextmanager
def watching(pwm: PwmCluster, kind: str, *more: str) -> Iterator[Watching]:
    """The watch, once it has shown something. It must not have ended by itself."""
    watch = Watching(pwm, kind, *more)
    try:
        eventually(watch.lines, "the watch begins")
        yield watch
    finally:
        watch.close()
