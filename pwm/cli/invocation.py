"""One call of the program: where to go, as whom, and how to talk to the person.

Every command's function gets one. What costs time is made on first use: the profile is read and the
server is called only by commands that need them.
"""

from __future__ import annotations

import os
import sys

from pwm.cli.command import GLOBALS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO

    from pwm.cli.client import Client
    from pwm.cli.command import Command
    from pwm.cli.profiles import Profile


class Invocation:
    """Scope (`group`, `all_groups`, `zone`), the `client`, and the streams to write to."""

    def __init__(self, scope: dict[str, Any], *, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.group: str = scope.get("group") or ""
        self.all_groups: bool = bool(scope.get("all_groups"))
        self.zone: str = scope.get("zone") or ""
        self.out: TextIO = out or sys.stdout
        self.err: TextIO = err or sys.stderr
        self.profile_name: str = scope.get("profile") or ""
        self.servers: tuple[str, ...] = tuple(scope.get("server") or ())
        self._profile: Profile | None = None
        self._client: Client | None = None

    @classmethod
    def run(cls, command: Command, values: dict[str, Any]) -> int:
        """Runs a command with its values, of which the global ones become the invocation's."""
        own = {name: value for name, value in values.items() if name not in GLOBALS}
        assert command.run is not None
        with cls(values) as invocation:
            return command.run(invocation, **own) or 0

    def __enter__(self) -> Invocation:
        return self

    def __exit__(self, *error: object) -> None:
        if self._client is not None:
            self._client.close()

    @property
    def profile(self) -> Profile:
        """Servers and token, from options, environment and the profile's file."""
        if self._profile is None:
            from pwm.cli.profiles import current_profile

            self._profile = current_profile(self.profile_name, self.servers, warn=self.warn)
        return self._profile

    @property
    def client(self) -> Client:
        """The client of the profile's servers; it connects with its first call."""
        if self._client is None:
            from pwm.cli.client import Client

            self._client = Client(self.profile, warn=self.warn)
        return self._client

    def scope(self) -> dict[str, Any]:
        """Query parameters that say which group and zone a list is of."""
        scope: dict[str, Any] = {}
        if self.group in ("pwm.all", "All") or self.all_groups:
            scope["allGroups"] = True
        elif self.group:
            scope["group"] = self.group
        if self.zone:
            scope["zone"] = self.zone
        return scope

    # --- talking to the person --------------------------------------------------------------------

    def say(self, text: str) -> None:
        """A line of the answer, on standard output."""
        self.out.write(text + "\n")

    def note(self, text: str) -> None:
        """A line beside the answer, on standard error."""
        self.out.flush()
        self.err.write(text + "\n")
        self.err.flush()

    def warn(self, text: str) -> None:
        self.note(f"warning: {text}")

    @property
    def colour(self) -> bool:
        """Whether standard output may have colours: a terminal, unless NO_COLOR; FORCE_COLOR insists."""
        return wants_colour(self.out)


def wants_colour(stream: TextIO) -> bool:
    """Whether to colour what is written to this stream (no-color.org, force-color.org)."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"
