"""Kinds as users type them: `wk`, `workload`, `workloads`, `Workload`.

The server knows kinds by their one name; short forms and plurals are a habit of people and live here.
Groups were called workspaces by PWM 2 (Dora), which stays an alias everywhere.
"""

from __future__ import annotations

from pwm.cli.errors import UsageError

WORKLOAD = "Workload"

# kind -> what people type for it, besides its own name in any case. The first is the shortest.
KINDS: dict[str, tuple[str, ...]] = {
    "Workload": ("wk", "workload", "workloads"),
    "Container": ("c", "container", "containers"),
    "Node": ("node", "nodes"),
    "GPU": ("gpu", "gpus"),
    "CPU": ("cpu", "cpus"),
    "Zone": ("z", "zone", "zones"),
    "Group": ("group", "groups", "ws", "workspace", "workspaces"),
    "User": ("user", "users"),
    "Role": ("role", "roles"),
    "Storage": ("storage", "storages"),
    "Volume": ("vol", "volume", "volumes"),
    "Secret": ("secret", "secrets"),
    "ResourceCredit": ("rc", "resourcecredit", "resourcecredits"),
    "Bind": ("bind", "binds"),
    "Event": ("event", "events"),
}
_BY_ALIAS = {alias: kind for kind, aliases in KINDS.items() for alias in aliases}


def kind_of(text: str) -> str:
    """The kind that the user means, or a `UsageError` that names the nearest one."""
    kind = _BY_ALIAS.get(text.lower())
    if kind is None:
        raise UsageError(f"there is no kind {text!r}", next_step=_suggestion(text))
    return kind


def is_kind(text: str) -> bool:
    """Whether a word names a kind."""
    return text.lower() in _BY_ALIAS


def _suggestion(text: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(text.lower(), _BY_ALIAS, n=1)
    if near:
        return f"Did you mean {near[0]}?"
    return "Kinds are: " + ", ".join(aliases[0] for aliases in KINDS.values())
