"""Workloads of PWM 1.x and Dora in today's form: the part of `legacy` that has the most to do."""

from pwm.controlplane.core import commandline
from pwm.controlplane.core.document import Findings, Item, child
from pwm.controlplane.core.fields import NONE, scalar_text
from pwm.controlplane.core.moves import drop, pairs, part, put, rename, section

_DRIVERS = {"docker": "pwm.docker", "pwm.nvidiadocker": "pwm.docker", "nvidiadocker": "pwm.docker"}
# Letters of `docker run -itd`, as PWM 1.x had them in startMode.
_START_MODES = {"i": "stdin", "t": "tty", "d": ""}
_META = {
    "sync": "upload files with pwm sync",
    "shell": "pwm shell asks for nothing in the manifest",
    "integrations": "webhooks that change a workload are gone",
}


def workload(root: dict[str, Item], spec: dict[str, Item], findings: Findings) -> None:
    _meta(root, findings)
    driver = child(spec.get("driver"))
    if driver is not None and driver.text is not None:
        driver.value = _DRIVERS.get(driver.text.lower(), driver.text)
    selectors = section(spec, "selectors")
    if selectors is not None:
        _selectors(selectors)
    image = child(spec.get("image"))
    if image is not None and image.text is not None:
        spec["image"] = Item({"image": image}, image.path)
    login = child(spec.get("image"), "registrySecret")
    if login is not None and login.text is not None:
        login.value = {"name": Item(login.text, login.path)}
    if "config" in spec or "network" in spec:
        config = part(spec, "config", path="spec.config")
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
    pairs(selectors, "label")
    for key in ("gpu", "cpu"):
        device = section(selectors, key)
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


def _config(config: dict[str, Item], spec: dict[str, Item], findings: Findings) -> None:
    _secret_entries(config)
    pairs(config, "env")
    pairs(config, "labels")
    _secret_env(config)
    _secret_files(config)
    entrypoint = _split_command(config, "entrypoint", findings)
    _split_command(config, "cmd", findings, entrypoint=entrypoint)
    health = section(config, "health")
    if health is not None:
        _split_command(health, "cmd", findings)
    _start_mode(config, findings)
    _cpu(config, spec, findings)
    _ports(config, findings)
    _user(config)


def _secret_entries(config: dict[str, Item]) -> None:
    """`[{name: TOKEN, secret: hub, key: token}]` in a list of variables."""
    env = child(config.get("env"))
    entries = env.sequence if env is not None else None
    if env is None or entries is None:
        return
    for entry in list(entries):
        mapping = entry.mapping or {}
        name = child(mapping.get("name"))
        if "secret" in mapping and name is not None and name.text is not None:
            target = part(config, "secretEnv", path=env.path)
            if target is not None:
                target[name.text] = Item({key: item for key, item in mapping.items() if key != "name"}, entry.path)
                entries.remove(entry)


def _secret_files(config: dict[str, Item]) -> None:
    """`secrets: hub` and `secrets: [hub]` for `secrets: [{name: hub}]`."""
    item = child(config.get("secrets"))
    if item is not None and (item.text is not None or item.mapping is not None):
        item.value = [Item(item.value, item.path)]
    for entry in (item.sequence or ()) if item is not None else ():
        if entry.text is not None:
            entry.value = {"name": Item(entry.text, entry.path)}


def _secret_env(config: dict[str, Item]) -> None:
    env = section(config, "env")
    if env is None:
        return
    secret = {name: item for name, item in env.items() if child(item, "secret") is not None}
    if not secret:
        return
    target = part(config, "secretEnv", path=config["env"].path)
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
    selectors = part(spec, "selectors", path=item.path)
    cpu = part(selectors, "cpu", path=item.path) if selectors is not None else None
    if cpu is not None:
        put(cpu, "count", item, findings)


def _ports(config: dict[str, Item], findings: Findings) -> None:
    ports = config["ports"].sequence if "ports" in config else None
    for index, entry in enumerate(ports or ()):
        if ports is not None and isinstance(entry.value, int | str):
            ports[index] = Item({"port": entry}, entry.path)
        elif entry.mapping is not None:
            drop(
                entry.mapping,
                "hostPort",
                findings,
                why="ports of a node are not given away",
                next_step="reach the port with pwm port-forward",
            )


def _user(config: dict[str, Item]) -> None:
    """`user: "1000:1000"`, as Docker has it. Without a group it is the user's own, not root's."""
    item = child(config.get("user"))
    if item is None:
        return
    parts = item.mapping
    if isinstance(item.value, int) and not isinstance(item.value, bool):
        parts = {"uid": item}
    elif item.text is not None:
        uid, _, gid = item.text.partition(":")
        parts = {"uid": Item(uid, item.path), "gid": Item(gid or uid, item.path)}
    if parts:
        if child(parts.get("gid")) is None and "uid" in parts:
            parts["gid"] = parts["uid"]
        config["user"] = Item(parts, item.path)


def _network(spec: dict[str, Item], config: dict[str, Item], findings: Findings) -> None:
    network = section(spec, "network")
    if network is None:
        if child(spec.get("network")) is None:
            spec.pop("network", None)
        return
    name = child(network.get("name"))
    if name is None or name.text is None or (name.text.lower() not in ("host", "none") and ":" not in name.text):
        # What would leave the container's own network stays, for admission to refuse.
        drop(network, "name", findings, why="every container has a network of its own")
    if "ports" in network:
        put(config, "ports", network.pop("ports"), findings)
    if not network:
        del spec["network"]


def _volumes(spec: dict[str, Item], findings: Findings) -> None:
    volumes = child(spec.get("volumes"))
    for entry in (volumes.sequence or ()) if volumes is not None else ():
        if entry.mapping is not None:
            rename(entry.mapping, "workspace", "group", findings)


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
    notify = part(spec, "notify", path="spec.plugins.telegram")
    if notify is None:
        return
    if chat is not None and isinstance(chat.value, int | str):
        addresses = notify.setdefault("to", Item([], chat.path)).sequence
        if addresses is not None:
            addresses.append(Item(f"tgram://{chat.value}", chat.path))
    if "sendOn" in telegram:
        notify.setdefault("on", telegram["sendOn"])
