"""What the cluster's own authority issues is believed where it should be, over real TLS, and nowhere else."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from pwm.api.v1.store_pb2 import Authorities
from pwm.certificates import (
    CONTROLLER,
    NODE,
    PEM,
    SERVER_NAME,
    Holder,
    Identity,
    fingerprint,
    key_pem,
    new_key,
    signing_request,
)
from pwm.controlplane.authority import new_issuer
from pwm.controlplane.clock import Clock
from pwm.controlplane.cluster_key import ClusterKey
from pwm.controlplane.core.decide import Refusal
from pwm.controlplane.credentials import CannotServe, Credentials, GivenCertificate, _use, peer
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.memory import MemoryKV
from pwm.trust import TrustError, bundle_id, find_authorities, parse_fingerprint, pinned
from tests.patience import PATIENCE_S

KEYS = Keys(b"/t/")
HOUR_MS = 3_600_000


class SetClock(Clock):
    def __init__(self) -> None:
        self.ms = super().now_ms()

    def now_ms(self) -> int:
        return self.ms


@pytest.fixture
async def kv() -> AsyncIterator[MemoryKV]:
    made = MemoryKV()
    yield made
    await made.close()


KEY = ClusterKey.generate()


async def credentials(kv: MemoryKV, *, clock: Clock | None = None, key: ClusterKey = KEY, **more: Any) -> Credentials:
    made = Credentials(
        kv, keys=KEYS, cluster_key=key, clock=clock or Clock(), replica="c1", hosts=["localhost", "127.0.0.1"], **more
    )
    await made.load()
    return made


def a_node(issuer: Credentials, name: str = "n1") -> Identity:
    key = new_key()
    return Identity(issuer.certify_node(signing_request(key), name, "m1").chain.encode(), key_pem(key))


@asynccontextmanager
async def agents_port(served: Credentials) -> AsyncIterator[int]:
    """The port of agents; its one call answers who the caller is."""

    async def who(request: bytes, context: Any) -> bytes:
        holder = peer(context.auth_context())
        return f"{holder.role}/{holder.name}".encode() if holder else b"nobody"

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(who)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", {"Who": handler}),))
    port = server.add_secure_port("127.0.0.1:0", served.agents())
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def who(port: int, credentials: grpc.ChannelCredentials) -> str:
    """Who the port says that we are; "" when it does not let us in, or we do not believe it."""
    options = (("grpc.ssl_target_name_override", SERVER_NAME),)
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        try:
            answer: bytes = await channel.unary_unary("/t.T/Who")(b"", timeout=PATIENCE_S)
        except grpc.aio.AioRpcError as error:
            return "" if error.code() == grpc.StatusCode.UNAVAILABLE else str(error)
    return answer.decode()


def with_identity(roots: str, identity: Identity) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(roots.encode(), identity.key, identity.chain)


@asynccontextmanager
async def https(context: ssl.SSLContext) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"served")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def believes(port: int, roots: str, *, name: str = SERVER_NAME) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=pinned(roots), server_hostname=name)
    except ssl.SSLCertVerificationError:
        return False
    assert await reader.read() == b"served"
    writer.close()
    return True


async def test_a_node_and_a_replica_are_known_by_their_certificates(kv: MemoryKV) -> None:
    first = await credentials(kv)
    async with agents_port(first) as port:
        assert await who(port, with_identity(first.roots, a_node(first))) == f"{NODE}/n1"
        assert await who(port, first.dialling()) == f"{CONTROLLER}/c1"


async def test_all_replicas_have_the_same_authority_whoever_was_first(kv: MemoryKV) -> None:
    one, two = await asyncio.gather(credentials(kv), credentials(kv))
    assert one.roots == two.roots
    assert one.identity.chain != two.identity.chain
    async with agents_port(two) as port:
        assert await who(port, with_identity(one.roots, a_node(one))) == f"{NODE}/n1"


async def test_nobody_gets_in_without_a_certificate_of_this_cluster(kv: MemoryKV) -> None:
    mine = await credentials(kv)
    other_kv = MemoryKV()
    other = await credentials(other_kv)
    await other_kv.close()
    async with agents_port(mine) as port:
        assert await who(port, with_identity(mine.roots, a_node(other))) == ""
        assert await who(port, grpc.ssl_channel_credentials(mine.roots.encode())) == ""
        assert await who(port, with_identity(other.roots, a_node(mine))) == "", "nor is another's server believed"


async def test_a_certificate_that_has_ended_lets_nobody_in(kv: MemoryKV) -> None:
    clock = SetClock()
    mine = await credentials(kv, clock=clock, life_ms=HOUR_MS)
    clock.ms -= 2 * HOUR_MS
    ended = a_node(mine)
    clock.ms += 2 * HOUR_MS
    async with agents_port(mine) as port:
        assert await who(port, with_identity(mine.roots, ended)) == ""
        assert await who(port, with_identity(mine.roots, a_node(mine))) == f"{NODE}/n1"


async def test_a_nodes_certificate_is_good_for_no_server(kv: MemoryKV) -> None:
    mine = await credentials(kv)
    node = a_node(mine)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _use(context, node)
    async with https(context) as port:
        assert not await believes(port, mine.roots)


async def test_what_a_signing_request_says_of_itself_does_not_count(kv: MemoryKV) -> None:
    mine = await credentials(kv)
    key = new_key()
    boast = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "admin")])
    )
    boast = boast.add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
    boast = boast.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    text = boast.sign(key, hashes.SHA256()).public_bytes(PEM).decode()
    made = Identity(mine.certify_node(text, "n1", "m1").chain.encode(), key_pem(key))
    assert made.holder == Holder(NODE, "n1", "m1")
    alternatives = made.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternatives.get_values_for_type(x509.DNSName) == []
    assert not made.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


async def test_a_change_of_the_authority_shuts_nobody_out(kv: MemoryKV) -> None:
    """Whoever knows only the old one, wherever it is, and a replica that has not heard of it yet."""
    one, late = await credentials(kv), await credentials(kv)
    before, old_node, old_id = one.roots, a_node(one), one.bundle_id
    async with agents_port(one) as port, agents_port(late) as late_port, https(one.https) as web:
        for _ in range(2):
            await one.rotate(trust_old_for_ms=HOUR_MS)
        assert one.bundle_id != old_id
        assert one.bundle_id == bundle_id(one.roots)
        new_node = a_node(one)
        assert await who(port, with_identity(before, old_node)) == f"{NODE}/n1"
        assert await who(port, with_identity(one.roots, new_node)) == f"{NODE}/n1"
        assert await who(late_port, with_identity(one.roots, new_node)) == f"{NODE}/n1"
        assert await who(late_port, one.dialling()) == f"{CONTROLLER}/c1"
        assert await believes(web, before)
        assert await believes(web, one.roots)
    assert [entry.issuing for entry in one.entries()] == [True, False, False]


async def test_an_authority_that_has_retired_is_believed_no_more(kv: MemoryKV) -> None:
    clock = SetClock()
    mine = await credentials(kv, clock=clock)
    before, old_node = mine.roots, a_node(mine)
    await mine.rotate(trust_old_for_ms=HOUR_MS)
    clock.ms += HOUR_MS + 1
    await mine.load()
    assert len(mine.entries()) == 1
    assert len(mine.roots) < len(before) * 1.5
    async with agents_port(mine) as port:
        assert await who(port, with_identity(mine.roots, old_node)) == ""
    await mine.rotate(trust_old_for_ms=HOUR_MS)
    stored = Authorities.FromString((await kv.range(KEYS.authorities)).kvs[0].value)
    assert len(stored.authorities) == 2, "the one that had retired is forgotten"


async def test_an_authority_that_retires_at_once_takes_nobody_along_who_has_a_new_certificate(kv: MemoryKV) -> None:
    mine = await credentials(kv)
    old_node = a_node(mine)
    await mine.rotate(trust_old_for_ms=0)
    async with agents_port(mine) as port:
        assert await who(port, with_identity(mine.roots, old_node)) == ""
        assert await who(port, with_identity(mine.roots, a_node(mine))) == f"{NODE}/n1"


async def test_there_is_a_limit_to_how_many_authorities_there_are(kv: MemoryKV) -> None:
    mine = await credentials(kv)
    for _ in range(7):
        await mine.rotate(trust_old_for_ms=HOUR_MS)
    with pytest.raises(Refusal, match="there are 8 authorities already"):
        await mine.rotate(trust_old_for_ms=HOUR_MS)


async def test_the_own_certificate_is_renewed_in_time_and_shown_at_once(kv: MemoryKV) -> None:
    clock = SetClock()
    clock.ms -= HOUR_MS
    mine = await credentials(kv, clock=clock, life_ms=HOUR_MS)
    first = mine.identity
    async with https(mine.https) as port:
        clock.ms += HOUR_MS // 2
        await mine.load()
        assert mine.identity == first
        clock.ms += HOUR_MS // 5
        await mine.load()
        assert mine.identity != first
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=pinned(mine.roots), server_hostname=SERVER_NAME)  # fmt: skip # noqa: E501
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        assert shown == ssl.PEM_cert_to_DER_cert(mine.identity.chain.decode().partition("-----END")[0] + "-----END CERTIFICATE-----")  # fmt: skip # noqa: E501
        await reader.read()
        writer.close()


async def test_without_the_cluster_key_there_is_no_authority(kv: MemoryKV) -> None:
    await credentials(kv)
    with pytest.raises(CannotServe, match="every controller needs the same cluster key"):
        await credentials(kv, key=ClusterKey.generate())
    raw = (await kv.range(KEYS.authorities)).kvs[0].value
    assert b"PRIVATE" not in raw


async def test_a_given_certificate_is_shown_to_all_but_those_who_know_the_authority(
    kv: MemoryKV, tmp_path: Path
) -> None:
    company = new_issuer(1, now_ms=Clock().now_ms())
    company_roots = company.certificate.public_bytes(PEM).decode()

    def give() -> None:
        given = company.for_controller("x", hosts=["pwm.example.org"], now_ms=Clock().now_ms(), life_ms=HOUR_MS)
        (tmp_path / "cert.pem").write_bytes(given.chain)
        (tmp_path / "key.pem").write_bytes(given.key)

    give()
    mine = await credentials(kv, given=GivenCertificate(tmp_path / "cert.pem", tmp_path / "key.pem"))
    async with https(mine.https) as port:
        assert await believes(port, company_roots, name="pwm.example.org")
        assert await believes(port, mine.roots)
        assert not await believes(port, company_roots)
        give()
        await mine.load()
        assert await believes(port, company_roots, name="pwm.example.org")
    (tmp_path / "broken.pem").write_text("nothing")
    with pytest.raises(CannotServe, match="cannot be used"):
        await credentials(kv, given=GivenCertificate(tmp_path / "broken.pem", tmp_path / "key.pem"))


@pytest.mark.parametrize(
    "written", ["{f}", "sha256:{f}", "SHA256:{F}", " {f}\n", "{colons}"], ids=["plain", "sha", "big", "space", "colons"]
)
def test_a_fingerprint_is_understood_however_it_was_pasted(written: str) -> None:
    digits = fingerprint(new_issuer(1, now_ms=0).certificate)
    colons = ":".join(digits[i : i + 2] for i in range(0, 64, 2)).upper()
    assert parse_fingerprint(written.format(f=digits, F=digits.upper(), colons=colons)) == digits


@pytest.mark.parametrize("written", ["", "abc", "g" * 64, "0" * 63, "0" * 65])
def test_what_is_no_fingerprint_is_not_taken_for_one(written: str) -> None:
    with pytest.raises(ValueError, match="64 hex digits"):
        parse_fingerprint(written)


def test_a_server_that_is_not_there_cannot_be_believed() -> None:
    with pytest.raises(TrustError, match="does not answer"):
        find_authorities("127.0.0.1", 1, "0" * 64)
