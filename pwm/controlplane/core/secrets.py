"""Secrets as decisions: what a document changes, what a container is given, and why it is not given it.

A Secret's state and its events know which keys it has and never what they hold; the values are a message of their own
(`SecretValues`), which is encrypted and kept beside the log. In a document an empty value keeps the one that is there:
so what `get` shows can be applied again, and one key be changed by somebody who does not know the others.

Nothing here says a value: neither refusals nor reasons have more than names.
"""

import base64
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass

from pwm.api.v1.agent_pb2 import ContainerSecrets
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.events_pb2 import SecretApplied
from pwm.api.v1.identity_pb2 import RegistryLogin, Secret, SecretSpec, SecretValues
from pwm.api.v1.services_pb2 import ApplyResult
from pwm.api.v1.workload_pb2 import ContainerSpec, SecretKey, Workload
from pwm.controlplane.core.decide import Payload, Refusal
from pwm.controlplane.core.scheduling.spec import image_reference

# Where files go unless a workload says otherwise.
DEFAULT_FOLDER = "/run/secrets"

# The registry of images that name none, and its other names.
HUB = "docker.io"
_HUBS = dict.fromkeys(("index.docker.io", "registry-1.docker.io", "hub.docker.com"), HUB)

# (group, name) of a Secret, and the key in it; "" for all of them.
Reference = tuple[str, str, str]
Find = Callable[[str, str], Secret | None]


def apply_secret(
    state: Secret | None, wanted: Secret, before: SecretValues | None
) -> tuple[ApplyResult.Outcome.ValueType, tuple[Payload, ...], SecretValues]:
    """Create or change a Secret. `before`: what the state's values are. Raises Refusal."""
    values = _merged(wanted, state, before or SecretValues())
    labels, registry = dict(wanted.metadata.labels), wanted.spec.registry.server
    applied = SecretApplied(labels=labels, keys=sorted(values.data), registry=registry)
    if state is None:
        return ApplyResult.CREATED, (applied,), values
    same = dict(state.metadata.labels) == labels and state.spec.registry.server == registry and values == before
    return (ApplyResult.UNCHANGED, (), values) if same else (ApplyResult.CONFIGURED, (applied,), values)


def _merged(wanted: Secret, state: Secret | None, before: SecretValues) -> SecretValues:
    spec, name, values = wanted.spec, wanted.metadata.name, SecretValues()
    for key, value in _given(spec):
        if value:
            values.data[key] = value
        elif key in before.data:
            values.data[key] = before.data[key]
        else:
            raise Refusal(f"the key {key} of secret {name} has no value", next_step=f"write spec.data.{key}: …")
    if spec.HasField("registry"):
        login = spec.registry
        kept = state is not None and state.spec.registry.server == login.server and bool(before.password)
        if not login.password and not (kept and login.username in ("", before.username)):
            step = "write spec.registry: {server: …, username: …, password: …}"
            raise Refusal(f"the login at {login.server} in secret {name} has no password", next_step=step)
        values.username = login.username or before.username
        values.password = login.password or before.password
    return values


def _given(spec: SecretSpec) -> Iterator[tuple[str, bytes]]:
    for key, text in spec.data.items():
        yield key, text.encode()
    for key, encoded in spec.base64.items():
        yield key, base64.b64decode(encoded, validate=True)


# ---- who refers to which


def references_of(workload: Workload) -> list[tuple[str, Reference]]:
    """(field, what it refers to) of all secrets that a workload uses."""
    spec, own = workload.spec, workload.metadata.group
    found = [
        (f"spec.config.secretEnv.{variable}", (key.group or own, key.secret, key.key))
        for variable, key in sorted(spec.config.secret_env.items())
    ]
    for number, files in enumerate(spec.config.secrets):
        found.append((f"spec.config.secrets[{number}]", (files.group or own, files.name, "")))
    if spec.image.HasField("registry_secret"):
        login = spec.image.registry_secret
        found.append(("spec.image.registrySecret", (login.group or own, login.name, "")))
    return found


