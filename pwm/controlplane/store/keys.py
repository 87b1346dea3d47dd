"""Where everything lies in the key space.

    ev/{kind}/{uid}/{version}         one event (pwm.v1.Record)
    head/{kind}/{uid}                 version, state after it, last commit id (pwm.v1.Head)
    ev/-/{role}                       rewritten by who wins a role: a mark among the events, see `election`
    ev/-/session/{node}               the same, by who takes a node's session
    trimmed/{kind}/{uid}              first version still kept, once retention has dropped events
    sealed/{kind}/{uid}               what the log must not hold, encrypted (pwm.v1.Sealed)
    name/{scope}/{group}/{name}       kind/uid of the holder
    receipt/{principal}/{key}         the answer already given for an idempotency key; leased
    leader/{role}                     leased; its create_revision is the fence
    replica/{id}, session/{node}      leased; a session's mod_revision is its epoch
    turn/{kind}/{name}                rewritten by who takes of a total of a user or group, see `controlplane/turns`
    ticket/{hash}                     what may be opened with it, once (pwm.v1.Ticket); leased
    used/{user}/{uid}                 when and from where a token was used last (pwm.v1.TokenUse)
    notices/read                      how far the log has been read for notices (pwm.v1.NoticesRead)
    notices/told/{uid}                what has been told of a workload (pwm.v1.NoticesTold)
    notices/out/{id}                  a notice on its way (pwm.v1.PendingNotice)
    cluster-key                       tells a replica whether it was given the right cluster key
    authorities                       the cluster's certificate authorities (pwm.v1.Authorities)
    audit/log/{ms}/{chain}/{number}   what a controller wrote down of who did what (pwm.v1.SealedBatch)
    audit/kept-since                  what is older (ms) may have been dropped
    retention/mark                    how far compaction may go
    lineage/uid                       names this log, in whatever etcd it is kept
    lineage/incarnation               how often a restored store was accepted: the upper bits of epochs
    lineage/doubt                     present while the store seems to have gone back (pwm.v1.Doubt)

Versions are zero-padded, so that keys sort as versions do. What users choose freely (principals,
idempotency keys) is percent-encoded; kinds, uids, groups and names have no slash by their own rules.
"""

from dataclasses import dataclass, field
from urllib.parse import quote

from pwm.controlplane.store.commits import StreamId

