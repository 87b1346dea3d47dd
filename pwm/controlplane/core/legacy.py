"""Documents of PWM 1.x and of PWM 2 (Dora), rewritten into today's form.

People's files outlive versions: what they wrote keeps its meaning. Every rewriting moves items of the tree
to where they belong today, keeping their paths, so that a later complaint still points at the user's line.
What has no place any more is taken out with a warning that says so; nothing goes in silence.
`docs/old-manifests.md` lists every old field and what became of it, and a test reads that table.

This module knows only forms. Whether a value is allowed is for `schema` (its type and limits) and
`admission` (what no workload may ask for).
"""

from collections.abc import Callable

from pwm.controlplane.core import kinds, legacy_workload, verbs
from pwm.controlplane.core.document import Findings, Item, child
from pwm.controlplane.core.fields import is_any
from pwm.controlplane.core.moves import drop, pairs, part, put, rename, section


def rewrite(kind: str, root: dict[str, Item], findings: Findings) -> None:
    """Bring a document of `kind` into today's form, in place."""
    _metadata(kind, root, findings)
    rewriter = _REWRITERS.get(kind)
    spec = part(root, "spec", path="spec")
    if rewriter is not None and spec is not None:
        rewriter(root, spec, findings)


def _metadata(kind: str, root: dict[str, Item], findings: Findings) -> None:
    metadata = section(root, "metadata")
    if metadata is None:
        return
    rename(metadata, "workspace", "group", findings)
    group = metadata.get("group")
    if not kinds.APPLIED[kind].grouped and group is not None:
        del metadata["group"]
        if group.value is not None:
            findings.warn(group.path, f"{group.path} is not used: a {kind} belongs to the cluster, not to a group")
    zone = metadata.pop("zone", None)
    if zone is None or zone.value is None:
        return
    if kind in ("Workload", "Node"):
        spec = part(root, "spec", path="spec")
        if spec is not None:
            put(spec, "zone", zone, findings)
    elif not (zone.text is not None and is_any(zone.text)):
        findings.warn(zone.path, f"{zone.path} is not used: a {kind} is the same in all zones")


def _node(root: dict[str, Item], spec: dict[str, Item], findings: Findings) -> None:
    rename(spec, "endpoint", "address", findings)
    drop(
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
    pairs(spec, "labels")


def _user_kind(root: dict[str, Item], spec: dict[str, Item], findings: Findings) -> None:
    if "active" in root:
        put(spec, "active", root.pop("active"), findings)
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
    groups = child(spec.get("groups")) or Item([], item.path)
    spec["groups"] = groups
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
    limits = part(spec, "limits", path=item.path)
    if limits is not None:
        limits.setdefault("credits", Item({"weekly": Item(sum(amounts), item.path)}, item.path))


def _role(root: dict[str, Item], spec: dict[str, Item], findings: Findings) -> None:
    verbs.rewrite(spec, "permission", findings)


def _storage(root: dict[str, Item], spec: dict[str, Item], findings: Findings) -> None:
    drop(spec, "mountNode", findings, why="every node mounts what its containers need")
    drop(spec, "accessModes", findings, why="volumes say by their policy whether they may be written")
    kind = child(spec.get("kind"))
    if kind is None or kind.text is None:
        return
    place, first = ("local", "node") if kind.text.lower() == "local" else ("nfs", "server")
    for old, new in (("endpoint", first), ("mountpath", "path")):
        target = part(spec, place, path=kind.path) if old in spec else None
        if target is not None:
            put(target, new, spec.pop(old), findings)


_REWRITERS: dict[str, Callable[[dict[str, Item], dict[str, Item], Findings], None]] = {
    "Workload": legacy_workload.workload,
    "Node": _node,
    "User": _user_kind,
    "Role": _role,
    "Storage": _storage,
}
