"""From an assignment to what Docker is asked to create, and what is refused.

The allow-list of the control plane is checked here again: an agent trusts no order that would hand its machine
to a container. There is no way to ask for privileges, host namespaces, host paths, devices or another runtime,
because nothing here ever writes them; what a user may write freely (environment, labels) is checked by name.

Always on: all capabilities dropped but those of `CAPABILITIES`, no new privileges (setuid programs gain nothing),
Docker's default seccomp profile, a limit on processes, memory without extra swap, and Docker's own restarts off.
No init process is put in front of the command: it would hide that the command does not exist (Docker could only
say so by exit code 127 of a container that "ran"). What it is good for, an end on SIGTERM, `stop` does itself.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pwm.api.v1.agent_pb2 import Assignment, ContainerSecrets
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.workload_pb2 import ContainerSpec, Health, WorkloadSpec
from pwm.nodeagent.drivers.driver import DriverError
from pwm.nodeagent.watchdog import RESCHEDULE
from pwm.quantity import QuantityError, parse_duration

# What ordinary images need: package managers and entry points that change owners and users (CHOWN to SETUID),
# servers on ports below 1024, sshd and package managers that confine themselves (SYS_CHROOT), logins (AUDIT_WRITE).
# Of Docker's own list left out: MKNOD (devices are the host's), NET_RAW (forged packets to neighbours; ping works
# without it), SETFCAP (useless with no-new-privileges).
CAPABILITIES = [
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "NET_BIND_SERVICE", "SYS_CHROOT", "AUDIT_WRITE",
]  # fmt: skip
# Against fork bombs; PyTorch with many loaders needs thousands of threads.
PIDS_LIMIT = 16384
# Docker's own copy of the output is only the way to the agent's spool: it must hold what is printed while the
# agent is away. 100 MB/s fill 320 MiB in 3 s, ordinary programs in days. The `local` driver keeps every byte
# (json-file replaces what is not UTF-8) and costs the engine less; uncompressed, so that rotated parts can be read.
LOG_DRIVER = "local"
LOG_MAX_SIZE = "64m"
LOG_MAX_FILES = "5"
FORBIDDEN_ENV_PREFIXES = ("LD_", "NVIDIA_")
LABEL_PREFIX = "pwm."
ON_NODE_LOST = "pwm.on-node-lost"
# Names of the variables whose values nobody is shown.
SECRET_ENV = "pwm.secret-env"
HIDDEN = "(secret)"
NANOS_PER_MILLI = 1_000_000


def container_name(assignment: Assignment) -> str:
    """`pwm.GROUP.NAME.REPLICA.ATTEMPT`: the same every time, so Docker itself refuses a second one."""
    return f"pwm.{assignment.group}.{assignment.name}"


def check(assignment: Assignment) -> None:
    """Raises `DriverError` for what this agent does not do."""
    spec = assignment.spec
    for name in (*spec.env, *spec.secret_env):
        if name.upper().startswith(FORBIDDEN_ENV_PREFIXES) or "=" in name or not name:
            raise _refused(f"The variable {name!r} may not be set: it changes how the node runs programs")
    for name in spec.labels:
        if name.lower().startswith(LABEL_PREFIX):
            raise _refused(f"The label {name!r} may not be set: labels that begin with {LABEL_PREFIX} are PWM's own")
    if spec.volumes:
        raise DriverError(
            Reason.VOLUME_NOT_READY,
            f"This node's agent cannot mount volumes, and the workload wants {spec.volumes[0].name!r}; "
            "update the agent",
        )


def check_given(spec: ContainerSpec, given: ContainerSecrets) -> None:
    """Raises `DriverError` when something is missing: a container without its secrets must not run."""
    if spec.secret_env.keys() - given.env.keys() or len(given.folders) < len(spec.secrets):
        raise DriverError(Reason.SECRET_NOT_EXIST, "The container was not given all that its secrets hold")


def create_body(assignment: Assignment, *, node: str, cluster: str) -> dict[str, Any]:
    """The body of `POST /containers/create`. Call `check` first."""
    spec = assignment.spec
    body: dict[str, Any] = {
        "Image": spec.image,
        "Env": _environment(spec),
        "Labels": {**spec.labels, **own_labels(assignment, node=node, cluster=cluster)},
        "Tty": spec.tty,
        "OpenStdin": spec.stdin,
        "ExposedPorts": {f"{port.port}/{port.protocol or 'tcp'}": {} for port in spec.ports},
        "HostConfig": _host_config(spec),
    }
    if spec.cmd:
        body["Cmd"] = list(spec.cmd)
    if spec.entrypoint:
        body["Entrypoint"] = list(spec.entrypoint)
    if spec.working_dir:
        body["WorkingDir"] = spec.working_dir
    if spec.hostname:
        body["Hostname"] = spec.hostname
    if spec.HasField("user"):
        body["User"] = f"{spec.user.uid}:{spec.user.gid}"
    if spec.health.cmd:
        body["Healthcheck"] = _healthcheck(spec.health)
    return body


def add_secrets(body: dict[str, Any], env: Mapping[str, str], folders: Mapping[str, Path]) -> None:
    """Puts into the body what the container's secrets hold: variables, and folders by their place in it."""
    if env:
        names = {name.partition("=")[0] for name in body["Env"]} & env.keys()
        body["Env"] = [entry for entry in body["Env"] if entry.partition("=")[0] not in names]
        body["Env"] += [f"{name}={value}" for name, value in env.items()]
        body["Labels"][SECRET_ENV] = ",".join(sorted(env))
    if folders:
        body["HostConfig"]["Mounts"] = [
            {"Type": "bind", "Source": str(folder), "Target": target, "ReadOnly": True}
            for target, folder in folders.items()
        ]


