"""The kinds that can be applied, and what they may be called in a document.

One word per thing: every kind has one name in the API, in events and in answers. People's files know it
in other spellings (`workspace`, `Resourcecredit`), and files of older versions hold kinds that are gone;
both are listed here, the latter with what to write instead.
"""

from dataclasses import dataclass
from typing import TypeAlias

from pwm.api.v1 import identity_pb2 as identity
from pwm.api.v1.node_pb2 import Node
from pwm.api.v1.volume_pb2 import Storage, Volume
from pwm.api.v1.workload_pb2 import Workload

Applied: TypeAlias = (
    Workload
    | Node
    | Storage
    | Volume
    | identity.Zone
    | identity.Group
    | identity.User
    | identity.Role
    | identity.Secret
    | identity.ResourceCredit
)


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    message: type[Applied]
    # Resources of the kind belong to a group; the others belong to the cluster.
    grouped: bool = False


APPLIED: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("Workload", Workload, grouped=True),
        Kind("Volume", Volume, grouped=True),
        Kind("Secret", identity.Secret, grouped=True),
        Kind("Node", Node),
        Kind("Zone", identity.Zone),
        Kind("Group", identity.Group),
        Kind("User", identity.User),
        Kind("Role", identity.Role),
        Kind("Storage", Storage),
        Kind("ResourceCredit", identity.ResourceCredit),
    )
}
# Kinds that PWM itself writes, from what agents report or from other resources.
OBSERVED = ("Container", "GPU", "CPU", "Bind", "Event")
# Kinds that only permissions name.
PERMISSION_ONLY = ("Cluster", "Token", "Credit", "Ledger")

SYNONYMS = {"workspace": "Group"}

# Kinds of PWM 1.x and 2 (Dora) that are gone, and what to do instead.
GONE = {
    "usercredit": "set spec.limits.credits.weekly of the User",
    "project": "give the workloads of a project a label in metadata.labels, and list them with -l",
    "experiment": "give the workloads of an experiment a label in metadata.labels, and list them with -l",
    "application": "apply the application's workloads themselves",
    "action": "nothing: PWM works out by itself what is to be done",
    "stat": "nothing: PWM keeps statistics by itself",
    "version": "nothing: every change of a resource is kept as an event",
    "deletedresource": "nothing: what was deleted stays in the events",
}

_BY_WORD = {name.lower(): name for name in (*APPLIED, *OBSERVED, *PERMISSION_ONLY)} | SYNONYMS


def kind_named(word: str) -> str | None:
    """The kind's one name for any spelling of it; None: there is no such kind."""
    return _BY_WORD.get(word.lower())


def spellings() -> tuple[str, ...]:
    """Names of the kinds, to suggest from."""
    return (*APPLIED, *OBSERVED)
