"""Runs a page of the documentation as it is written: each `console` block is typed, and says what it shows.

    ann$ pwm get wk          who types it, and what; a line that ends with a backslash goes on in the next
    NAME   STATUS  ...       all that comes back, standard error too: `...` in a line stands for any text,
    ...                      and as a line of its own for any number of lines
    head$ pwm controller &   goes on running; what is shown below it is waited for
    authority    <CA>        a word that is not known beforehand; wherever <CA> stands afterwards, it is meant

Spaces count as one, and every command must end with 0. What only looks may have to look again for a while, as people
do. Who types has a home of his own; all are in one directory.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
COMMAND_LIMIT_S = 60.0
LOOK_LIMIT_S = 30.0
# These change nothing.
_LOOKS = re.compile(r"pwm (get|why|logs|credits|report|limits|events|top|admin status)\b")
POLL_S = 0.05
_BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
_PROMPT = re.compile(r"([a-z0-9]+)\$ (.*)")


@dataclass
class Typed:
    """One command of a page: who types it, what, and what comes back."""

    who: str
    command: str
    shown: list[str] = field(default_factory=list)

    @property
    def stays(self) -> bool:
        return self.command.endswith(" &")


def typed_in(page: str) -> Iterator[Typed]:
    for block in _BLOCK.findall(page):
        typed: Typed | None = None
        for line in block.splitlines():
            prompt = _PROMPT.fullmatch(line)
            if prompt is not None:
                if typed is not None:
                    yield typed
                typed = Typed(prompt[1], prompt[2])
            elif typed is not None and not typed.shown and typed.command.endswith("\\"):
                typed.command = f"{typed.command[:-1].rstrip()} {line.strip()}"
            else:
                assert typed is not None, f"nobody has typed anything before this: {line}"
                typed.shown.append(line)
        if typed is not None:
            yield typed


def seen(shown: list[str], said: str) -> dict[str, str] | None:
    """What the words in angle brackets turn out to be, when a command said what a page shows; None: it did not."""
    pattern = "".join(r"(?:.*\n)*?" if line.strip() == "..." else f"{_pattern(line)}\\n" for line in shown)
    found = re.fullmatch(pattern, "".join(f"{_squeezed(line)}\n" for line in said.splitlines()))
    return found.groupdict() if found is not None else None


def _pattern(line: str) -> str:
    """Of a line as a page has it."""
    parts = re.split(r"(\.\.\.|<[A-Z]+>)", _squeezed(line))
    return "".join(
        ".*" if part == "..." else f"(?P<{part[1:-1]}>\\S+)" if part.startswith("<") else re.escape(part)
        for part in parts
    )


def _squeezed(line: str) -> str:
    return " ".join(line.split())


class Reader:
    """Somebody who types what a page says, in `directory`. `names`: what stands in the page, and what is meant here."""

    def __init__(self, directory: Path, *, names: Mapping[str, str], environment: Mapping[str, str]) -> None:
        self._directory = directory
        self._names = dict(names)
        self._environment = environment
        self._programs = directory / "bin"
        self._programs.mkdir(parents=True)
        pwm = self._programs / "pwm"
        pwm.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m pwm "$@"\n')
        pwm.chmod(0o755)
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            process.kill()
            process.wait()

    def types(self, typed: Typed) -> None:
        """Fails unless what comes back is what the page shows."""
        said = self._start(typed) if typed.stays else self._run(typed)
        deadline = time.monotonic() + LOOK_LIMIT_S
        while (found := seen(typed.shown, said)) is None and _LOOKS.match(typed.command):
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
            said = self._run(typed)
        page = "\n".join(typed.shown)
        assert found is not None, f"{typed.who}$ {typed.command}\n{said}\n-- the page shows --\n{page}"
        for name, value in found.items():
            known = self._names.setdefault(f"<{name}>", value)
            assert value in (known, f"<{name}>"), f"{name} was {known}, and is {value} after {typed.command}"

    def _run(self, typed: Typed) -> str:
        done = subprocess.run(
            ["bash", "-c", self._meant(typed.command)],
            cwd=self._directory, env=self._surroundings(typed.who), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=COMMAND_LIMIT_S, check=False,
        )  # fmt: skip
        said = self._as_in_the_page(done.stdout)
        assert done.returncode == 0, f"{typed.who}$ {typed.command}\n{said}\nends with {done.returncode}"
        return said

    def _start(self, typed: Typed) -> str:
        file = self._directory / f"{typed.who}-{len(self._running)}.log"
        with file.open("wb") as out:
            self._running.append(
                subprocess.Popen(
                    ["bash", "-c", f"exec {self._meant(typed.command.removesuffix(' &'))}"],
                    cwd=self._directory, env=self._surroundings(typed.who), stdin=subprocess.DEVNULL, stdout=out,
                    stderr=out,
                )
            )  # fmt: skip
        deadline = time.monotonic() + COMMAND_LIMIT_S
        while True:
            said = self._as_in_the_page(file.read_bytes())
            over = time.monotonic() > deadline or self._running[-1].poll() is not None
            if over or seen(typed.shown, said) is not None:
                return said
            time.sleep(POLL_S)

    def _surroundings(self, who: str) -> dict[str, str]:
        home = self._directory / "homes" / who
        home.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PWM_")}
        path = f"{self._programs}:{kept.get('PATH', '')}"
        return {**kept, **self._environment, "HOME": str(home), "PATH": path, "COLUMNS": "200"}

    def _meant(self, text: str) -> str:
        for name, here in self._names.items():
            text = text.replace(name, here)
        return text

    def _as_in_the_page(self, said: bytes) -> str:
        text = said.decode(errors="replace")
        for name, here in reversed(self._names.items()):
            text = text.replace(here, name)
        return text
