"""Documents of PWM 1.x and of PWM 2 (Dora), rewritten into today's form.

People's files outlive versions: what they wrote keeps its meaning. Every rewriting moves items of the tree
to where they belong today, keeping their paths, so that a later complaint still points at the user's line.
What has no place any more is taken out with a warning that says so; nothing goes in silence.
`docs/old-manifests.md` lists every old field and what became of it, and a test reads that table.

This module knows only forms. Whether a value is allowed is for `schema` (its type and limits) and
`admission` (what no workload may ask for).
"""

from collections.abc import Callable

from pwm.controlplane.core import commandline, kinds, verbs
from pwm.controlplane.core.document import Findings, Item, child
from pwm.controlplane.core.fields import NONE, is_any, scalar_text

_DRIVERS = {"docker": "pwm.docker", "pwm.nvidiadocker": "pwm.docker", "nvidiadocker": "pwm.docker"}
# Letters of `docker run -itd`, as PWM 1.x had them in startMode.
_START_MODES = {"i": "stdin", "t": "tty", "d": ""}
_META = {
    "sync": "upload files with pwm sync",
    "shell": "pwm shell asks for nothing in the manifest",
    "integrations": "webhooks that change a workload are gone",
}


def rewrite(kind: str, root: dict[str, Item], findings: Findings) -> None:
    """Bring a document of `kind` into today's form, in place."""
    _metadata(kind, root, findings)
    spec = _section(root, "spec")
    rewriter = _REWRITERS.get(kind)
    if rewriter is not None and spec is not None:
        rewriter(root, spec, findings)


def _section(parent: dict[str, Item], key: str) -> dict[str, Item] | None:
    item = parent.get(key)
    return item.mapping if item is not None else None


def _drop(parent: dict[str, Item], key: str, findings: Findings, *, why: str, next_step: str = "") -> None:
    """Take out a field that means nothing any more."""
    item = parent.pop(key, None)
    if item is not None and item.value is not None:
        findings.warn(item.path, f"{item.path} is no longer used: {why}", next_step)


def _put(parent: dict[str, Item], key: str, item: Item | None, findings: Findings) -> None:
    """Set a field from another place. If it is there already with another value, the two contradict."""
    if item is None or item.value is None:
        return
    there = parent.get(key)
    if there is not None and there.value is not None and there.value != item.value:
        findings.refuse(item.path, f"{item.path} and {there.path} say different things", f"keep {there.path} only")
    else:
        parent[key] = item


def _rename(parent: dict[str, Item], old: str, new: str, findings: Findings) -> None:
    _put(parent, new, parent.pop(old, None), findings)


def _metadata(kind: str, root: dict[str, Item], findings: Findings) -> None:
    metadata = _section(root, "metadata")
    if metadata is None:
        return
    _rename(metadata, "workspace", "group", findings)
    group = metadata.get("group")
    if not kinds.APPLIED[kind].grouped and group is not None:
        del metadata["group"]
        if group.value is not None:
            findings.warn(group.path, f"{group.path} is not used: a {kind} belongs to the cluster, not to a group")
    zone = metadata.pop("zone", None)
    if zone is None or zone.value is None:
        return
    if kind in ("Workload", "Node"):
        spec = root.setdefault("spec", Item({}, "spec"))
        if spec.mapping is not None:
            _put(spec.mapping, "zone", zone, findings)
    elif not (zone.text is not None and is_any(zone.text)):
        findings.warn(zone.path, f"{zone.path} is not used: a {kind} is the same in all zones")


# ---- Workload


def _workload(root: dict[str, Item], spec: dict[str, Item], findings: Findings) -> None:
    _meta(root, findings)
    driver = child(spec.get("driver"))
    if driver is not None and driver.text is not None:
        driver.value = _DRIVERS.get(driver.text.lower(), driver.text)
    selectors = _section(spec, "selectors")
    if selectors is not None:
        _selectors(selectors)
    image = child(spec.get("image"))
    if image is not None and image.text is not None:
        spec["image"] = Item({"image": image}, image.path)
    if "config" in spec or "network" in spec:
        config = spec.setdefault("config", Item({}, "spec.config")).mapping
        if config is not None:
            _network(spec, config, findings)
            _config(config, spec, findings)
    _volumes(spec, findings)
    _notify(spec, findings)


