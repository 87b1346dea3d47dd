"""A notice as a signed request to somebody's server.

    POST /path
    Content-Type: application/json
    X-PWM-Notice: the notice's id, the same at every attempt
    X-PWM-Timestamp: seconds since the epoch, of this attempt
    X-PWM-Signature: v1=HMAC-SHA256 of TIMESTAMP.BODY with the key, in hex

The receiver checks the signature over the bytes it got, and that the timestamp is not old: else somebody could send
what he has overheard once more. An answer of 2xx means delivered; redirections are not followed, since what is signed
for one is not meant for another.
"""

import hashlib
import hmac
import http.client
import json
import ssl
from typing import Any
from urllib.parse import urlsplit

# Of the answer, which nobody looks at.
_ANSWER_BYTES = 65_536


class NotTaken(Exception):
    """The receiver said no. The message is a sentence."""


def signature(key: str, timestamp: str, body: bytes) -> str:
    return "v1=" + hmac.new(key.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def body_of(letter: dict[str, Any]) -> bytes:
    """What is sent: all but where to."""
    told = {name: value for name, value in letter.items() if name != "address"}
    return json.dumps(told, sort_keys=True, separators=(",", ":")).encode()


def post(letter: dict[str, Any], *, now_s: int, timeout_s: float) -> None:
    """Raises OSError, http.client.HTTPException, NotTaken."""
    address, _, key = str(letter["address"]).partition("#")
    parts = urlsplit(address)
    body, timestamp = body_of(letter), str(now_s)
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "pwm",
        "X-PWM-Notice": str(letter["id"]),
        "X-PWM-Timestamp": timestamp,
        "X-PWM-Signature": signature(key, timestamp, body),
    }
    connection = _connection(parts.scheme, parts.hostname or "", parts.port, timeout_s)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        answer.read(_ANSWER_BYTES)
    finally:
        connection.close()
    if not 200 <= answer.status < 300:
        raise NotTaken(f"the receiver answered {answer.status}")


def _connection(scheme: str, host: str, port: int | None, timeout_s: float) -> http.client.HTTPConnection:
    if scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=ssl.create_default_context())
    return http.client.HTTPConnection(host, port, timeout=timeout_s)
