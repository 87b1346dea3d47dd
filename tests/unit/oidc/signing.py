"""ID tokens as a provider would sign them, and as others would."""

import json
import time
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from jwt.algorithms import get_default_algorithms

ISSUER, CLIENT = "https://idp.example.org/realms/lab", "pwm"


@cache
def private_key(algorithm: str, name: str = "one") -> Any:
    """One for each kind of key and name: RSA keys take a while."""
    kind = algorithm[:2]
    if kind in ("RS", "PS"):
        return _rsa(name)
    if kind == "ES":
        curves: dict[str, Any] = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}
        return ec.generate_private_key(curves[algorithm]())
    return ed25519.Ed25519PrivateKey.generate()


@cache
def _rsa(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def jwk(key: PrivateKeyTypes, algorithm: str, *, kid: str = "one", **more: Any) -> dict[str, Any]:
    """The public half, as it is in a provider's set."""
    public: Any = get_default_algorithms()[algorithm].to_jwk(key.public_key())
    found: dict[str, Any] = json.loads(public) if isinstance(public, str) else public
    found = {k: v for k, v in found.items() if k not in ("key_ops", "alg", "use")}
    return {**found, "kid": kid, "use": "sig", **more}


def claims(**changed: Any) -> dict[str, Any]:
    """Of ann, now. None leaves one out."""
    now = int(time.time())
    all_of_them = {"iss": ISSUER, "sub": "248289761001", "aud": CLIENT, "iat": now, "exp": now + 300, **changed}
    return {name: value for name, value in all_of_them.items() if value is not None}


def signed(content: dict[str, Any], *, algorithm: str = "RS256", kid: str | None = "one", key: Any = None) -> str:
    headers = {"kid": kid} if kid is not None else {}
    return jwt.encode(content, key or private_key(algorithm), algorithm=algorithm, headers=headers)
