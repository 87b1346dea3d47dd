"""This replica's part in TLS: the authorities in the store, its own certificate, and what servers make of them.

    store ─ Authorities ─▶ issuer ─▶ own certificate (a day, renewed at two thirds) ─▶ gateway: SSLContext
                 ▲            │                                                     ├─▶ agents' port: gRPC credentials
              rotate          └─▶ nodes' certificates (join, renew)                 └─▶ connections to other replicas

Each replica has the authority's key, which lies in the store encrypted with the cluster key, and so issues its own
certificate and those of nodes without asking anybody. What changes is taken up by new connections; those that are open
go on. The store is looked at every few seconds: nobody has to know at once, see `core.authorities`.

A certificate that the cluster was given is shown to whoever asks for the name that it is for. Who asks for
`SERVER_NAME` knows PWM's own authority, and is shown one of that.
"""

import asyncio
import os
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from pwm.api.v1.node_pb2 import NodeCertificate
from pwm.api.v1.services_pb2 import AuthorityEntry, JoinRequest
from pwm.api.v1.store_pb2 import Authorities, Authority
from pwm.certificates import (
    CONTROLLER,
    DER,
    NODE,
    PEM,
    RENEW_AFTER,
    SERVER_NAME,
    BadRequest,
    Holder,
    Identity,
    begins_ms,
    common_name,
    ends_ms,
    fingerprint,
    holder_of,
    is_proof,
    requested_key,
    serial,
)
from pwm.controlplane.authority import Issuer, bridge, new_issuer
from pwm.controlplane.clock import Clock
from pwm.controlplane.cluster_key import ClusterKey, ClusterKeyError
from pwm.controlplane.core import authorities as decisions
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV, Compare, Put, Target
from pwm.trust import bundle_id

log = structlog.get_logger(__name__)

# How often it is looked whether the authorities have changed.
LOOK_EVERY_S = 2.0
# Never later than that, whatever the life of a certificate.
LOOK_AT_LEAST_S = 0.2
# What the authority's key is sealed for: its certificate's fingerprint follows.
SEALED_FOR = "authority/"


class CannotServe(Exception):
    """There is no certificate to serve with; the message is a sentence for the admin."""


@dataclass(frozen=True, slots=True)
class GivenCertificate:
    """PEM files from somewhere else, such as a company's or a public authority; read again when they change."""

    chain: Path
    key: Path

    def stamp(self) -> tuple[int, int]:
        """Changes with the files. Raises OSError."""
        return self.chain.stat().st_mtime_ns, self.key.stat().st_mtime_ns


@dataclass(frozen=True, slots=True)
class _Known:
    """The authorities as of one revision, and what follows from them."""

    record: Authorities
    revision: int
    issuer: Issuer


@dataclass(frozen=True, slots=True)
class Certified:
    """A node's certificate. `chain`: PEM, with what leads to every authority that is trusted."""

    chain: str
    entry: NodeCertificate


