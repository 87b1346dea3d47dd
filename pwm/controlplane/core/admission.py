"""What no document may ask for, and what a document must say.

PWM shares machines between people who don't know each other, so a container gets only what is on a list of
allowed things; everything else that Docker could do is refused by name, before any event, and once more by
the agent. A refusal says what to use instead. `schema` has read every single field when this runs; here
are the rules that need more than one field, or that look for fields which must not be there.
"""

import re
from collections.abc import Callable

from pwm.api.v1.services_pb2 import Problem
from pwm.controlplane.core import fields
from pwm.controlplane.core.document import PERMISSION_DENIED, Findings, Item, below, child, shown
from pwm.controlplane.core.kinds import APPLIED
from pwm.controlplane.core.secret_documents import KEY, KEY_RULE, check_shape
from pwm.controlplane.core.secrets import DEFAULT_FOLDER

# Options of Docker's create call, as PWM 1.x passed them on unseen, and what to use instead.
# Names are in lower case, so that Binds, binds and BINDS are one.
_DEVICES = "ask for GPUs with spec.selectors.gpu; other devices are not given to containers"
_HOST = "every container has namespaces of its own"
_RIGHTS = "containers have the rights that Docker images need, and no more"
_MOUNTS = "mount a volume with spec.volumes"
_PORTS = "name the port in spec.config.ports and reach it with pwm port-forward"
_LIMITS = "limits are set with spec.config.memory, shmSize and spec.selectors"
FORBIDDEN_OPTIONS: dict[str, str] = {
    **dict.fromkeys(("devices", "devicerequests", "devicecgrouprules", "gpus"), _DEVICES),
    **dict.fromkeys(("networkmode", "network", "networkdisabled", "networkingconfig", "links", "macaddress"), _HOST),
    **dict.fromkeys(("pid", "pidmode", "ipc", "ipcmode", "uts", "utsmode", "userns", "usernsmode"), _HOST),
    **dict.fromkeys(("cgroup", "cgroupns", "cgroupnsmode", "cgroupparent", "isolation"), _HOST),
    **dict.fromkeys(("dns", "dnsoptions", "dnssearch", "extrahosts", "domainname"), _HOST),
    **dict.fromkeys(("privileged", "capadd", "capdrop", "capabilities", "securityopt", "groupadd", "sysctls"), _RIGHTS),
    **dict.fromkeys(("runtime", "init", "oomscoreadj", "oomkilldisable", "ulimits", "readonlyrootfs"), _RIGHTS),
    **dict.fromkeys(("maskedpaths", "readonlypaths", "hostconfig", "storageopt", "annotations"), _RIGHTS),
    **dict.fromkeys(("binds", "mounts", "volumes", "volumesfrom", "volumedriver", "tmpfs"), _MOUNTS),
    **dict.fromkeys(("exposedports", "portbindings", "publishallports"), _PORTS),
    **dict.fromkeys(("memoryswap", "memoryreservation", "nanocpus", "cpushares", "cpuset", "cpusetcpus"), _LIMITS),
    **dict.fromkeys(("pidslimit", "cpuquota", "cpuperiod", "blkioweight"), _LIMITS),
    **dict.fromkeys(("logconfig", "autoremove", "containeridfile", "onbuild", "shell"), "PWM sets it itself"),
}
# Names of fields by which people mount a path of the host.
_HOST_PATHS = frozenset({"hostpath", "source", "src", "path", "bind", "binds", "host", "device"})
# Container paths that belong to the kernel or to the runtime.
_SYSTEM_PATHS = ("/proc", "/sys", "/dev", "/etc", "/run", "/var/run", "/bin", "/sbin", "/lib", "/lib64", "/usr")
_SHARED_MEMORY = "/dev/shm"
_DOCKER_SOCKET = "docker.sock"
# Loaders and the GPU runtime obey these before the image's own program does.
_FORBIDDEN_ENV = ("LD_", "NVIDIA_")
# The process driver hands out GPUs by it.
_FORBIDDEN_ENV_OF_PROCESSES = ("CUDA_VISIBLE_DEVICES",)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,255}")
_VOLUME_NAME = re.compile(r"(pwm\.)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")

