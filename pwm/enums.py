"""Names of enum values, also of those that only a newer version of PWM knows.

While versions are mixed, during an upgrade, messages carry numbers that this version has no name for. They are
kept as they are; where a name is shown, the number stands in for it.
"""

from collections.abc import Callable
from typing import Any


def value_name(name: Callable[[Any], str], number: int) -> str:
    """`value_name(NodeStatus.Phase.Name, phase)`: `READY`; for a value without a name the number, as text."""
    try:
        return name(number)
    except ValueError:
        return str(number)