def _meta(root: dict[str, Item], findings: Findings) -> None:
    meta = root.pop("meta", None)
    for key, item in (meta.mapping or {}).items() if meta is not None else ():
        if item.value is not None:
            findings.warn(item.path, f"{item.path} is no longer used", _META.get(key, "remove it"))


def _selectors(selectors: dict[str, Item]) -> None:
    node = child(selectors.get("node"))
    if node is not None and node.text is not None:
        selectors["node"] = Item({"name": node}, node.path)
    _pairs(selectors, "label")
    for key in ("gpu", "cpu"):
        device = _section(selectors, key)
        if device is None:
            continue
        if "productName" in device and "product_name" not in device:
            device["product_name"] = device.pop("productName")
        product, count = child(device.get("product_name")), child(device.get("count"))
        if product is not None and product.text is not None and product.text.lower() == NONE:
            selectors[key] = Item(None, selectors[key].path)
        elif count is not None and (count.value == 0 or (count.text is not None and count.text.lower() == NONE)):
            if key == "gpu":
                selectors[key] = Item(None, selectors[key].path)
            else:
                device["count"] = Item(None, count.path)
        elif key == "gpu" and count is None and device:
            # Who names a model wants one.
            device["count"] = Item(1, selectors[key].path)


def _pairs(parent: dict[str, Item], key: str) -> None:
    """`[A=1, {name: B, value: 2}]` as `{A: 1, B: 2}`. Entries of other forms stay, to be refused."""
    entries = parent[key].sequence if key in parent else None
    if entries is None:
        return
    pairs: dict[str, Item] = {}
    for entry in entries:
        if entry.text is not None and "=" in entry.text:
            name, _, value = entry.text.partition("=")
            pairs[name] = Item(value, entry.path)
        elif entry.mapping is not None and {"name"} <= set(entry.mapping) <= {"name", "value"}:
            name_text = entry.mapping["name"].text
            if name_text is None:
                return
            pairs[name_text] = entry.mapping.get("value", Item("", entry.path))
        else:
            return
    parent[key] = Item(dict(pairs), parent[key].path)


def _config(config: dict[str, Item], spec: dict[str, Item], findings: Findings) -> None:
    _pairs(config, "env")
    _pairs(config, "labels")
    _secret_env(config)
    entrypoint = _split_command(config, "entrypoint", findings)
    _split_command(config, "cmd", findings, entrypoint=entrypoint)
    health = _section(config, "health")
    if health is not None:
        _split_command(health, "cmd", findings)
    _start_mode(config, findings)
    _cpu(config, spec, findings)
    _ports(config, findings)
    _user(config)


def _secret_env(config: dict[str, Item]) -> None:
    env = _section(config, "env")
    if env is None:
        return
    secret = {name: item for name, item in env.items() if child(item, "secret") is not None}
    if not secret:
        return
    target = config.setdefault("secretEnv", Item({}, config["env"].path)).mapping
    if target is not None:
        target |= secret
        config["env"] = Item({name: item for name, item in env.items() if name not in secret}, config["env"].path)


def _split_command(
    parent: dict[str, Item], key: str, findings: Findings, *, entrypoint: list[str] | None = None
) -> list[str]:
    """A command as one text becomes its list; returns the words."""
    item = child(parent.get(key))
    if item is None:
        return []
    if item.sequence is not None:
        return [entry.text or "" for entry in item.sequence]
    if item.mapping is not None:
        return []
    text = scalar_text(item, findings)
    if not text:
        parent[key] = Item(None, item.path)
        return []
    try:
        words = commandline.split(text, entrypoint=entrypoint or ())
    except commandline.CommandLineError as error:
        findings.refuse(item.path, f"{item.path} {error}", "write it as a list: [program, argument]")
        words = []
    parent[key] = Item([Item(word, item.path) for word in words], item.path)
    return words


def _start_mode(config: dict[str, Item], findings: Findings) -> None:
    item = config.pop("startMode", None)
    if item is None or item.value is None:
        return
    letters = (item.text or "?").strip().lstrip("-")
    if not set(letters) <= set(_START_MODES):
        findings.warn(item.path, f"{item.path} is no longer used", "write tty: true and stdin: true where needed")
        return
    for letter in letters:
        if _START_MODES[letter]:
            config.setdefault(_START_MODES[letter], Item(True, item.path))


