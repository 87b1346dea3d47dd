"""Which certificate authorities are trusted at a moment, which one issues, and what a change of them leads to.

The cluster's authorities are a list, oldest first. The last one issues; the ones before it are trusted until they
retire. A new one comes with a *bridge*, its key certified by the one before: whoever has heard only of that one, a
node that was away or a person's `pwm`, trusts what the new one issues by way of the bridge. So a change is one write,
there is no moment at which somebody has to know of it already, and all that has to wait is the end of the old one.
"""

from collections.abc import Sequence

from pwm.api.v1.store_pb2 import Authorities, Authority
from pwm.controlplane.core.decide import Refusal

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
# How long an authority itself is good for: longer than the machines of a lab.
AUTHORITY_LIFE_MS = 3_650 * DAY_MS
# Of nodes and controllers, who renew theirs by themselves.
CERTIFICATE_LIFE_MS = DAY_MS
# A renewal that takes a third of it must be possible with a clock that is off by a second.
SHORTEST_LIFE_MS, LONGEST_LIFE_MS = 3_000, 90 * DAY_MS
# People who come back from their holidays find their `pwm` working.
OVERLAP_MS = 30 * DAY_MS
# Each is in every TLS handshake, and in the file of everybody who has logged in.
MOST_AUTHORITIES = 8


class BadLife(ValueError):
    """Certificates cannot live so long; the message is a sentence for the admin."""


def check_life(life_ms: int) -> int:
    """Raises BadLife."""
    if not SHORTEST_LIFE_MS <= life_ms <= LONGEST_LIFE_MS:
        raise BadLife(
            f"certificates live from {SHORTEST_LIFE_MS // 1000} s to {LONGEST_LIFE_MS // DAY_MS} days, "
            f"not {life_ms / 1000:g} s"
        )
    return life_ms


def issuing(known: Authorities) -> Authority:
    return known.authorities[-1]


def trusted(known: Authorities, now_ms: int) -> list[Authority]:
    """Newest first, so that what is issued now is believed at the first look."""
    return [authority for authority in reversed(known.authorities) if not _retired(authority, now_ms)]


def bridges(known: Authorities, now_ms: int) -> list[bytes]:
    """What leads from the one that issues to the oldest that is trusted, in this order. DER."""
    alive = trusted(known, now_ms)
    return [authority.bridge for authority in alive[:-1] if authority.bridge]


def _retired(authority: Authority, now_ms: int) -> bool:
    return authority.HasField("retires_at") and authority.retires_at.ToMilliseconds() <= now_ms


def succeeded(known: Authorities, successor: Authority, *, now_ms: int, trust_old_for_ms: int) -> Authorities:
    """The authorities once the successor is there. Those that have retired are forgotten. Raises Refusal."""
    if trust_old_for_ms < 0:
        raise Refusal("the old authority cannot have retired before now")
    after = Authorities(authorities=[a for a in known.authorities if not _retired(a, now_ms)])
    if len(after.authorities) >= MOST_AUTHORITIES:
        raise Refusal(
            f"there are {len(after.authorities)} authorities already",
            next_step="wait until one of them retires: `pwm admin ca show` says when",
            conflict=True,
        )
    for authority in after.authorities:
        retires_ms = now_ms + trust_old_for_ms
        if authority.HasField("retires_at"):
            # Of an older one, too: it must not outlive what is said now.
            retires_ms = min(retires_ms, authority.retires_at.ToMilliseconds())
        authority.retires_at.FromMilliseconds(retires_ms)
    after.authorities.append(successor)
    return after


def next_number(names: Sequence[str]) -> int:
    """Of the authority that comes after those of these names, `PWM authority 3` and so on."""
    numbers = [int(word) for name in names if (word := name.rpartition(" ")[2]).isdecimal()]
    return max(numbers, default=0) + 1
