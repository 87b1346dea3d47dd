"""Label selectors: `k=v`, `k==v`, `k!=v`, `k`, `!k`, joined by commas; all must hold."""

from collections.abc import Callable, Mapping

Labels = Mapping[str, str]
Selector = Callable[[Labels], bool]


class SelectorError(ValueError):
    """A selector that cannot be read; the message is a sentence for the user."""


def parse_selector(text: str) -> Selector:
    """A predicate on labels. An empty text matches everything."""
    terms = [_term(part.strip()) for part in text.split(",") if part.strip()]
    return lambda labels: all(term(labels) for term in terms)


def _term(text: str) -> Selector:
    if "!=" in text:
        key, _, value = text.partition("!=")
        key, value = _checked(key, text), value.strip()
        return lambda labels: labels.get(key) != value
    if "=" in text:
        key, _, value = text.partition("=")
        key, value = _checked(key, text), value.removeprefix("=").strip()
        return lambda labels: labels.get(key) == value
    if text.startswith("!"):
        key = _checked(text[1:], text)
        return lambda labels: key not in labels
    key = _checked(text, text)
    return lambda labels: key in labels


def _checked(key: str, text: str) -> str:
    key = key.strip()
    if not key or any(c.isspace() for c in key):
        raise SelectorError(f"{text!r} is not a label selector; write k=v, k!=v, k or !k, joined by commas")
    return key
