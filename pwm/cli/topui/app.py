"""`pwm top` on a terminal: the application that holds the screens and takes the feed's beats to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from textual.app import App

from pwm.cli.errors import CliError
from pwm.cli.profiles import Profile
from pwm.cli.target import Target
from pwm.cli.topui.feed import Feed
from pwm.cli.topui.screens import OneWorkload, Overview, TablesScreen
from pwm.cli.topui.snapshot import Snapshot


class TopApp(App[None]):
    """All nodes and workloads, or with a target one workload."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "pwm top"

    def __init__(self, profile: Profile, *, query: dict[str, Any], target: Target | None = None) -> None:
        super().__init__()
        self.profile = profile
        self.place = profile.name
        self.theme = "tokyo-night"
        self.snapshot: Snapshot | None = None
        self.trouble = ""
        # What ended it, if it was not the person.
        self.error: CliError | None = None
        # Screens that Esc does not leave: the app's own empty one and ours.
        self.base_screens = 2
        self._target = target
        self._feed = Feed(
            profile,
            query=query,
            beat=lambda snapshot: self.from_thread(lambda: self.beat(snapshot)),
            trouble=lambda text: self.from_thread(lambda: self.say_trouble(text)),
            fatal=lambda error: self.from_thread(lambda: self.end(error)),
        )

    def on_mount(self) -> None:
        self.push_screen(OneWorkload(self._target) if self._target else Overview())
        self._feed.start()

    def on_unmount(self) -> None:
        self._feed.stop()

    def from_thread(self, call: Callable[[], object]) -> None:
        """Runs a call in the application's own thread, soon; drops it when the application is ending."""
        if self.is_running:
            self.call_later(call)

    def beat(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        for screen in self.screen_stack:
            # Also those below: on the way back they show what is now.
            if isinstance(screen, TablesScreen) and screen.is_drawn:
                screen.show(snapshot)

    def say_trouble(self, text: str) -> None:
        self.trouble = text
        for screen in self.screen_stack:
            if isinstance(screen, TablesScreen) and screen.is_drawn:
                screen.show_state()

    def end(self, error: CliError) -> None:
        self.error = error
        self.exit()
