"""The cluster's own certificate authority: making one, and what it issues.

What is in a certificate is decided here alone; of what a signing request says only the key is taken. See
`pwm.certificates` for what the names mean, and `core.authorities` for which of several authorities counts.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pwm.certificates import (
    BACKDATED_MS,
    CONTROLLER,
    DER,
    NODE,
    PEM,
    SERVER_NAME,
    Holder,
    Identity,
    ends_ms,
    instant,
    key_pem,
    new_key,
)
from pwm.controlplane.core.authorities import AUTHORITY_LIFE_MS

NAME_PREFIX = "PWM authority"
# X.520 allows no more in a common name.
MAX_COMMON_NAME_CHARS = 64


@dataclass(frozen=True, slots=True)
class Issuer:
    """An authority that can issue. `bridges`: DER of what leads from it to those that were there before."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    bridges: tuple[bytes, ...] = ()

    @classmethod
    def read(cls, certificate: bytes, key: bytes, bridges: Sequence[bytes] = ()) -> "Issuer":
        """From DER. Raises ValueError."""
        loaded = serialization.load_der_private_key(key, password=None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise ValueError("the authority's key is not of an elliptic curve")
        return cls(x509.load_der_x509_certificate(certificate), loaded, tuple(bridges))

    @property
    def key_der(self) -> bytes:
        return self.key.private_bytes(DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

    def for_node(
        self, key: ec.EllipticCurvePublicKey, node: str, membership: str, *, now_ms: int, life_ms: int
    ) -> bytes:
        """PEM: the node's certificate, and what leads to every authority that is trusted."""
        usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
        return self._chain(key, Holder(NODE, node, membership), usage, names=(), now_ms=now_ms, life_ms=life_ms)

    def for_controller(self, replica: str, *, hosts: Sequence[str], now_ms: int, life_ms: int) -> Identity:
        """`hosts`: names and addresses under which browsers and tools that know no better look for it."""
        key = new_key()
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        names = tuple(dict.fromkeys((SERVER_NAME, *hosts)))
        holder = Holder(CONTROLLER, replica)
        chain = self._chain(key.public_key(), holder, usage, names=names, now_ms=now_ms, life_ms=life_ms)
        return Identity(chain, key_pem(key))

    def _chain(
        self,
        key: ec.EllipticCurvePublicKey,
        holder: Holder,
        usage: Sequence[x509.ObjectIdentifier],
        *,
        names: Sequence[str],
        now_ms: int,
        life_ms: int,
    ) -> bytes:
        who = x509.UniformResourceIdentifier(holder.uri)
        alternatives: list[x509.GeneralName] = [who, *map(_host, names)]
        made = (
            _builder(holder.name, self.certificate.subject, key, self.key.public_key(), now_ms=now_ms, life_ms=life_ms)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(issues=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        between = [x509.load_der_x509_certificate(bridge) for bridge in self.bridges]
        return b"".join(certificate.public_bytes(PEM) for certificate in (made, *between))


def new_issuer(number: int, *, now_ms: int) -> Issuer:
    """A new authority, which nobody trusts yet."""
    key = new_key()
    name = _name(f"{NAME_PREFIX} {number}")
    certificate = (
        _builder(f"{NAME_PREFIX} {number}", name, key.public_key(), key.public_key(), now_ms=now_ms,
                 life_ms=AUTHORITY_LIFE_MS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(issues=True), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    return Issuer(certificate, key)


def bridge(successor: Issuer, before: Issuer, *, now_ms: int) -> bytes:
    """The successor's name and key, certified by the one before. DER."""
    until_ms = min(ends_ms(successor.certificate), ends_ms(before.certificate))
    made = (
        _builder("", before.certificate.subject, successor.key.public_key(), before.key.public_key(), now_ms=now_ms,
                 life_ms=until_ms - now_ms, subject=successor.certificate.subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(issues=True), critical=True)
        .sign(before.key, hashes.SHA256())
    )  # fmt: skip
    return made.public_bytes(DER)


def _builder(
    name: str,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    *,
    now_ms: int,
    life_ms: int,
    subject: x509.Name | None = None,
) -> x509.CertificateBuilder:
    """`subject`: instead of one with that common name."""
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name) if subject is None else subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(instant(now_ms - BACKDATED_MS))
        .not_valid_after(instant(now_ms + life_ms))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:MAX_COMMON_NAME_CHARS])])


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, issues: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not issues,
        key_cert_sign=issues,
        crl_sign=issues,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
