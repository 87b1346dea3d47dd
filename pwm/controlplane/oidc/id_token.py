"""What of an ID token is believed: everything, or nothing.

It comes straight from the provider, over TLS. All the same it is checked as if anybody had sent it: that it is signed
with one of the provider's keys, by a method that has a private key (`none` has no key at all, and with HMAC whoever
knows the public key could sign), that it is from this provider, for this client, of now, and not for another who
happens to be named besides (OpenID Connect Core 1.0, 3.1.3.7). PyJWT does the sums; here it is told what to insist on.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

# Signing methods, and the kind of key that each takes.
ALGORITHMS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", "")),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
REQUIRED = ("iss", "sub", "aud", "exp", "iat")
MAX_TOKEN_CHARS = 32 * 1024
# Shorter ones can be broken; longer ones take a while for each signature, and nobody has them.
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192
# How far the provider's clock may be from ours.
CLOCK_LEEWAY_S = 60.0
# It is made when it is asked for, which is now.
OLDEST_S = 600.0


class NotBelieved(Exception):
    """An ID token that says nothing about anybody. The message is the rest of a sentence: "it ..."."""


class KeyUnknown(NotBelieved):
    """None of the keys that are known fits: the provider may have new ones."""


def verified(
    token: str, keys: Iterable[Mapping[str, Any]], *, issuer: str, client_id: str, now_s: float
) -> dict[str, Any]:
    """Its claims. `keys`: the provider's, as its JWK set has them. Raises NotBelieved.

    Whether it has expired is decided by this machine's clock; `now_s` is of the same.
    """
    if len(token) > MAX_TOKEN_CHARS:
        raise NotBelieved("it is too long")
    try:
        key = _key_for(jwt.get_unverified_header(token), keys)
        claims: dict[str, Any] = jwt.decode(
            token, key, algorithms=[key.algorithm_name], audience=client_id, issuer=issuer, leeway=CLOCK_LEEWAY_S,
            options={"require": list(REQUIRED)},
        )  # fmt: skip
    except jwt.InvalidSignatureError as error:
        raise KeyUnknown("its signature is wrong") from error
    except jwt.ExpiredSignatureError as error:
        raise NotBelieved("it has expired; is a clock wrong?") from error
    except jwt.ImmatureSignatureError as error:
        raise NotBelieved("it is from the future; is a clock wrong?") from error
    except jwt.InvalidAudienceError as error:
        raise NotBelieved("it is for another client") from error
    except jwt.InvalidIssuerError as error:
        raise NotBelieved("it is from another provider") from error
    except jwt.MissingRequiredClaimError as error:
        raise NotBelieved(f"it has no {error.claim}") from error
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise NotBelieved("it cannot be read") from error
    _check_more(claims, client_id=client_id, now_s=now_s)
    return claims


def _check_more(claims: Mapping[str, Any], *, client_id: str, now_s: float) -> None:
    """What the standard asks for besides."""
    several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
    if claims.get("azp", None if several else client_id) != client_id:
        raise NotBelieved("it is for another client")
    if now_s - float(claims["iat"]) > OLDEST_S + CLOCK_LEEWAY_S:
        raise NotBelieved("it is an old one; is a clock wrong?")
    if not claims["sub"]:
        raise NotBelieved("it has no sub")


def _key_for(header: Mapping[str, Any], keys: Iterable[Mapping[str, Any]]) -> jwt.PyJWK:
    """The one key that it can be signed with. Raises NotBelieved."""
    algorithm, kid = header.get("alg"), header.get("kid")
    if algorithm not in ALGORITHMS:
        raise NotBelieved(f"it is signed by a method that is not believed: {str(algorithm)[:20]}")
    if "crit" in header:
        raise NotBelieved("it has extensions that nobody knows")
    kind, curve = ALGORITHMS[algorithm]
    fitting = [
        key
        for key in keys
        if key.get("kty") == kind
        and (not curve or key.get("crv") == curve)
        and key.get("use", "sig") == "sig"
        and key.get("alg", algorithm) == algorithm
        and (kid is None or key.get("kid") == kid)
    ]
    if not fitting:
        raise KeyUnknown("it is signed with none of the provider's keys")
    if len(fitting) > 1:
        raise NotBelieved("it does not say with which of the provider's keys it is signed")
    made = jwt.PyJWK(dict(fitting[0]), algorithm=algorithm)
    if isinstance(made.key, RSAPublicKey) and not MIN_RSA_BITS <= made.key.key_size <= MAX_RSA_BITS:
        raise NotBelieved(f"it is signed with a key of {made.key.key_size} bits")
    return made