# Fields that are kept, but that nothing acts on yet: where, and what that means.
_NOT_YET: dict[str, tuple[tuple[str, str], ...]] = {
    "Workload": (("spec.volumes", "volumes are not mounted, so the workload waits and does not start"),),
    "Storage": (("spec", "nothing is stored there"),),
    "Volume": (("spec", "workloads that mount it wait"),),
}


def forbidden_options(kind: str, root: Item, findings: Findings) -> None:
    """Take out and refuse the fields that ask for more than any container gets, and what must not be shown."""
    if kind == "Secret":
        check_shape(root, findings)
    if kind != "Workload":
        return
    for place in ("spec", "spec.config"):
        item = _at(root, place)
        _forbidden_in(item.mapping if item is not None else None, findings, spared="volumes" if place == "spec" else "")
    for entry in _entries(root, "spec.volumes"):
        _host_paths(entry.mapping or {}, findings)


def _forbidden_in(mapping: dict[str, Item] | None, findings: Findings, *, spared: str) -> None:
    for key in list(mapping or {}):
        instead = FORBIDDEN_OPTIONS.get(key.replace("_", "").replace("-", "").lower())
        if instead is not None and key != spared and mapping is not None and mapping[key].value is not None:
            path = mapping.pop(key).path
            _forbid(path, f"{path} is not allowed: containers cannot be given it", instead, findings)


def _host_paths(volume: dict[str, Item], findings: Findings) -> None:
    for key in list(volume):
        if key.replace("_", "").lower() in _HOST_PATHS:
            _host_path(volume.pop(key), findings)
    name = volume.get("name")
    if name is not None and name.text is not None and ("/" in name.text or "\\" in name.text):
        _host_path(name, findings)


def check(kind: str, root: Item, findings: Findings) -> None:
    """The rules that need more than one field."""
    _names(kind, root, findings)
    checker = _CHECKERS.get(kind)
    if checker is not None:
        checker(root, findings)


def warn_not_yet(kind: str, root: Item, findings: Findings) -> None:
    """Say which fields are kept without effect."""
    for place, effect in _NOT_YET.get(kind, ()):
        item = _at(root, place)
        if item is not None and item.value not in ([], {}, "", "wait"):
            said = f"{item.path or place} is stored, but this version does not act on it yet: {effect}"
            findings.warnings.append(Problem(field=item.path or place, message=said))


# ---- every kind


def _names(kind: str, root: Item, findings: Findings) -> None:
    name = _at(root, "metadata.name")
    if name is None or name.value == "":
        findings.refuse("metadata.name", f"the {kind} has no name", "write metadata: {name: …}")
        return
    reader = {"Group": fields.group_name, "ResourceCredit": _product}.get(kind, fields.name)
    value = reader(name, findings)
    if value is not None and fields.reserved(value) and not (kind == "Group" and value == fields.SHARED_GROUP):
        findings.refuse(name.path, f"the name {shown(value)} is reserved: PWM uses it itself", "choose another name")
    group = _at(root, "metadata.group")
    if APPLIED[kind].grouped and group is not None and group.text is not None and fields.is_any(group.text):
        findings.refuse(group.path, f"{group.path} must be one group, not {group.text}", "write the group's name")


_product = fields.matching(
    fields.PRODUCT_NAME, rule="a product's name is made of letters, digits, spaces and any of _.()+@-"
)


# ---- Workload


