"""What an agent is told when it starts.

The values come from flags, `PWM_…` variables or a file, read by the command line; this module knows only
their shapes and defaults, so that tests and `pwm up` make the same object.
"""

import socket
from dataclasses import dataclass, field
from pathlib import Path

# Docker's own default; also where Debian's package puts it.
DEFAULT_DOCKER_HOST = "unix:///var/run/docker.sock"
DEFAULT_STATE_DIR = Path("/var/lib/pwm/agent")

GIB = 1024**3
DAY_S = 24 * 3600


class ConfigError(ValueError):
    """A setting that cannot work; the message is a sentence for the user."""


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    # HOST:PORT of controller replicas, tried in turn.
    servers: tuple[str, ...]
    # Of the node, for controllers without TLS.
    token: str = field(default="", repr=False)
    plaintext: bool = False
    # For the first certificate, and where to ask for it (URLs of controllers; else at the same hosts, port 4700).
    join_token: str = field(default="", repr=False)
    join_at: tuple[str, ...] = ()
    node: str = field(default_factory=socket.gethostname)
    zone: str = ""
    # Tells clusters apart whose agents share an engine: an agent touches only containers of its cluster and node.
    cluster: str = "pwm"
    labels: dict[str, str] = field(default_factory=dict)
    # Where others reach this machine, shown in `pwm get node`.
    address: str = ""
    state_dir: Path = DEFAULT_STATE_DIR
    docker_host: str = DEFAULT_DOCKER_HOST
    # Real processes of the machine, without a container around them: off unless the owner wants it.
    allow_process: bool = False
    log_max_bytes: int = 1 * GIB
    log_total_bytes: int = 20 * GIB
    log_keep_days: int = 7
    # Offer at most so much of the machine, where several agents or other programs share it; 0: all there is.
    cpus: int = 0
    memory_bytes: int = 0
    # UUIDs of the GPUs to offer; None: all.
    gpus: frozenset[str] | None = None
    # HOST:PORT for /healthz, /readyz and /metrics; empty: none.
    health_address: str = ""
    # debug, info, warning or error; as JSON for machines.
    log_level: str = "info"
    log_json: bool = False

    def __post_init__(self) -> None:
        if not self.servers:
            raise ConfigError("An agent needs the address of at least one controller, such as 127.0.0.1:4701")
        if self.plaintext and not self.token:
            raise ConfigError("Without TLS an agent needs a node token; an admin makes one with `pwm admin node-token`")
        if self.cpus < 0 or self.memory_bytes < 0:
            raise ConfigError("An agent offers at least one CPU and some memory; leave them out to offer all there is")
        if not self.docker_host.startswith("unix://"):
            raise ConfigError(
                f"The Docker host {self.docker_host!r} is not on this machine; an agent needs a socket, "
                f"such as {DEFAULT_DOCKER_HOST}"
            )

    @property
    def docker_socket(self) -> str:
        return self.docker_host.removeprefix("unix://")
