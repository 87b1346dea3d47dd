"""Keys and certificates as both sides of a connection need them: who somebody is, for how long, and how to ask for it.

A certificate of PWM's own authority says a *role* and a name, as a URI: `pwm://controller/c1` is a replica of the
control plane, `pwm://node/gpu01/MEMBERSHIP` may be the agent of that node and of no other. The membership names the
join that it comes from, and is passed on when it is renewed: the control plane knows which join of a node counts, if
any, so one word in its log ends all certificates of a node. Nothing else in it means anything, least of all what its
owner asked for: a signing request carries a key, and proves that whoever sends it has the secret half.

Controllers have one DNS name more than their real ones, `SERVER_NAME`. Who knows the authority asks for this name,
whatever address led there: only a controller of the cluster can have it. So neither a changed address nor a second one
needs a new certificate, and a node's certificate is good for no server.

Issuing is the control plane's: `pwm.controlplane.authority`.
"""

import datetime as dt
import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pwm.trust import SERVER_NAME as SERVER_NAME  # what the control plane puts in is what clients ask for

NODE, CONTROLLER = "node", "controller"
URI_SCHEME = "pwm://"
PEM = serialization.Encoding.PEM
DER = serialization.Encoding.DER
# Keys of sessions that last a day; all that TLS 1.3 stacks agree on, and fast.
CURVE = ec.SECP256R1()
# A renewal that fails is tried again until the end: a third of the time is left for it.
RENEW_AFTER = 2 / 3
# So much may the clocks of two machines differ.
BACKDATED_MS = 5 * 60_000
# A signing request has about 400.
MAX_REQUEST_CHARS = 4096


class BadRequest(ValueError):
    """No signing request; the message is a sentence for whoever sent it."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who a certificate is for."""

    role: str
    name: str
    # Of a node: which of its joins the certificate comes from.
    membership: str = ""

    @property
    def uri(self) -> str:
        return f"{URI_SCHEME}{self.role}/{self.name}" + (f"/{self.membership}" if self.membership else "")


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate with what leads to its authority, and its secret key; both PEM."""

    chain: bytes
    key: bytes = field(repr=False)

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.chain)

    @property
    def holder(self) -> Holder | None:
        return holder_of(self.chain)

    @property
    def ends_ms(self) -> int:
        return ends_ms(self.certificate)

    @property
    def renew_ms(self) -> int:
        """When it is time for another one."""
        return renew_ms(begins_ms(self.certificate), self.ends_ms)


def begins_ms(certificate: x509.Certificate) -> int:
    """When it was issued: certificates are valid from a little earlier, for clocks that are behind."""
    return int(certificate.not_valid_before_utc.timestamp() * 1000) + BACKDATED_MS


def ends_ms(certificate: x509.Certificate) -> int:
    return int(certificate.not_valid_after_utc.timestamp() * 1000)


def renew_ms(begins_ms: int, ends_ms: int) -> int:
    return begins_ms + int((ends_ms - begins_ms) * RENEW_AFTER)


def instant(ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC)


# ---- keys and requests


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(CURVE)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def read_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """What `key_pem` has written. Raises ValueError."""
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("this is no key of an elliptic curve")
    return key


def signing_request(key: ec.EllipticCurvePrivateKey) -> str:
    """PEM. It names nobody: the answer does."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(PEM).decode()


def key_digest(key: ec.EllipticCurvePublicKey) -> str:
    """Names a key. SHA-256, in hex."""
    return hashlib.sha256(key.public_bytes(DER, serialization.PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def requested_key(text: str) -> ec.EllipticCurvePublicKey:
    """The key of a signing request, whose sender has proved to have the other half. Raises BadRequest."""
    if len(text) > MAX_REQUEST_CHARS:
        raise BadRequest("the signing request is too long")
    try:
        request = x509.load_pem_x509_csr(text.encode())
        key = request.public_key()
        valid = request.is_signature_valid
    except Exception as error:  # cryptography raises whatever its parsers do
        raise BadRequest("this is not a signing request in PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != CURVE.name:
        raise BadRequest(f"the signing request's key has to be of the curve {CURVE.name}")
    if not valid:
        raise BadRequest("the signing request is not signed with its own key")
    return key


def proof(identity: "Identity", text: str) -> bytes:
    """Shows that whoever sends the text has the key of a certificate."""
    key = serialization.load_pem_private_key(identity.key, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey), "made by new_key"
    return key.sign(text.encode(), ec.ECDSA(hashes.SHA256()))


def is_proof(certificate: x509.Certificate, text: str, signature: bytes) -> bool:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        key.verify(signature, text.encode(), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


# ---- reading certificates


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the whole certificate, in hex."""
    return hashlib.sha256(certificate.public_bytes(DER)).hexdigest()


@lru_cache(maxsize=4096)
def holder_of(chain: bytes) -> Holder | None:
    """Whom the first certificate in the PEM is for. Whether it is to be believed, TLS has found out before."""
    try:
        certificate = x509.load_pem_x509_certificate(chain)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return None
    if len(uris) != 1 or not uris[0].startswith(URI_SCHEME):
        return None
    role, _, rest = uris[0].removeprefix(URI_SCHEME).partition("/")
    name, _, membership = rest.partition("/")
    return Holder(role, name, membership) if name and role in (NODE, CONTROLLER) else None


def serial(certificate: x509.Certificate) -> str:
    """In hex, as other tools show it."""
    return f"{certificate.serial_number:x}"


def common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""
