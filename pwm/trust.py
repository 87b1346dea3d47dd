"""Finding the right server with nothing but a fingerprint, and talking to it from then on.

A fingerprint is the SHA-256 of an authority's certificate. Whoever has it from a trusted place (a join token, an admin)
asks any server for its authorities, without believing it, keeps the one with that fingerprint, and then connects
again believing nothing else. What is secret is sent on the second connection only.

Everything is imported late: commands of `pwm` need the name and the context only, and those that need no TLS nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from typing import Any

# Only controllers have it in their certificates; never a name that anything resolves.
SERVER_NAME = "controller.pwm.internal"
ANSWER_LIMIT_S = 5.0
# A few certificates.
MAX_ANSWER_BYTES = 256 * 1024
# Of a set of authorities: enough that no two sets have the same.
ID_CHARS = 16
FINGERPRINT_CHARS = 64


class TrustError(Exception):
    """No server there that can be believed. The message is a sentence for the user."""


def parse_fingerprint(text: str) -> str:
    """64 hex digits from what people paste: colons, spaces and capitals do not matter. Raises ValueError."""
    digits = "".join(text.lower().removeprefix("sha256:").replace(":", " ").split())
    if len(digits) != FINGERPRINT_CHARS or not set("0123456789abcdef").issuperset(digits):
        raise ValueError("a fingerprint is 64 hex digits; `pwm admin ca show` prints it")
    return digits


def certificates_in(pem: str) -> list[bytes]:
    """Each certificate's DER."""
    import ssl

    end = "-----END CERTIFICATE-----"
    return [ssl.PEM_cert_to_DER_cert(part.strip() + "\n" + end) for part in pem.split(end) if part.strip()]


def bundle_id(pem: str) -> str:
    """Names a set of authorities, in whatever order they come."""
    import hashlib

    digests = sorted(hashlib.sha256(der).digest() for der in certificates_in(pem))
    return "ca-" + hashlib.sha256(b"".join(digests)).hexdigest()[:ID_CHARS]


def pinned(pem: str) -> ssl.SSLContext:
    """For connections to controllers of these authorities and nobody else; ask for SERVER_NAME. Raises TrustError."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError) as error:
        raise TrustError("these are no certificates in PEM") from error
    return context


def find_authorities(host: str, port: int, fingerprint: str) -> str:
    """PEM of the authorities of the server there, which has proved that it is the right one. Raises TrustError.

    The one with the fingerprint is believed because of it, the others because the server that it vouches for says so.
    """
    import hashlib
    import ssl

    doubting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    doubting.check_hostname = False
    doubting.verify_mode = ssl.CERT_NONE
    offered = str(ask(host, port, "GET", "/v1/authorities", context=doubting).get("certificates", ""))
    try:
        right = [der for der in certificates_in(offered) if hashlib.sha256(der).hexdigest() == fingerprint]
    except ValueError as error:
        raise TrustError(f"{host}:{port} offers no certificates") from error
    if not right:
        raise TrustError(
            f"{host}:{port} does not have the authority with the fingerprint {fingerprint[:ID_CHARS]}...: "
            "it is another cluster's, or somebody is in between"
        )
    context = pinned(ssl.DER_cert_to_PEM_cert(right[0]))
    return str(ask(host, port, "GET", "/v1/authorities", context=context).get("certificates", ""))


def ask(
    host: str,
    port: int,
    method: str,
    path: str,
    *,
    context: ssl.SSLContext,
    body: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    limit_s: float = ANSWER_LIMIT_S,
) -> dict[str, Any]:
    """The JSON of one answer. Blocks. Raises TrustError for what is no good answer, `Refusal` for what is refused."""
    import http.client
    import json
    import socket
    import ssl

    connection = http.client.HTTPSConnection(host, port, timeout=limit_s, context=context)
    try:
        # As HTTPSConnection does it, but for the name to ask for.
        plain = socket.create_connection((host, port), timeout=limit_s)
        try:
            connection.sock = context.wrap_socket(plain, server_hostname=SERVER_NAME)
        except BaseException:
            plain.close()
            raise
        text = json.dumps(body) if body is not None else None
        given = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, path, body=text, headers={**given, **(headers or {})})
        response = connection.getresponse()
        document = json.loads(response.read(MAX_ANSWER_BYTES) or b"{}")
        if response.status != 200:
            message = document.get("message") if isinstance(document, dict) else ""
            raise Refusal(response.status, str(message or f"it answers {response.status}"))
        if not isinstance(document, dict):
            raise TrustError(f"{host}:{port} does not answer as a controller does")
    except ssl.SSLCertVerificationError as error:
        raise TrustError(f"{host}:{port} cannot be believed: {error.verify_message}") from error
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            raise TrustError(f"{host}:{port} does not speak TLS") from error
        raise TrustError(f"{host}:{port} does not answer: {error}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise TrustError(f"{host}:{port} does not answer: {error}") from error
    finally:
        connection.close()
    return document


class Refusal(TrustError):
    """A controller that is believed says no."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
