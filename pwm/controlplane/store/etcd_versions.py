"""Which versions of etcd are used: those that lose data are not, those with known faults with a warning."""

import re

OLDEST_VERSION = (3, 4, 21)
"""Older ones lose watch events and leases (etcd's 3.4 changelog)."""

LOSES_WRITES = ((3, 5, 0), (3, 5, 4))
"""These can lose acknowledged writes when a member is killed (etcd's postmortem of v3.5)."""

FIXED_VERSION = {(3, 5): (3, 5, 28), (3, 6): (3, 6, 9)}
"""Versions of a release line from which no known fault concerns us; older ones work, with a warning."""


def judge_version(version: str, *, member: str) -> tuple[str, str]:
    """Why a member of this version is not used, and why it should be updated; empty when there is nothing to say."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if match is None:
        return f"etcd member {member} reports the version {version!r}, which is none", ""
    number = (int(match[1]), int(match[2]), int(match[3]))
    if number < OLDEST_VERSION or LOSES_WRITES[0] <= number <= LOSES_WRITES[1]:
        return (
            f"etcd member {member} runs {version}, which can lose data: use 3.4.21 or later, but not 3.5.0 to 3.5.4",
            "",
        )
    fixed = FIXED_VERSION.get(number[:2], (3, 5, 28))
    if number < fixed:
        fixed_in = ".".join(map(str, fixed))
        return "", f"etcd member {member} runs {version}, which has known faults: {fixed_in} or later has not"
    return "", ""
