"""What keeps `pwm top` supplied: threads that read the server's streams and hand over what came.

A stream that breaks is asked for anew, with a word on the screen meanwhile. What cannot be mended by
asking again (no such workload, not allowed) ends the program with that error.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from pwm.cli.client import Client
from pwm.cli.errors import UNAVAILABLE, CliError, NoServerError, ServerError
from pwm.cli.http1 import TransportError
from pwm.cli.profiles import Profile
from pwm.cli.target import Target
from pwm.cli.topui.columns import printable
from pwm.cli.topui.snapshot import Snapshot, read
from pwm.cli.topui.tables import ProcessRow

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 3.0
# Listing processes starts a program in each container: not as often as the figures.
PROCESSES_EVERY_S = 3.0


class Feed:
    """The stream of beats. `beat` gets each snapshot, `trouble` a sentence or "", `fatal` what ends it all."""

    def __init__(
        self,
        profile: Profile,
        *,
        query: dict[str, Any],
        beat: Callable[[Snapshot], None],
        trouble: Callable[[str], None],
        fatal: Callable[[CliError], None],
    ) -> None:
        self._profile = profile
        self._query = query
        self._beat = beat
        self._trouble = trouble
        self._fatal = fatal
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="top-feed", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No more calls after the one that may run now; the thread ends with its next beat."""
        self._over.set()

    def _run(self) -> None:
        snapshot: Snapshot | None = None
        pause_s = FIRST_PAUSE_S
        while not self._over.is_set():
            client = Client(self._profile, warn=self._trouble)
            try:
                for message in client.stream("/v1/top", query=self._query):
                    if self._over.is_set():
                        return
                    if snapshot is None or pause_s != FIRST_PAUSE_S:
                        self._trouble("")
                    pause_s = FIRST_PAUSE_S
                    snapshot = read(message, snapshot)
                    self._beat(snapshot)
                why = "the server ended the stream"
            except (TransportError, NoServerError) as error:
                why = str(error).splitlines()[0]
            except ServerError as error:
                if error.status != UNAVAILABLE:
                    self._fatal(error)
                    return
                why = error.message
            finally:
                client.close()
            self._trouble(f"{why}; trying again")
            self._over.wait(pause_s)
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)


class ProcessFeed:
    """Lists one workload's processes again and again."""

    def __init__(
        self, profile: Profile, target: Target, *, listed: Callable[[list[str], list[ProcessRow], str], None]
    ) -> None:
        self._profile = profile
        self._target = target
        self._listed = listed
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="top-processes", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()

    def _run(self) -> None:
        client = Client(self._profile, warn=lambda text: None)
        while not self._over.is_set():
            try:
                titles, rows, trouble = processes(client, self._target)
            except (CliError, TransportError) as error:
                titles, rows, trouble = [], [], str(error).splitlines()[0]
            if not self._over.is_set():
                self._listed(titles, rows, trouble)
            self._over.wait(PROCESSES_EVERY_S)
        client.close()


def processes(client: Client, target: Target) -> tuple[list[str], list[ProcessRow], str]:
    """Titles, rows, and what went wrong with some container."""
    answer = client.call("GET", target.path("processes"), query={"group": target.group})
    titles: list[str] = []
    rows: list[ProcessRow] = []
    trouble = ""
    for listing in answer.get("containers", ()):
        trouble = trouble or listing.get("error", "")
        # Drivers differ in their columns; those of the first container are shown.
        titles = titles or [printable(title) for title in listing.get("titles", ())]
        for row in listing.get("rows", ()):
            cells = tuple(printable(cell) for cell in row.get("cells", ()))[: len(titles)]
            rows.append(ProcessRow(listing.get("container", ""), cells + ("",) * (len(titles) - len(cells))))
    return titles, rows, trouble
