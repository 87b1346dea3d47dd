"""The full container that a placement becomes: all that an agent needs, so that it never looks anything up."""

import re

from pwm.api.v1.workload_pb2 import Config, ContainerSpec, Image, Workload
from pwm.controlplane.core.limits import owner_of
from pwm.controlplane.core.scheduling.demand import DEFAULT_DRIVER, SIZE_MAX, is_any
from pwm.controlplane.core.scheduling.plan import POLICY_VERSION, Placement
from pwm.quantity import parse_bytes, parse_duration

STOP_GRACE_MS = 10_000
# Linux allows 64 characters, but resolvers expect labels of up to 63.
_HOSTNAME_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
_HOSTNAME = re.compile(rf"(?=.{{1,63}}\Z){_HOSTNAME_LABEL}(\.{_HOSTNAME_LABEL})*")


def container_spec(workload: Workload, placement: Placement, *, revision: int) -> ContainerSpec:
    """The container of a placement; `revision` is the log's revision that it was decided on.

    Raises QuantityError when a size or duration cannot be read, which admission keeps from happening.
    """
    spec, config = workload.spec, workload.spec.config
    container = ContainerSpec(
        workload_uid=workload.metadata.uid,
        workload=workload.metadata.name,
        replica=placement.waiting.replica,
        attempt=placement.waiting.attempt,
        generation=workload.status.generation,
        node=placement.node,
        driver=spec.driver or DEFAULT_DRIVER,
        image=image_reference(spec.image),
        pull_policy=spec.image.pull_policy or Image.IfNotPresent,
        hostname=config.hostname or default_hostname(workload.metadata.name),
        resources=placement.resources,
        gpu_uuids=placement.gpu_uuids,
        cpu_ids=placement.cpu_ids,
        shm_bytes=min(parse_bytes(config.shm_size), SIZE_MAX) if config.shm_size else 0,
        stop_grace_ms=min(parse_duration(config.stop_grace), SIZE_MAX) if config.stop_grace else STOP_GRACE_MS,
        time_limit_ms=min(parse_duration(config.time_limit), SIZE_MAX) if config.time_limit else 0,
        volumes=spec.volumes,
        decided_at_revision=revision,
        policy_version=POLICY_VERSION,
        failures_before=placement.waiting.failures,
        on_node_lost=spec.on_node_lost,
        owner=owner_of(workload),
    )
    if spec.image.HasField("registry_secret"):
        container.registry_secret.CopyFrom(spec.image.registry_secret)
    _copy_config(config, container)
    return container


def _copy_config(config: Config, container: ContainerSpec) -> None:
    """What goes through as the user wrote it."""
    container.cmd.extend(config.cmd)
    container.entrypoint.extend(config.entrypoint)
    container.env.update(config.env)
    for variable, key in config.secret_env.items():
        container.secret_env[variable].CopyFrom(key)
    container.secrets.extend(config.secrets)
    container.working_dir = config.working_dir
    container.labels.update(config.labels)
    container.ports.extend(config.ports)
    container.tty = config.tty
    container.stdin = config.stdin
    if config.HasField("user"):
        container.user.CopyFrom(config.user)
    if config.HasField("health"):
        container.health.CopyFrom(config.health)


def image_reference(image: Image) -> str:
    """`registry/repository/image:tag`, with `latest` when neither tag nor digest is given; empty without an image."""
    if not image.image:
        return ""
    parts = [part.strip("/") for part in (image.registry, image.repository) if not is_any(part)]
    reference = "/".join([*parts, image.image])
    last = reference.rsplit("/", 1)[-1]
    return reference if ":" in last or "@" in last else f"{reference}:latest"


def default_hostname(name: str) -> str:
    """The workload's name where it is a valid host name; else none, and the driver makes one up."""
    return name if _HOSTNAME.fullmatch(name) else ""
