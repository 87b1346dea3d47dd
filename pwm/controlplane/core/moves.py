"""Moving fields of a document from the places where older versions had them to where they belong today."""

from pwm.controlplane.core.document import Findings, Item


def section(parent: dict[str, Item], key: str) -> dict[str, Item] | None:
    item = parent.get(key)
    return item.mapping if item is not None else None


def part(parent: dict[str, Item], key: str, *, path: str) -> dict[str, Item] | None:
    """The mapping below `key`, made if nothing is there; None when something else is."""
    item = parent.get(key)
    if item is None or item.value is None:
        item = parent[key] = Item({}, path)
    return item.mapping


def drop(parent: dict[str, Item], key: str, findings: Findings, *, why: str, next_step: str = "") -> None:
    """Take out a field that means nothing any more."""
    item = parent.pop(key, None)
    if item is not None and item.value is not None:
        findings.warn(item.path, f"{item.path} is no longer used: {why}", next_step)


def put(parent: dict[str, Item], key: str, item: Item | None, findings: Findings) -> None:
    """Set a field from another place. If it is there already with another value, the two contradict."""
    if item is None or item.value is None:
        return
    there = parent.get(key)
    if there is not None and there.value is not None and there.value != item.value:
        findings.refuse(item.path, f"{item.path} and {there.path} say different things", f"keep {there.path} only")
    else:
        parent[key] = item


def rename(parent: dict[str, Item], old: str, new: str, findings: Findings) -> None:
    put(parent, new, parent.pop(old, None), findings)


def pairs(parent: dict[str, Item], key: str) -> None:
    """`[A=1, {name: B, value: 2}]` as `{A: 1, B: 2}`. Entries of other forms stay, to be refused."""
    entries = parent[key].sequence if key in parent else None
    if entries is None:
        return
    found: dict[str, Item] = {}
    for entry in entries:
        if entry.text is not None and "=" in entry.text:
            name, _, value = entry.text.partition("=")
            found[name] = Item(value, entry.path)
        elif entry.mapping is not None and {"name"} <= set(entry.mapping) <= {"name", "value"}:
            name_text = entry.mapping["name"].text
            if name_text is None:
                return
            found[name_text] = entry.mapping.get("value", Item("", entry.path))
        else:
            return
    parent[key] = Item(dict(found), parent[key].path)
