"""Verbs of permissions, and the forms in which documents grant them.

    policy: {Workload: [get, apply], Volume: pwm.all}      the usual form
    policy: pwm.all                                        everything
    policy: {Workload: {verbs: [get]}}                     as the API writes it

Kinds and verbs are taken in any case and by their old names; what is stored has one spelling.
"""

from pwm.controlplane.core import kinds
from pwm.controlplane.core.document import Findings, Item, shown, suggestion
from pwm.controlplane.core.fields import is_any

ALL = "pwm.all"
VERBS = (
    "get", "getOne", "describe", "apply", "delete", "stop", "pause", "resume", "commit", "shell", "logs", "top",
    "inspect", "upload", "download", "ls", "sync", "token", "use", "validate",
)  # fmt: skip
SYNONYMS = {"cancel": "stop", "unpause": "resume", "create": "apply", "drain": "stop"}
# Verbs of PWM 1.x that everybody has today.
_FREE = frozenset({"groups", "status", "credits", "defaultgroup"})
_BY_WORD = {verb.lower(): verb for verb in VERBS} | SYNONYMS


def rewrite(parent: dict[str, Item], key: str, findings: Findings) -> None:
    """Bring `parent[key]`, verbs by kind, into the form that the API writes."""
    item = parent.get(key)
    if item is None or item.value is None:
        return
    if item.text is not None and is_any(item.text):
        parent[key] = Item({ALL: _granted([Item(ALL, item.path)], item.path)}, item.path)
        return
    if item.mapping is None:
        return
    granted: dict[str, Item] = {}
    for word, entry in item.mapping.items():
        kind = ALL if is_any(word) else kinds.kind_named(word)
        if kind is None:
            _unknown_kind(word, entry, findings)
        elif entry.value is not None:
            verbs = _verbs(entry, findings)
            if kind in granted:
                verbs = [*_list(granted[kind]), *verbs]
            granted[kind] = _granted(verbs, entry.path)
    parent[key] = Item(dict(granted), item.path)


def _verbs(entry: Item, findings: Findings) -> list[Item]:
    found = []
    for verb in _list(entry):
        text = verb.text
        if text is None:
            findings.refuse(verb.path, f"{verb.path} must be a verb, not {shown(verb.value)}", "write [get, apply]")
        elif is_any(text):
            found.append(Item(ALL, verb.path))
        elif text.lower() in _BY_WORD:
            found.append(Item(_BY_WORD[text.lower()], verb.path))
        elif text.lower() in _FREE:
            findings.warn(verb.path, f"the verb {text} is no longer used: every user has it")
        else:
            findings.refuse(verb.path, f"there is no verb {shown(text)}", suggestion(text, VERBS))
    return found


def _list(entry: Item) -> list[Item]:
    """The verbs in `[get]`, `get` and `{verbs: [get]}`."""
    if entry.mapping is not None:
        entry = entry.mapping.get("verbs", Item([], entry.path)) if set(entry.mapping) <= {"verbs"} else entry
    return entry.sequence if entry.sequence is not None else [entry]


def _granted(verbs: list[Item], path: str) -> Item:
    once = {verb.text: verb for verb in verbs}
    return Item({"verbs": Item(list(once.values()), path)}, path)


def _unknown_kind(word: str, entry: Item, findings: Findings) -> None:
    if word.lower() in kinds.GONE:
        findings.warn(entry.path, f"{entry.path} is no longer used: there is no kind {word} any more")
    else:
        findings.refuse(entry.path, f"there is no kind {shown(word)}", suggestion(word, kinds.spellings()))