def masked(found: dict[str, Any]) -> dict[str, Any]:
    """What Docker says of a container, without the values of the variables that came from secrets."""
    config = found["Config"]
    hidden = set((config["Labels"] or {}).get(SECRET_ENV, "").split(","))
    entries = [(entry, entry.partition("=")[0]) for entry in config.get("Env") or ()]
    config["Env"] = [f"{name}={HIDDEN}" if name in hidden else entry for entry, name in entries]
    return found


def own_labels(assignment: Assignment, *, node: str, cluster: str) -> dict[str, str]:
    spec = assignment.spec
    labels = {
        "pwm.uid": assignment.uid,
        "pwm.group": assignment.group,
        "pwm.workload": spec.workload,
        "pwm.replica": str(spec.replica),
        "pwm.attempt": str(spec.attempt),
        "pwm.node": node,
        "pwm.cluster": cluster,
    }
    if spec.on_node_lost == WorkloadSpec.reschedule:
        # The watchdog finds by it what it has to end.
        labels[ON_NODE_LOST] = RESCHEDULE
    return labels


def identity(*, node: str, cluster: str) -> list[str]:
    """Filters for what is of this agent's."""
    return [f"pwm.node={node}", f"pwm.cluster={cluster}"]


def _environment(spec: ContainerSpec) -> list[str]:
    env = dict(spec.env)
    if not spec.gpu_uuids:
        # Where nvidia is the default runtime, an image that says "all" would otherwise get every GPU.
        env["NVIDIA_VISIBLE_DEVICES"] = "void"
    return [f"{name}={value}" for name, value in env.items()]


def _host_config(spec: ContainerSpec) -> dict[str, Any]:
    config: dict[str, Any] = {
        "RestartPolicy": {"Name": "no"},
        "LogConfig": {
            "Type": LOG_DRIVER,
            "Config": {"max-size": LOG_MAX_SIZE, "max-file": LOG_MAX_FILES, "compress": "false"},
        },
        "CapDrop": ["ALL"],
        "CapAdd": CAPABILITIES,
        "SecurityOpt": ["no-new-privileges"],
        "PidsLimit": PIDS_LIMIT,
    }
    resources = spec.resources
    if spec.cpu_ids:
        config["CpusetCpus"] = ",".join(map(str, spec.cpu_ids))
    elif resources.cpu_millis:
        config["NanoCpus"] = resources.cpu_millis * NANOS_PER_MILLI
    if resources.memory_bytes:
        config["Memory"] = config["MemorySwap"] = resources.memory_bytes
    if spec.shm_bytes:
        config["ShmSize"] = spec.shm_bytes
    if spec.gpu_uuids:
        config["DeviceRequests"] = [
            {"Driver": "nvidia", "DeviceIDs": list(spec.gpu_uuids), "Capabilities": [["gpu"]]},
        ]
    return config


def _healthcheck(health: Health) -> dict[str, Any]:
    try:
        times = {
            name: parse_duration(text) * NANOS_PER_MILLI
            for name, text in (("Interval", health.interval), ("Timeout", health.timeout))
            if text
        }
    except QuantityError as error:
        raise _refused(f"The health check is not usable: {error}") from error
    check: dict[str, Any] = {"Test": ["CMD", *health.cmd], **times}
    if health.retries:
        check["Retries"] = health.retries
    return check


def _refused(message: str) -> DriverError:
    return DriverError(Reason.CONFIG_NOT_ALLOWED, message)
