"""What is believed of an ID token, and by how little it need be wrong not to be."""

import base64
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from pwm.controlplane.oidc.id_token import ALGORITHMS, KeyUnknown, NotBelieved, verified
from tests.unit.oidc.signing import CLIENT, ISSUER, _rsa, claims, jwk, private_key, signed

NOW_S = time.time()


def keys(algorithm: str = "RS256", **more: Any) -> list[dict[str, Any]]:
    return [jwk(private_key(algorithm), algorithm, **more)]


def check(token: str, known: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    asked = {"issuer": ISSUER, "client_id": CLIENT, "now_s": time.time(), **more}
    return verified(token, keys() if known is None else known, **asked)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kid", ["one", None])
def test_each_method_with_a_private_key_is_believed(algorithm: str, kid: str | None) -> None:
    token = signed(claims(email="ann@example.org"), algorithm=algorithm, kid=kid)
    assert check(token, keys(algorithm))["email"] == "ann@example.org"
    assert check(token, keys(algorithm, alg=algorithm))["sub"] == "248289761001"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"aud": "another"}, "another client"),
        ({"aud": ["another"]}, "another client"),
        ({"aud": [CLIENT, "another"]}, "another client"),
        ({"aud": [CLIENT, "another"], "azp": "another"}, "another client"),
        ({"azp": "another"}, "another client"),
        ({"aud": None}, "no aud"),
        ({"iss": "https://idp.example.org/realms/other"}, "another provider"),
        ({"iss": ISSUER + "/"}, "another provider"),
        ({"iss": None}, "no iss"),
        ({"exp": int(NOW_S) - 3600}, "has expired"),
        ({"exp": None}, "no exp"),
        ({"exp": "soon"}, "cannot be read"),
        ({"iat": int(NOW_S) + 3600, "exp": int(NOW_S) + 7200}, "from the future"),
        ({"iat": int(NOW_S) - 3600}, "an old one"),
        ({"iat": None}, "no iat"),
        ({"nbf": int(NOW_S) + 3600}, "from the future"),
        ({"sub": None}, "no sub"),
        ({"sub": ""}, "no sub"),
    ],
)
def test_what_is_not_for_here_and_now_is_not_believed(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(NotBelieved, match=why):
        check(signed(claims(**changed)))


def test_several_audiences_are_fine_where_this_client_is_the_one_it_was_made_for() -> None:
    check(signed(claims(aud=[CLIENT, "api"], azp=CLIENT)))
    check(signed(claims(aud=[CLIENT])))


def test_clocks_may_differ_by_half_a_minute() -> None:
    now = int(time.time())
    check(signed(claims(iat=now + 30)))
    check(signed(claims(exp=now - 30)))


def test_a_token_without_a_signature_is_not_believed() -> None:
    for text in ("none", "None", "NONE", ""):
        header = base64.urlsafe_b64encode(json.dumps({"alg": text, "kid": "one"}).encode()).rstrip(b"=")
        body = base64.urlsafe_b64encode(json.dumps(claims()).encode()).rstrip(b"=")
        for signature in (b"", b"AAAA"):
            with pytest.raises(NotBelieved, match="a method that is not believed"):
                check(b".".join((header, body, signature)).decode())


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_who_knows_the_public_key_cannot_sign_with_it(algorithm: str) -> None:
    public = private_key("RS256").public_key()
    known = keys()[0]
    for secret in (
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
        known["n"].encode() * 2,
    ):
        header = base64.urlsafe_b64encode(json.dumps({"alg": algorithm, "kid": "one"}).encode()).rstrip(b"=")
        body = base64.urlsafe_b64encode(json.dumps(claims()).encode()).rstrip(b"=")
        method = jwt.algorithms.get_default_algorithms()[algorithm]
        # What a library that takes the method from the token would accept.
        signature = base64.urlsafe_b64encode(method.sign(b".".join((header, body)), secret)).rstrip(b"=")
        with pytest.raises(NotBelieved, match="a method that is not believed"):
            check(b".".join((header, body, signature)).decode())
    # Nor when the set itself has a key for it.
    oct_key = {"kty": "oct", "kid": "one", "k": base64.urlsafe_b64encode(b"s" * 64).rstrip(b"=").decode()}
    token = jwt.encode(claims(), b"s" * 64, algorithm=algorithm, headers={"kid": "one"})
    with pytest.raises(NotBelieved, match="a method that is not believed"):
        check(token, [oct_key])


def test_a_key_of_somebody_else_does_not_fit() -> None:
    other = private_key("RS256", "other")
    with pytest.raises(KeyUnknown, match="its signature is wrong"):
        check(signed(claims(), key=other))
    with pytest.raises(KeyUnknown, match="none of the provider's keys"):
        check(signed(claims(), key=other, kid="other"))
    with pytest.raises(KeyUnknown, match="none of the provider's keys"):
        check(signed(claims()), [])


def test_a_token_that_was_changed_on_the_way_is_not_believed() -> None:
    head, _, signature = signed(claims()).split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims(sub="root")).encode()).rstrip(b"=").decode()
    with pytest.raises(KeyUnknown, match="its signature is wrong"):
        check(f"{head}.{body}.{signature}")


@pytest.mark.parametrize(
    "changed",
    [{"use": "enc"}, {"alg": "RS512"}, {"kty": "EC"}, {"kid": "another"}],
    ids=["to encrypt", "for another method", "of another kind", "of another name"],
)
def test_a_key_is_used_only_for_what_it_is_for(changed: dict[str, Any]) -> None:
    with pytest.raises(KeyUnknown):
        check(signed(claims()), [{**keys()[0], **changed}])


def test_of_several_keys_the_one_that_is_named_is_used() -> None:
    both = [jwk(private_key("RS256", "other"), "RS256", kid="other"), *keys()]
    check(signed(claims()), both)
    with pytest.raises(NotBelieved, match="does not say with which"):
        check(signed(claims(), kid=None), both)


def test_a_short_key_is_not_believed() -> None:
    short = _rsa("short", 1024)
    header = base64.urlsafe_b64encode(json.dumps({"alg": "RS256", "kid": "one"}).encode()).rstrip(b"=")
    with pytest.raises(NotBelieved, match="1024 bits"):
        check(header.decode() + ".e30.AAAA", [jwk(short, "RS256")])


HEADERS = [
    b"[]", b'{"alg":[]}', b'{"alg":{}}', b'{"alg":null}', b'{"alg":"RS256","kid":7}', b"\xff",
    b'{"alg":"RS256","kid":"one","crit":["exp"]}',
]  # fmt: skip


@pytest.mark.parametrize(
    "token",
    [
        *("", ".", "..", "a.b.c", "é.é.é", "eyJhbGciOiJSUzI1NiJ9", "null", "A" * 40_000),
        *(base64.urlsafe_b64encode(header).decode().rstrip("=") + ".e30.AAAA" for header in HEADERS),
    ],
)
def test_what_is_no_token_at_all_is_not_believed_either(token: str) -> None:
    with pytest.raises(NotBelieved):
        check(token)