def _workload(root: Item, findings: Findings) -> None:
    driver = child(_at(root, "spec.driver"))
    process = driver is not None and driver.text is not None and driver.text.lower() == "pwm.process"
    if process:
        if not _at(root, "spec.config.cmd"):
            _required(root, "spec.config.cmd", "a workload without an image needs a command", findings)
    else:
        _required(
            root, "spec.image.image", "the workload has no image", findings, example="spec: {image: ubuntu:24.04}"
        )
    _environment(root, findings, process=process)
    _secrets(root, findings, process=process)
    _volume_mounts(root, findings)
    _ports(root, findings)
    user = _at(root, "spec.config.user")
    if user is not None and user.mapping is not None and child(user, "uid") is None:
        findings.refuse(below(user, "uid"), f"{user.path} has no uid", "write user: {uid: 1000, gid: 1000}")
    idle, warn = _at(root, "spec.idle.pauseAfter"), _at(root, "spec.idle.warnBefore")
    if warn is not None and idle is None:
        findings.refuse(warn.path, f"{warn.path} needs spec.idle.pauseAfter", "write idle: {pauseAfter: 15m}")
    if idle is not None and _at(root, "spec.selectors.gpu") is None:
        findings.warn("spec.idle", "spec.idle is about GPUs that are not used, and the workload asks for none")


def _environment(root: Item, findings: Findings, *, process: bool) -> None:
    forbidden = _FORBIDDEN_ENV + (_FORBIDDEN_ENV_OF_PROCESSES if process else ())
    seen: dict[str, Item] = {}
    for place in ("spec.config.env", "spec.config.secretEnv"):
        variables = _at(root, place)
        for name, item in ((variables.mapping or {}) if variables is not None else {}).items():
            if not _ENV_NAME.fullmatch(name):
                step = "use letters, digits and '_', and no digit first"
                findings.refuse(item.path, f"{shown(name)} is no name of a variable", step)
            elif name.upper().startswith(forbidden):
                step = "ask for GPUs with spec.selectors.gpu" if name.upper().startswith("NVIDIA_") else "remove it"
                _forbid(item.path, f"the variable {name} is not allowed: it changes what the runtime does", step,
                        findings)  # fmt: skip
            elif name in seen:
                findings.refuse(item.path, f"the variable {name} is set twice", f"see {seen[name].path}")
            seen[name] = item


def _secrets(root: Item, findings: Findings, *, process: bool) -> None:
    variables = _at(root, "spec.config.secretEnv")
    for variable, item in ((variables.mapping or {}) if variables is not None else {}).items():
        secret, key = child(item, "secret"), child(item, "key")
        if secret is None or not secret.text or key is None or not key.text:
            step = "write {secret: NAME, key: KEY}"
            findings.refuse(item.path, f"the variable {variable} does not name a secret and a key in it", step)
        elif not KEY.fullmatch(key.text):
            findings.refuse(key.path, f"{shown(key.text)} is no name of a key", KEY_RULE)
    for entry in (*_entries(root, "spec.config.secrets"), *filter(None, [_at(root, "spec.image.registrySecret")])):
        name = child(entry, "name")
        if entry.mapping is not None and (name is None or not name.text):
            findings.refuse(below(entry, "name"), f"{entry.path} names no secret", "write name: …")
        target = child(entry, "target")
        if process and target is not None and target.text:
            step = "remove it; the variable PWM_SECRETS says where the files are"
            findings.refuse(target.path, "a process has no file system of its own, so it cannot choose a place", step)


def _volume_mounts(root: Item, findings: Findings) -> None:
    targets: dict[str, Item] = {}
    for entry in _entries(root, "spec.config.secrets"):
        name, target = child(entry, "name"), child(entry, "target")
        if target is not None and target.text:
            _target(target, targets, findings)
        elif name is not None and name.text:
            _target(Item(f"{DEFAULT_FOLDER}/{name.text}", entry.path), targets, findings)
    for entry in _entries(root, "spec.volumes"):
        name, target = child(entry, "name"), child(entry, "target")
        if name is None or name.value == "":
            findings.refuse(below(entry, "name"), f"{entry.path} names no volume", "write name: …")
        elif name.text is not None and "/" not in name.text and not _VOLUME_NAME.fullmatch(name.text):
            fields.name(name, findings)
        if target is None or not target.text:
            findings.refuse(below(entry, "target"), f"{entry.path} has no target", "write target: /path/in/container")
            continue
        _target(target, targets, findings)