def _cpu(config: dict[str, Item], spec: dict[str, Item], findings: Findings) -> None:
    """config.cpu was the number of CPUs; selectors.cpu.count is its place."""
    item = config.pop("cpu", None)
    if item is None or item.value is None:
        return
    selectors = spec.setdefault("selectors", Item({}, item.path))
    if selectors.value is None:
        selectors.value = {}
    cpu = selectors.mapping.setdefault("cpu", Item({}, item.path)) if selectors.mapping is not None else None
    if cpu is not None and cpu.value is None:
        cpu.value = {}
    if cpu is not None and cpu.mapping is not None:
        _put(cpu.mapping, "count", item, findings)


def _ports(config: dict[str, Item], findings: Findings) -> None:
    ports = config["ports"].sequence if "ports" in config else None
    for index, entry in enumerate(ports or ()):
        if ports is not None and isinstance(entry.value, int | str):
            ports[index] = Item({"port": entry}, entry.path)
        elif entry.mapping is not None:
            _drop(
                entry.mapping,
                "hostPort",
                findings,
                why="ports of a node are not given away",
                next_step="reach the port with pwm port-forward",
            )


def _user(config: dict[str, Item]) -> None:
    """`user: "1000:1000"`, as Docker has it."""
    item = child(config.get("user"))
    if item is None:
        return
    if isinstance(item.value, int) and not isinstance(item.value, bool):
        config["user"] = Item({"uid": item, "gid": item}, item.path)
    elif item.text is not None:
        uid, _, gid = item.text.partition(":")
        config["user"] = Item({"uid": Item(uid, item.path), "gid": Item(gid or uid, item.path)}, item.path)


def _network(spec: dict[str, Item], config: dict[str, Item], findings: Findings) -> None:
    network = _section(spec, "network")
    if network is None:
        return
    name = child(network.get("name"))
    if name is None or name.text is None or (name.text.lower() not in ("host", "none") and ":" not in name.text):
        # What would leave the container's own network stays, for admission to refuse.
        _drop(network, "name", findings, why="every container has a network of its own")
    if "ports" in network:
        _put(config, "ports", network.pop("ports"), findings)
    if not network:
        del spec["network"]


def _volumes(spec: dict[str, Item], findings: Findings) -> None:
    volumes = child(spec.get("volumes"))
    for entry in (volumes.sequence or ()) if volumes is not None else ():
        if entry.mapping is not None:
            _rename(entry.mapping, "workspace", "group", findings)


def _notify(spec: dict[str, Item], findings: Findings) -> None:
    notify = child(spec.get("notify"))
    if notify is not None and isinstance(notify.value, bool):
        spec["notify"] = Item({"byEmail": notify}, notify.path)
    plugins = spec.pop("plugins", None)
    for key, plugin in (plugins.mapping or {}).items() if plugins is not None else ():
        if key == "telegram" and plugin.mapping is not None:
            _telegram(plugin.mapping, spec)
        elif plugin.value is not None:
            findings.warn(plugin.path, f"{plugin.path} is no longer used: there are no plugins", "see spec.notify")


def _telegram(telegram: dict[str, Item], spec: dict[str, Item]) -> None:
    """A chat of the cluster's bot becomes one more address to notify."""
    chat = child(telegram.get("id"))
    item = spec.setdefault("notify", Item({}, "spec.plugins.telegram"))
    if item.value is None:
        item.value = {}
    if item.mapping is None:
        return
    if chat is not None and isinstance(chat.value, int | str):
        to = item.mapping.setdefault("to", Item([], chat.path))
        if to.sequence is not None:
            to.sequence.append(Item(f"tgram://{chat.value}", chat.path))
    if "sendOn" in telegram:
        item.mapping.setdefault("on", telegram["sendOn"])


# ---- other kinds


def _node(root: dict[str, Item], spec: dict[str, Item], findings: Findings) -> None:
    _rename(spec, "endpoint", "address", findings)
    _drop(
        spec,
        "token",
        findings,
        why="a node's credential is not part of its description",
        next_step="make one with pwm admin join-token",
    )
    allow = child(spec.get("allow"))
    if allow is not None and allow.text is not None:
        allow = spec["allow"] = Item([Item(allow.text, allow.path)], allow.path)
    if allow is not None and any(e.text is not None and is_any(e.text) for e in allow.sequence or ()):
        spec["allow"] = Item([Item(word, allow.path) for word in ("CPUWorkload", "GPUWorkload")], allow.path)
    _pairs(spec, "labels")