@dataclass(frozen=True, slots=True)
class Missing:
    """What a workload refers to and is not there: the field that does, and a reason."""

    field: str
    reason: Reason


def missing(workload: Workload, find: Find) -> Missing | None:
    """Why a workload cannot start for want of a secret; None when all are there."""
    for field, (group, name, key) in references_of(workload):
        secret = find(group, name)
        if secret is None:
            return Missing(field, _not_there(f"there is no secret {name} in group {group}"))
        if key and key not in secret.spec.data:
            return Missing(field, _not_there(f"the secret {name} has no key {key}"))
        if field == "spec.image.registrySecret":
            why = no_login_for(image_reference(workload.spec.image), secret)
            if why:
                return Missing(field, _not_there(why))
    return None


def no_login_for(image: str, secret: Secret) -> str:
    """Why a secret is no help in pulling an image; "" if it is. A login goes to its own registry and to no other."""
    name, server = secret.metadata.name, secret.spec.registry.server
    if not server:
        return f"the secret {name} has no login for a registry"
    wanted, known = _registry_of(image), _HUBS.get(server, server)
    return "" if wanted == known else f"the secret {name} has a login at {known}, and {image} comes from {wanted}"


def _registry_of(image: str) -> str:
    """As Docker reads it: what comes before the first slash, if it looks like a host."""
    first, slash, _ = image.partition("/")
    host = first if slash and ("." in first or ":" in first or first == "localhost") else HUB
    return _HUBS.get(host, host)


# ---- what a container is given


def used_by(spec: ContainerSpec, group: str) -> set[tuple[str, str]]:
    """(group, name) of each secret that a container of `group` needs."""
    names = {(key.group or group, key.secret) for key in spec.secret_env.values()}
    names |= {(files.group or group, files.name) for files in spec.secrets}
    if spec.HasField("registry_secret"):
        names.add((spec.registry_secret.group or group, spec.registry_secret.name))
    return names


def given_to(
    spec: ContainerSpec, group: str, found: Mapping[tuple[str, str], tuple[Secret, SecretValues]]
) -> ContainerSecrets:
    """What a container gets, or `refused`. `found`: those of `used_by` that there are."""
    given = ContainerSecrets()
    absent = next((name for name in sorted(used_by(spec, group)) if name not in found), None)
    if absent is not None:
        given.refused.CopyFrom(_not_there(f"there is no secret {absent[1]} in group {absent[0]}"))
        return given
    for variable, key in sorted(spec.secret_env.items()):
        _, values = found[key.group or group, key.secret]
        why = _variable(given.env, variable, key, values.data.get(key.key))
        if why:
            return ContainerSecrets(refused=_not_there(why))
    for files in spec.secrets:
        _, values = found[files.group or group, files.name]
        folder = given.folders.add(name=files.name, target=files.target or f"{DEFAULT_FOLDER}/{files.name}")
        folder.files.update(values.data)
    if spec.HasField("registry_secret"):
        secret, values = found[spec.registry_secret.group or group, spec.registry_secret.name]
        why = no_login_for(spec.image, secret)
        if why:
            return ContainerSecrets(refused=_not_there(why))
        given.registry.CopyFrom(
            RegistryLogin(server=secret.spec.registry.server, username=values.username, password=values.password)
        )
    return given


def _variable(env: MutableMapping[str, str], variable: str, key: SecretKey, value: bytes | None) -> str:
    """Set a variable; or why it cannot be."""
    if value is None:
        return f"the secret {key.secret} has no key {key.key}"
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return (
            f"the key {key.key} of secret {key.secret} is no text, so no variable can hold it: use spec.config.secrets"
        )
    env[variable] = text
    return ""


def _not_there(message: str) -> Reason:
    return Reason(code=Reason.SECRET_NOT_EXIST, message=message)
