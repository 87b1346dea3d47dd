"""Settings of a controller. Each is a flag of `pwm controller`, a variable PWM_… or a key of its config file."""

import socket
from dataclasses import dataclass, field
from pathlib import Path

from pwm.controlplane.core.door import DoorLimits
from pwm.controlplane.core.nodes import NodeTimes


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    # etcd's client addresses, HOST:PORT.
    etcd: tuple[str, ...] = ("127.0.0.1:4702",)
    prefix: str = "/pwm/v1/"
    http_host: str = "127.0.0.1"
    http_port: int = 4700
    agent_host: str = "127.0.0.1"
    agent_port: int = 4701
    # Host by which users, agents and other replicas reach this one; empty: the addresses above, or this host's name.
    advertise: str = ""
    # Names this replica for as long as it runs; empty: made up at each start.
    replica: str = ""
    # Where a first admin token and a first node token are written.
    admin_token_file: Path | None = None
    node_token_file: Path | None = None
    # Silence after which a node is NOT_READY and LOST, and time after which an agent that is cut off ends the
    # containers that may then start elsewhere. 0: the default, or what goes with the others.
    node_grace_ms: int = 0
    node_lost_after_ms: int = 0
    self_fence_ms: int = 0
    # Streams (watches, logs, shells) that one user may have open at this replica.
    streams_per_user: int = 1_000
    # How long it is kept who did what.
    audit_keep_ms: int = 30 * 86_400_000
    # What one address may ask of this replica (core/door.py). 0: no limit, and no bans.
    rate_limit: int = 30
    rate_burst: int = 300
    ban_after: int = 3
    ban_time_ms: int = 120_000
    # Addresses and networks of proxies whose X-Forwarded-For is believed.
    trusted_proxies: tuple[str, ...] = ()
    log_level: str = "info"
    log_json: bool = False
    hostname: str = field(default_factory=socket.gethostname)

    def __post_init__(self) -> None:
        _ = self.times

    @property
    def times(self) -> NodeTimes:
        """Raises NodeTimesError for settings that cannot work together."""
        return NodeTimes.of(
            grace_ms=self.node_grace_ms, lost_after_ms=self.node_lost_after_ms, self_fence_ms=self.self_fence_ms
        )

    @property
    def door(self) -> DoorLimits:
        return DoorLimits(
            requests_per_s=self.rate_limit,
            burst=self.rate_burst,
            failures=self.ban_after,
            ban_s=self.ban_time_ms / 1000,
        )

    def reached_by(self, host: str) -> str:
        """What to announce for an address to listen on."""
        if self.advertise:
            return self.advertise
        return self.hostname if host in ("", "0.0.0.0", "::", "[::]") else host