def _target(target: Item, targets: dict[str, Item], findings: Findings) -> None:
    """A place in the container, which nothing else may have."""
    path = "/" + "/".join(part for part in (target.text or "").split("/") if part not in ("", "."))
    if _DOCKER_SOCKET in path:
        _forbid(target.path, f"{target.path}: Docker's socket is not for containers", "remove it", findings)
    elif path == "/" or (path != _SHARED_MEMORY and _is_below(path, _SYSTEM_PATHS)):
        findings.refuse(target.path, f"{target.path} is {shown(target.text)}, which belongs to the system",
                        "choose another path, such as /data")  # fmt: skip
    elif path in targets:
        findings.refuse(target.path, f"two mounts have the target {path}", f"see {targets[path].path}")
    targets[path] = target


def _is_below(path: str, roots: tuple[str, ...]) -> bool:
    """Whether `path` is one of the roots. A path further down, such as /usr/share/data, is fine but for kernel's."""
    return path in roots or path.startswith(("/proc/", "/sys/", "/dev/"))


def _ports(root: Item, findings: Findings) -> None:
    seen: dict[object, Item] = {}
    for entry in _entries(root, "spec.config.ports"):
        port, name, protocol = child(entry, "port"), child(entry, "name"), child(entry, "protocol")
        if port is None:
            findings.refuse(below(entry, "port"), f"{entry.path} has no port", "write {name: web, port: 8080}")
            continue
        suffix = (protocol.text or "").lower() if protocol is not None else ""
        for key in (f"{port.value}/{suffix or 'tcp'}", f"name {name.text}" if name is not None and name.text else ""):
            if key and key in seen:
                findings.refuse(entry.path, f"port {key} is there twice", f"see {seen[key].path}")
            seen[key] = entry


# ---- other kinds


def _storage(root: Item, findings: Findings) -> None:
    kind = _at(root, "spec.kind")
    _required(root, "spec.kind", "the storage does not say what it is", findings, example="kind: nfs, or kind: local")
    word = (kind.text or "").lower() if kind is not None else ""
    needed = {"nfs": ("spec.nfs.server", "spec.nfs.path"), "local": ("spec.local.node",)}.get(word, ())
    for place in needed:
        _required(root, place, f"the storage is {word}, but {place} is not there", findings)


def _volume(root: Item, findings: Findings) -> None:
    _required(root, "spec.storage", "the volume names no storage", findings, example="spec: {storage: …}")


def _credit(root: Item, findings: Findings) -> None:
    _required(root, "spec.credit.per.hour", "there is no price", findings, example="spec: {credit: {per: {hour: 1}}}")


def _user(root: Item, findings: Findings) -> None:
    for entry in _entries(root, "spec.groups"):
        name = child(entry, "name")
        if name is None or not name.text:
            findings.refuse(below(entry, "name"), f"{entry.path} names no group", "write name: …")
        elif not fields.is_any(name.text):
            fields.group_name(name, findings)


def _required(root: Item, place: str, what: str, findings: Findings, *, example: str = "") -> None:
    """A field that must be there. Where a part above it is of a wrong type, that was said already."""
    item: Item | None = root
    for key in place.split("."):
        if item is not None and item.value is not None and item.mapping is None:
            return
        item = child(item, key)
    if item is None or item.value == "":
        findings.refuse(place, what, f"write {example or place}")


_CHECKERS: dict[str, Callable[[Item, Findings], None]] = {
    "Workload": _workload,
    "Storage": _storage,
    "Volume": _volume,
    "ResourceCredit": _credit,
    "User": _user,
}


def _at(root: Item, place: str) -> Item | None:
    return child(root, *place.split("."))


def _entries(root: Item, place: str) -> list[Item]:
    """The mappings in a list; entries of other types were refused already."""
    item = _at(root, place)
    return [entry for entry in (item.sequence or ()) if entry.mapping is not None] if item is not None else []


def _forbid(path: str, message: str, next_step: str, findings: Findings) -> None:
    findings.refuse(path, message, next_step, code=PERMISSION_DENIED)


def _host_path(item: Item, findings: Findings) -> None:
    _forbid(item.path, f"{item.path} is not allowed: paths of the host cannot be mounted",
            "name a volume instead: {name: …, target: /data}", findings)  # fmt: skip
