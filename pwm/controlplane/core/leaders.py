"""Which replica should lead which role: spread evenly, and the same answer on every replica.

Any replica may lead anything; this only says who should try first, so that zones are led by different
replicas and a new replica gets its part. It is a preference and never a proof: who leads is what the store
says.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable


def order(role: str, *, roles: Iterable[str], replicas: Iterable[str]) -> list[str]:
    """The replicas in the order in which they should try for `role`: first the one it is meant for.

    Each role goes to the replica that has the fewest so far. Ties, and the order of the rest, come from a
    hash of role and replica, so that a replica that goes leaves its roles to different others.
    """
    known = sorted(replicas)
    if not known:
        return []
    load = Counter[str]()
    meant_for = ""
    for each in sorted({*roles, role}):
        chosen = min(known, key=lambda replica: (load[replica], _weight(each, replica)))
        load[chosen] += 1
        if each == role:
            meant_for = chosen
    others = sorted((r for r in known if r != meant_for), key=lambda replica: _weight(role, replica))
    return [meant_for, *others]


def _weight(role: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{role}\n{replica}".encode(), digest_size=8).digest()