def _user_kind(root: dict[str, Item], spec: dict[str, Item], findings: Findings) -> None:
    if "active" in root:
        _put(spec, "active", root.pop("active"), findings)
    _dora_resources(spec, findings)
    _dora_credits(spec, findings)
    for membership in (spec["groups"].sequence or ()) if "groups" in spec else ():
        if membership.mapping is None:
            continue
        name = child(membership.mapping.get("name"))
        if name is not None and name.text is not None and is_any(name.text):
            membership.mapping["name"] = Item("pwm.all", name.path)
        verbs.rewrite(membership.mapping, "policy", findings)


def _dora_resources(spec: dict[str, Item], findings: Findings) -> None:
    """Dora's `resources: [{kind, zone, workspace, role}]`: a role in a workspace."""
    item = spec.pop("resources", None)
    if item is None or item.value is None:
        return
    groups = spec.setdefault("groups", Item([], item.path))
    if groups.sequence is None or item.sequence is None:
        findings.refuse(item.path, f"{item.path} must be a list", "write spec.groups: [{name: …, role: …}]")
        return
    for entry in item.sequence:
        parts = entry.mapping or {}
        kind, role = child(parts.get("kind")), child(parts.get("role"))
        group = child(parts.get("workspace")) or child(parts.get("group")) or child(parts.get("name"))
        if role is None or group is None:
            findings.refuse(entry.path, f"{entry.path} must name a workspace and a role", "write {workspace, role}")
        elif kind is not None and not (is_any(kind.text or "") or kinds.kind_named(kind.text or "") == "Group"):
            # The whole role would be more than was given.
            said = f"{kind.path}: a role is no longer narrowed to one kind"
            findings.refuse(kind.path, said, "write spec.groups: [{name: …, policy: {Kind: [verbs]}}]")
        else:
            groups.sequence.append(Item({"name": group, "role": role}, entry.path))


def _dora_credits(spec: dict[str, Item], findings: Findings) -> None:
    """Dora's `credits: [{zone, weekly}]`: credits are no longer counted by zone; the sum is the limit."""
    item = spec.pop("credits", None)
    if item is None or item.value is None:
        return
    weekly = [child(entry, "weekly") for entry in item.sequence or ()]
    amounts = [w.value for w in weekly if w is not None and isinstance(w.value, int | float)]
    if not amounts or len(amounts) != len(weekly):
        findings.refuse(
            item.path, f"{item.path} must be a list of {{zone, weekly}}", "write spec.limits.credits.weekly"
        )
        return
    if len(amounts) > 1:
        findings.warn(item.path, f"{item.path}: credits are counted for all zones together; the limit is the sum")
    limits = spec.setdefault("limits", Item({}, item.path))
    if limits.mapping is not None:
        limits.mapping.setdefault("credits", Item({"weekly": Item(sum(amounts), item.path)}, item.path))


def _role(root: dict[str, Item], spec: dict[str, Item], findings: Findings) -> None:
    verbs.rewrite(spec, "permission", findings)


def _storage(root: dict[str, Item], spec: dict[str, Item], findings: Findings) -> None:
    _drop(spec, "mountNode", findings, why="every node mounts what its containers need")
    _drop(spec, "accessModes", findings, why="volumes say by their policy whether they may be written")
    kind = child(spec.get("kind"))
    if kind is None or kind.text is None:
        return
    place, first = ("local", "node") if kind.text.lower() == "local" else ("nfs", "server")
    for old, new in (("endpoint", first), ("mountpath", "path")):
        part = spec.setdefault(place, Item({}, kind.path)).mapping if old in spec else None
        if part is not None:
            _put(part, new, spec.pop(old), findings)


_REWRITERS: dict[str, Callable[[dict[str, Item], dict[str, Item], Findings], None]] = {
    "Workload": _workload,
    "Node": _node,
    "User": _user_kind,
    "Role": _role,
    "Storage": _storage,
}
