"""Documents of kind Secret, looked at before anything else reads them.

Whatever is wrong with any other document is told together with the value that is wrong. Here the values are what
nobody may see, least of all in an answer that ends up in the log of a build: so what is not as it should be is refused
by its name alone and taken out, and the readers that come after find only what they have nothing to say about.
"""

import base64
import binascii
import re

from pwm.controlplane.core.document import Findings, Item, child, shown
from pwm.controlplane.core.fields import REGISTRY

# They become names of files and are named in spec.config.env.
KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}")
KEY_RULE = "use letters, digits, '-', '_' and '.', and no '.' first"
MAX_KEYS = 256
_LOGIN = ("server", "username", "password")


def check_shape(root: Item, findings: Findings) -> None:
    """Refuse and take out what could not be read without being shown."""
    document = root.mapping or {}
    spec = _mapping(document, "spec", findings)
    if spec is None:
        return
    seen: dict[str, Item] = {}
    for place in ("data", "base64"):
        values = _mapping(spec, place, findings)
        for key in list(values or {}):
            assert values is not None
            _value(values, key, seen, findings, encoded=place == "base64")
    if len(seen) > MAX_KEYS:
        findings.refuse("spec.data", f"the secret has {len(seen)} keys, but may have at most {MAX_KEYS}", "split it")
    login = _mapping(spec, "registry", findings)
    if login is not None:
        _login(login, findings)
    if not (seen or login or findings.problems or set(spec) - {"data", "base64", "registry"}):
        step = "write spec: {data: {KEY: value}}, or spec: {registry: {server: …, username: …, password: …}}"
        findings.refuse("spec", "the secret holds nothing", step)


def _mapping(parent: dict[str, Item], key: str, findings: Findings) -> dict[str, Item] | None:
    item = child(parent.get(key))
    if item is None:
        return None
    if item.mapping is None:
        del parent[key]
        findings.refuse(item.path, f"{item.path} must be a mapping", "write {name: value}")
    return item.mapping


def _value(values: dict[str, Item], key: str, seen: dict[str, Item], findings: Findings, *, encoded: bool) -> None:
    item = values[key]
    text = "" if item.value is None else item.text
    if not KEY.fullmatch(key):
        findings.refuse(item.path, f"{shown(key)} is no name of a key", KEY_RULE)
    elif key in seen:
        findings.refuse(item.path, f"the key {key} is there twice", f"see {seen[key].path}")
    elif text is None:
        findings.refuse(item.path, f"{item.path} must be text", "write it in quotes")
    elif encoded and not _is_base64(text):
        findings.refuse(item.path, f"{item.path} is not in base64", "write text that is not encoded in spec.data")
    else:
        seen[key] = item
        # An empty value, also one that YAML calls null, keeps what there is.
        values[key] = Item("".join(text.split()) if encoded else text, item.path)
        return
    del values[key]


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode("".join(text.split()), validate=True)
    except (ValueError, binascii.Error):
        return False
    return True


def _login(login: dict[str, Item], findings: Findings) -> None:
    for key in _LOGIN:
        item = child(login.get(key))
        if item is not None and item.text is None:
            findings.refuse(item.path, f"{item.path} must be text", "write it in quotes")
            del login[key]
    server = child(login.get("server"))
    if server is None or not server.text:
        findings.refuse("spec.registry.server", "the login names no registry", "write server: registry.example.org")
    elif not REGISTRY.fullmatch(server.text):
        del login["server"]
        findings.refuse(server.path, f"{server.path} must be a host name", "write it as registry.example.org:5000")