DEFAULT_PREFIX = b"/pwm/v1/"
VERSION_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Keys:
    """The layout under one prefix, so that several PWMs (or tests) can share an etcd."""

    prefix: bytes = DEFAULT_PREFIX
    all_events: bytes = field(init=False)
    all_heads: bytes = field(init=False)
    all_marks: bytes = field(init=False)
    all_trimmed: bytes = field(init=False)
    all_leaders: bytes = field(init=False)
    retention_mark: bytes = field(init=False)
    lineage: bytes = field(init=False)
    uid: bytes = field(init=False)
    incarnation: bytes = field(init=False)
    doubt: bytes = field(init=False)
    authorities: bytes = field(init=False)

    def __post_init__(self) -> None:
        assert self.prefix.endswith(b"/"), "a prefix ends with a slash"
        for name, suffix in (
            ("all_events", b"ev/"),
            ("all_marks", b"ev/-/"),
            ("all_heads", b"head/"),
            ("all_trimmed", b"trimmed/"),
            ("all_leaders", b"leader/"),
            ("retention_mark", b"retention/mark"),
            ("lineage", b"lineage/"),
            ("uid", b"lineage/uid"),
            ("incarnation", b"lineage/incarnation"),
            ("doubt", b"lineage/doubt"),
            ("authorities", b"authorities"),
        ):
            object.__setattr__(self, name, self.prefix + suffix)

    def event(self, stream: StreamId, version: int) -> bytes:
        return b"%s%s/%s/%0*d" % (self.all_events, stream.kind.encode(), stream.uid.encode(), VERSION_DIGITS, version)

    def events(self, stream: StreamId) -> bytes:
        """The prefix of all of a stream's events."""
        return b"%s%s/%s/" % (self.all_events, stream.kind.encode(), stream.uid.encode())

    def head(self, stream: StreamId) -> bytes:
        return b"%s%s/%s" % (self.all_heads, stream.kind.encode(), stream.uid.encode())

    def trimmed(self, stream: StreamId) -> bytes:
        return b"%s%s/%s" % (self.all_trimmed, stream.kind.encode(), stream.uid.encode())

    def sealed(self, stream: StreamId) -> bytes:
        """What a stream's log must not hold, and nobody who reads the store may understand."""
        return self.prefix + f"sealed/{stream.kind}/{stream.uid}".encode()

    @property
    def cluster_key(self) -> bytes:
        """By which a replica knows whether it was given the cluster's key."""
        return self.prefix + b"cluster-key"

    def name(self, name: str) -> bytes:
        """`name` is scope/group/name; the group is empty for what belongs to the cluster."""
        return self.prefix + b"name/" + name.encode()

    def receipt(self, principal: str, key: str) -> bytes:
        return self.prefix + f"receipt/{quote(principal, safe='')}/{quote(key, safe='')}".encode()

    def turn(self, kind: str, name: str) -> bytes:
        return self.prefix + f"turn/{kind}/{quote(name, safe='')}".encode()

    def ticket(self, digest: str) -> bytes:
        return self.prefix + b"ticket/" + digest.encode()

    def token_use(self, user: str, uid: str) -> bytes:
        return self.token_uses(user) + uid.encode()

    def token_uses(self, user: str) -> bytes:
        """The prefix of all uses of a user's tokens; of everybody's, if the user is empty."""
        return self.prefix + (f"used/{quote(user, safe='')}/".encode() if user else b"used/")

    def audit(self, time_ms: int, chain: str, number: int) -> bytes:
        return b"%s/%s/%08d" % (self.audit_from(time_ms), chain.encode(), number)

    def audit_from(self, time_ms: int) -> bytes:
        """Before everything that was written at that time or later."""
        return b"%s%015d" % (self.all_audit, max(0, time_ms))

    def parse_audit(self, key: bytes) -> tuple[int, str, int]:
        """Time in ms, chain and number of a batch. ValueError for another key."""
        time_ms, chain, number = key[len(self.all_audit) :].decode().split("/")
        return int(time_ms), chain, int(number)

    @property
    def notices_read(self) -> bytes:
        return self.prefix + b"notices/read"

    def notices_told(self, uid: str) -> bytes:
        """Of one workload; with an empty uid the prefix of all."""
        return self.prefix + b"notices/told/" + uid.encode()

    def notices_out(self, id: str) -> bytes:
        """One on its way; with an empty id the prefix of all."""
        return self.prefix + b"notices/out/" + id.encode()

    @property
    def all_audit(self) -> bytes:
        return self.prefix + b"audit/log/"

    @property
    def audit_kept_since(self) -> bytes:
        return self.prefix + b"audit/kept-since"

    def leader(self, role: str) -> bytes:
        return self.all_leaders + role.encode()

    def mark(self, role: str) -> bytes:
        return self.all_marks + role.encode()

    def presence(self, section: str, id: str = "") -> bytes:
        """A leased entry of the registry, or with an empty id the prefix of the section."""
        return self.prefix + f"{section}/{id}".encode()

    def parse_event(self, key: bytes) -> tuple[StreamId, int]:
        kind, uid, version = key[len(self.all_events) :].decode().split("/")
        return StreamId(kind, uid), int(version)

    def parse_stream(self, key: bytes, *, section: bytes) -> StreamId:
        """The stream of a head or trimmed key, `section` being the prefix of all of them."""
        kind, uid = key[len(section) :].decode().split("/")
        return StreamId(kind, uid)