class Credentials:
    """`load` first; `run` keeps everything fresh."""

    def __init__(
        self,
        kv: KV,
        *,
        keys: Keys,
        cluster_key: ClusterKey,
        clock: Clock,
        replica: str,
        hosts: Sequence[str],
        life_ms: int = decisions.CERTIFICATE_LIFE_MS,
        given: GivenCertificate | None = None,
    ) -> None:
        self._kv = kv
        self._key = keys.authorities
        self._cluster_key = cluster_key
        self._clock = clock
        self._replica = replica
        self._hosts = hosts
        self._life_ms = life_ms
        self._given = given
        self._given_stamp: tuple[int, int] | None = None
        self._known: _Known | None = None
        self._identity: Identity | None = None
        self._roots = b""
        self._observers: list[Callable[[], None]] = []
        self.bundle_id = ""
        """Names the authorities that are trusted now."""
        self._own = _server_context()
        self._shown = _server_context() if given else self._own
        self._shown.sni_callback = self._choose

    # ---- what servers and connections use

    @property
    def https(self) -> ssl.SSLContext:
        """For the gateway. Its certificate changes under it."""
        return self._shown

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        if name == SERVER_NAME:
            connection.context = self._own

    def agents(self) -> grpc.ServerCredentials:
        """For the agents' and peers' port: nobody without a certificate of the cluster gets as far as a call."""
        return grpc.dynamic_ssl_server_credentials(
            self._grpc_configuration(), self._grpc_configuration, require_client_authentication=True
        )

    def _grpc_configuration(self) -> grpc.ServerCertificateConfiguration:
        identity = self.identity
        return grpc.ssl_server_certificate_configuration(
            [(identity.key, identity.chain)], root_certificates=self._roots
        )

    def dialling(self) -> grpc.ChannelCredentials:
        """For a connection to another replica, made now."""
        return grpc.ssl_channel_credentials(self._roots, self.identity.key, self.identity.chain)

    @property
    def identity(self) -> Identity:
        assert self._identity is not None, "loaded"
        return self._identity

    @property
    def roots(self) -> str:
        """The authorities that are trusted now. PEM."""
        return self._roots.decode()

    def observe(self, observer: Callable[[], None]) -> None:
        """Called when other authorities are trusted than before."""
        self._observers.append(observer)

    # ---- what it does for others

    def certify_node(self, signing_request: str, node: str, membership: str) -> Certified:
        """A certificate for the key of the signing request. Raises certificates.BadRequest."""
        key = requested_key(signing_request)
        chain = self._issuer.for_node(key, node, membership, now_ms=self._clock.now_ms(), life_ms=self._life_ms)
        return Certified(chain.decode(), _node_entry(x509.load_pem_x509_certificate(chain)))

    def returning(self, request: JoinRequest) -> tuple[Holder, int]:
        """Whom the ended certificate that a node shows is for, and when it ended. Raises certificates.BadRequest.

        It must be of an authority that is trusted now, and shown by whoever has its key.
        """
        assert self._known is not None, "loaded"
        chain = request.certificate.encode()
        try:
            shown = x509.load_pem_x509_certificate(chain)
            issuers = [_certificate(a) for a in decisions.trusted(self._known.record, self._clock.now_ms())]
            is_ours = any(_has_issued(issuer, shown) for issuer in issuers)
        except ValueError as error:
            raise BadRequest("this is not a certificate in PEM") from error
        holder = holder_of(chain)
        if not is_ours or holder is None or holder.role != NODE:
            raise BadRequest("this is not the certificate of a node of this cluster")
        if not is_proof(shown, request.signing_request, request.proof):
            raise BadRequest("the signing request is not signed with the key of the certificate")
        return holder, ends_ms(shown)

    def is_controller(self, auth_context: dict[str, Sequence[bytes]]) -> bool:
        holder = peer(auth_context)
        return holder is not None and holder.role == CONTROLLER

    @property
    def fingerprint(self) -> str:
        """Of the authority that issues."""
        return fingerprint(self._issuer.certificate)

    @property
    def _issuer(self) -> Issuer:
        assert self._known is not None, "loaded"
        return self._known.issuer

    def entries(self) -> list[AuthorityEntry]:
        """The authorities that are trusted, the one that issues first."""
        assert self._known is not None, "loaded"
        alive = decisions.trusted(self._known.record, self._clock.now_ms())
        return [_entry(authority, issuing=number == 0) for number, authority in enumerate(alive)]

    async def rotate(self, *, trust_old_for_ms: int) -> None:
        """Put a new authority in the place of the one that issues. Raises Refusal, StoreError, CannotServe."""
        while True:
            await self.load()
            known = self._known
            assert known is not None
            now_ms = self._clock.now_ms()
            names = [common_name(_certificate(authority)) for authority in known.record.authorities]
            successor = new_issuer(decisions.next_number(names), now_ms=now_ms)
            made = self._sealed(successor)
            made.bridge = bridge(successor, known.issuer, now_ms=now_ms)
            record = decisions.succeeded(known.record, made, now_ms=now_ms, trust_old_for_ms=trust_old_for_ms)
            if await self._write(record, known.revision):
                await self.load()
                log.warning("a new authority issues certificates", name=common_name(successor.certificate))
                return

    # ---- the store

    async def load(self) -> None:
        """Read the authorities, make the first one if there is none, and see to one's own certificate.

        Raises StoreError; CannotServe when what is there cannot be used.
        """
        page = await self._kv.range(self._key)
        if not page.kvs:
            await self._make_first()
            page = await self._kv.range(self._key)
        found = page.kvs[0]
        if self._known is None or self._known.revision != found.mod_revision:
            self._take(Authorities.FromString(found.value), found.mod_revision)
        self._refresh()

    async def _make_first(self) -> None:
        """Unless another replica is quicker."""
        issuer = new_issuer(1, now_ms=self._clock.now_ms())
        if await self._write(Authorities(authorities=[self._sealed(issuer)]), 0):
            log.info("made the cluster's certificate authority", fingerprint=fingerprint(issuer.certificate))

    async def _write(self, record: Authorities, revision: int) -> bool:
        """False: somebody else was first."""
        done = await self._kv.txn(
            [Compare(self._key, Target.MOD, revision)], [Put(self._key, record.SerializeToString(deterministic=True))]
        )
        return done.succeeded

    def _sealed(self, issuer: Issuer) -> Authority:
        context = SEALED_FOR + fingerprint(issuer.certificate)
        return Authority(
            certificate=issuer.certificate.public_bytes(DER),
            sealed_key=self._cluster_key.encrypt(issuer.key_der, context),
        )

    def _take(self, record: Authorities, revision: int) -> None:
        newest = decisions.issuing(record)
        try:
            context = SEALED_FOR + fingerprint(_certificate(newest))
            key = self._cluster_key.decrypt(newest.sealed_key, context)
            issuer = Issuer.read(newest.certificate, key, decisions.bridges(record, self._clock.now_ms()))
        except (ClusterKeyError, ValueError) as error:
            raise CannotServe(
                f"the cluster's certificate authority cannot be used: {error}; every controller needs the same "
                "cluster key"
            ) from error
        self._known = _Known(record, revision, issuer)
        self._identity = None

    # ---- keeping fresh

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(max(LOOK_AT_LEAST_S, min(LOOK_EVERY_S, self._life_ms / 1000 * (1 - RENEW_AFTER) / 4)))
            try:
                await self.load()
            except (store_errors.StoreError, CannotServe) as error:
                log.info("authorities are not looked at now", why=str(error))
                self._refresh()

    def _refresh(self) -> None:
        """A new own certificate when it is time; the right authorities at any time."""
        assert self._known is not None
        now_ms = self._clock.now_ms()
        alive = decisions.trusted(self._known.record, now_ms)
        roots = b"".join(_certificate(authority).public_bytes(PEM) for authority in alive)
        if self._identity is None or now_ms >= self._identity.renew_ms:
            self._identity = self._issuer.for_controller(
                self._replica, hosts=self._hosts, now_ms=now_ms, life_ms=self._life_ms
            )
            _use(self._own, self._identity)
            log.debug("own certificate renewed", until_ms=self._identity.ends_ms)
        if roots != self._roots:
            self._roots = roots
            self.bundle_id = bundle_id(roots.decode())
            for observer in self._observers:
                observer()
        self._refresh_given()

    def _refresh_given(self) -> None:
        if self._given is None:
            return
        try:
            stamp = self._given.stamp()
            if stamp != self._given_stamp:
                self._shown.load_cert_chain(self._given.chain, self._given.key)
                self._given_stamp = stamp
        except (OSError, ssl.SSLError) as error:
            if self._given_stamp is None:
                raise CannotServe(f"the certificate in {self._given.chain} cannot be used: {error}") from error
            log.warning("the certificate that was given cannot be read again", why=str(error))


