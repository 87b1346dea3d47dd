"""Watchers: one client for each server that follows all events of the cluster, as `pwm events -f -A` does.

They start before the first failure and end after the last. Each goes on by itself, at another server, when its own
fails; what that must not do is lose an event or show one twice, which only shows in the log afterwards.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from pwm.cli.client import Client
from pwm.cli.errors import CliError
from pwm.cli.http1 import TransportError
from pwm.cli.profiles import Profile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


@dataclass
class Watcher:
    """What one client has seen, in the order in which it came."""

    server: str
    events: list[dict[str, Any]] = field(default_factory=list)
    trouble: str = ""

    def versions_of(self, uid: str) -> list[int]:
        """Versions of one resource's stream, as they came."""
        return [int(event["version"]) for event in self.events if event.get("uid") == uid]

    def saw(self, revision: int) -> bool:
        return bool(self.events) and int(self.events[-1].get("revision", 0)) >= revision


def start_watchers(profile: Profile, *, after_revision: int, last: Callable[[dict[str, Any]], bool]) -> list[Watcher]:
    """Follows from each server of the profile, in threads that end after the event that is the `last`."""
    watchers = []
    for url in profile.servers:
        others = [server for server in profile.servers if server != url]
        own = Profile(
            profile.name, servers=[url, *others], token=profile.token, ca_file=profile.ca_file, pinned=profile.pinned
        )
        watcher = Watcher(url)
        # A daemon: it waits for events without a limit, and the end of the program need not wait for it.
        threading.Thread(
            target=_follow, args=(watcher, own, after_revision, last), name=f"watcher {url}", daemon=True
        ).start()
        watchers.append(watcher)
    return watchers


def _follow(watcher: Watcher, profile: Profile, after_revision: int, last: Callable[[dict[str, Any]], bool]) -> None:
    from pwm.cli.commands.events import followed

    client = Client(profile, warn=lambda _: None, in_order=True)
    try:
        query = {"allGroups": True, "follow": True, "afterRevision": after_revision}
        for message in followed(client, query):
            event = message.get("event") or {}
            watcher.events.append(event)
            if last(event):
                return
    except (CliError, TransportError) as error:
        watcher.trouble = str(error)
    finally:
        client.close()