def peer(auth_context: dict[str, Sequence[bytes]]) -> Holder | None:
    """Who is at the other end of a gRPC call, as its certificate says; None: a connection without one."""
    chain = auth_context.get("x509_pem_cert")
    return holder_of(bytes(chain[0])) if chain else None


def _has_issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Connections are kept; `pwm` makes one and ends.
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    return context


def _use(context: ssl.SSLContext, identity: Identity) -> None:
    """OpenSSL reads files only; this one is in memory, and nobody else can open it."""
    descriptor = os.memfd_create("pwm-certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, identity.key + identity.chain)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _certificate(authority: Authority) -> x509.Certificate:
    return x509.load_der_x509_certificate(authority.certificate)


def _node_entry(certificate: x509.Certificate) -> NodeCertificate:
    made = NodeCertificate(serial=serial(certificate), fingerprint=fingerprint(certificate))
    made.issued_at.FromMilliseconds(begins_ms(certificate))
    made.expires_at.FromMilliseconds(ends_ms(certificate))
    return made


def _entry(authority: Authority, *, issuing: bool) -> AuthorityEntry:
    certificate = _certificate(authority)
    made = AuthorityEntry(name=common_name(certificate), fingerprint=fingerprint(certificate), issuing=issuing)
    made.expires_at.FromMilliseconds(ends_ms(certificate))
    if authority.HasField("retires_at"):
        made.retires_at.CopyFrom(authority.retires_at)
    return made
