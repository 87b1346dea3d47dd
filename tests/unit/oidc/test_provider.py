"""What becomes of a provider's answers, also of those that no provider should give."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pwm.controlplane.oidc import provider as provider_module
from pwm.controlplane.oidc.provider import LoginOver, NotBelieved, NotYet, Provider, ProviderAway, ProviderUnfit
from pwm.controlplane.oidc.settings import BadSettings, OidcSettings
from pwm.controlplane.oidc.wire import MAX_ANSWER_BYTES, Wire
from tests.unit.oidc.signing import jwk, private_key, signed
from tests.unit.oidc.stand_in import BEGUN, StandIn, a_stand_in, drips, never

DISCOVERY = "/.well-known/openid-configuration"


@pytest.fixture
async def idp() -> AsyncIterator[StandIn]:
    async with a_stand_in() as made:
        yield made


def settings(idp: StandIn, **more: Any) -> OidcSettings:
    return OidcSettings(**{"issuer": idp.url, "client_id": "pwm", **more})


@pytest.fixture
async def provider(idp: StandIn) -> AsyncIterator[Provider]:
    async with Provider(settings(idp)) as made:
        yield made


async def test_a_log_in_is_begun_as_the_standard_says(idp: StandIn, provider: Provider) -> None:
    begun = await provider.begin()
    assert (begun.device_code, begun.user_code, begun.lifetime_s, begun.interval_s) == ("DEVICE", "ABCD-EFGH", 600, 5)
    assert begun.verification_uri == f"{idp.url}/code"
    assert "DEVICE" not in repr(begun)
    assert idp.asked[-1][:2] == ("/device", {"client_id": "pwm", "scope": "openid email"})
    await provider.begin()
    assert idp.paths().count(DISCOVERY) == 1, "what the provider says of itself is kept"


async def test_the_older_name_of_the_address_is_understood(idp: StandIn, provider: Provider) -> None:
    idp.answers["/device"] = {**BEGUN, "verification_url": "https://example.org/device", "expires_in": "1800"}
    begun = await provider.begin()
    assert (begun.verification_uri, begun.lifetime_s) == ("https://example.org/device", 1800)


@pytest.mark.parametrize(
    ("methods", "header", "in_form"),
    [
        (None, True, False),
        (["client_secret_basic", "client_secret_post"], True, False),
        (["client_secret_post"], False, True),
    ],
)
async def test_a_secret_is_shown_as_the_provider_wants_it(
    idp: StandIn, methods: list[str] | None, header: bool, in_form: bool
) -> None:
    idp.answers[DISCOVERY] = {**idp.about, **({"token_endpoint_auth_methods_supported": methods} if methods else {})}
    async with Provider(settings(idp, client_id="a:b", client_secret="c d/é")) as provider:
        await provider.begin()
    _, form, headers = idp.asked[-1]
    basic = base64.b64encode(b"a%3Ab:c+d%2F%C3%A9").decode()
    assert headers.get("Authorization") == (f"Basic {basic}" if header else None)
    assert form.get("client_secret") == ("c d/é" if in_form else None)


async def test_claims_come_from_a_token_that_is_believed(idp: StandIn, provider: Provider) -> None:
    with pytest.raises(NotYet):
        await provider.complete("DEVICE")
    idp.confirm()
    assert (await provider.complete("DEVICE"))["email"] == "ann@example.org"
    assert idp.asked[-1][1] == {
        "client_id": "pwm", "grant_type": "urn:ietf:params:oauth:grant-type:device_code", "device_code": "DEVICE",
    }  # fmt: skip
    await provider.complete("DEVICE")
    assert idp.paths().count("/keys") == 1, "keys are kept"


async def test_claims_that_are_not_in_the_token_are_asked_for(idp: StandIn, provider: Provider) -> None:
    for before in ({"email": None, "email_verified": None}, {"email_verified": None}):
        idp.confirm(**before)
        sub = idp.claims()["sub"]
        idp.answers["/userinfo"] = {"sub": sub, "email": "ann@example.org", "email_verified": True, "iss": "evil"}
        found = await provider.complete("DEVICE")
        assert (found["email"], found["email_verified"], found["iss"]) == ("ann@example.org", True, idp.url)
        assert idp.asked[-1][2]["Authorization"] == "Bearer ACCESS"
    # An address from there, and that another one is verified from here, are nothing together.
    idp.confirm(email=None, email_verified=True)
    idp.answers["/userinfo"] = {"sub": sub, "email": "root@example.org"}
    assert (await provider.complete("DEVICE"))["email_verified"] is None
    idp.answers["/userinfo"] = {"sub": "another", "email": "ann@example.org", "email_verified": True}
    with pytest.raises(NotBelieved, match="somebody else"):
        await provider.complete("DEVICE")
    idp.answers["/userinfo"] = (401, {})
    with pytest.raises(LoginOver, match="taken this log-in back"):
        await provider.complete("DEVICE")


async def test_new_keys_are_asked_for_when_one_comes_that_is_not_known(
    idp: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    async with Provider(settings(idp), clock_s=lambda: now_s[0]) as provider:
        idp.confirm()
        await provider.complete("DEVICE")
        other = private_key("RS256", "other")
        idp.keys = [jwk(other, "RS256", kid="new")]
        idp.confirm(signed(idp.claims(), kid="new", key=other))
        now_s[0] = 5.0
        await provider.complete("DEVICE")
        assert idp.paths().count("/keys") == 2
        # The key that was replaced is none any more.
        idp.confirm()
        with pytest.raises(NotBelieved, match="none of the provider's keys"):
            await provider.complete("DEVICE")
        with pytest.raises(NotBelieved, match="none of the provider's keys"):
            await provider.complete("DEVICE")
        assert idp.paths().count("/keys") == 2, "not for each of them"
        # Nor is one believed for ever that was taken away.
        now_s[0] += provider_module.KEPT_S + 1
        idp.keys = []
        idp.confirm(signed(idp.claims(), kid="new", key=other))
        with pytest.raises(NotBelieved, match="none of the provider's keys"):
            await provider.complete("DEVICE")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"aud": "another"}, "for another client"),
        ({"iss": "https://elsewhere.example.org"}, "from another provider"),
        ({"exp": 1}, "has expired"),
        ({"sub": None}, "has no sub"),
    ],
)
async def test_a_token_that_is_not_for_us_lets_nobody_in(
    idp: StandIn, provider: Provider, changed: dict[str, Any], why: str
) -> None:
    idp.confirm(**changed)
    with pytest.raises(NotBelieved, match=why):
        await provider.complete("DEVICE")


@pytest.mark.parametrize("answer", [{}, {"id_token": None}, {"id_token": 7}, {"id_token": ""}, {"access_token": "A"}])
async def test_without_an_id_token_nobody_is_let_in(idp: StandIn, provider: Provider, answer: dict[str, Any]) -> None:
    idp.answers["/token"] = answer
    with pytest.raises(NotBelieved):
        await provider.complete("DEVICE")


@pytest.mark.parametrize(
    ("answer", "error", "why"),
    [
        ((400, {"error": "authorization_pending"}), NotYet, "not confirmed yet"),
        ((428, {"error": "authorization_pending"}), NotYet, "not confirmed yet"),
        ((403, {"error": "access_denied"}), LoginOver, "refused at the provider"),
        ((400, {"error": "expired_token"}), LoginOver, "not confirmed in time"),
        ((400, {"error": "invalid_grant"}), LoginOver, "completed already"),
        (
            (401, {"error": "invalid_client", "error_description": "no\033 such"}),
            ProviderUnfit,
            "invalid_client - no\ufffd such",
        ),
        ((400, {}), ProviderUnfit, "says no more"),
        ((500, {}), ProviderAway, "answers 500"),
        ((429, {}), ProviderAway, "answers 429"),
        ((302, {}), ProviderUnfit, "says no more"),
    ],
)
async def test_each_refusal_is_told_apart(
    idp: StandIn, provider: Provider, answer: Any, error: type[Exception], why: str
) -> None:
    idp.answers["/token"] = answer
    with pytest.raises(error, match=why):
        await provider.complete("DEVICE")


async def test_a_provider_that_wants_to_be_asked_less_often_is(idp: StandIn, provider: Provider) -> None:
    idp.answers["/token"] = (400, {"error": "slow_down"})
    with pytest.raises(NotYet) as caught:
        await provider.complete("DEVICE")
    assert caught.value.slower


@pytest.mark.parametrize(
    "changed",
    [
        {"device_code": None},
        {"device_code": ""},
        {"device_code": "x" * 5000},
        {"device_code": 7},
        {"user_code": None},
        {"user_code": "\033[2J"},
        {"user_code": "é"},
        {"user_code": "A" * 100},
        {"verification_uri": None},
        {"verification_uri": "javascript:alert(1)"},
        {"verification_uri": "http://example.org/"},
        {"verification_uri": "https://a b/"},
        {"verification_uri": "https://user:pass@example.org/"},
        {"verification_uri": 7},
        {"verification_uri_complete": "file:///etc/passwd"},
        {"verification_uri": "https://[::1"},
        {"expires_in": None},
        {"expires_in": 0},
        {"expires_in": -1},
        {"expires_in": "soon"},
        {"expires_in": []},
    ],
)
async def test_a_beginning_that_cannot_be_used_is_not_passed_on(
    idp: StandIn, provider: Provider, changed: dict[str, Any]
) -> None:
    idp.answers["/device"] = {**BEGUN, "verification_uri": f"{idp.url}/code", **changed}
    with pytest.raises(ProviderUnfit, match="an answer that cannot be used"):
        await provider.begin()


async def test_lifetime_and_pause_are_bounded_whatever_it_says(idp: StandIn, provider: Provider) -> None:
    idp.answers["/device"] = {**BEGUN, "verification_uri": f"{idp.url}/c", "expires_in": 10**9, "interval": 10**9}
    begun = await provider.begin()
    assert (begun.lifetime_s, begun.interval_s) == (1800, 60)
    idp.answers["/device"] = {**BEGUN, "verification_uri": f"{idp.url}/c", "interval": 0}
    assert (await provider.begin()).interval_s == 1


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"issuer": "https://elsewhere.example.org"}, "calls itself 'https://elsewhere.example.org'"),
        ({"issuer": None}, "calls itself"),
        ({"device_authorization_endpoint": None}, "does not offer to log in with the device flow"),
        ({"token_endpoint": None}, "addresses that cannot be used"),
        ({"token_endpoint": "http://example.org/token"}, "addresses that cannot be used"),
        ({"jwks_uri": "file:///etc/passwd"}, "addresses that cannot be used"),
        ({"jwks_uri": 7}, "addresses that cannot be used"),
    ],
)
async def test_a_provider_that_is_not_what_it_should_be_is_refused(
    idp: StandIn, provider: Provider, changed: dict[str, Any], why: str
) -> None:
    idp.answers[DISCOVERY] = {**idp.about, **changed}
    with pytest.raises(ProviderUnfit, match=why):
        await provider.begin()
    assert "/device" not in idp.paths()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", ProviderUnfit),
        (b"<html>", ProviderUnfit),
        (b"[]", ProviderUnfit),
        (b"\xff", ProviderUnfit),
        (b"[" * 100_000, ProviderUnfit),
        (b" " * (MAX_ANSWER_BYTES + 1), ProviderUnfit),
        (drips(b" " * 65536, 0), ProviderUnfit),
        (drips(b" ", 0.05), ProviderAway),
        (never, ProviderAway),
    ],
    ids=["nothing", "HTML", "a list", "no text", "deep", "long", "endless and fast", "endless and slow", "silence"],
)
async def test_every_place_may_answer_anything_and_it_ends(idp: StandIn, answer: Any, error: type[Exception]) -> None:
    for path in (DISCOVERY, "/device", "/token", "/keys", "/userinfo"):
        provider = Provider(settings(idp))
        provider._wire = Wire(limit_s=0.3 if error is ProviderAway else 10.0)
        async with provider:
            idp.answers.clear()
            idp.confirm(email=None)
            idp.answers[path] = answer
            with pytest.raises(error):
                await (provider.begin() if path in (DISCOVERY, "/device") else provider.complete("DEVICE"))


async def test_no_redirection_is_followed(idp: StandIn, provider: Provider) -> None:
    async def elsewhere(request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": f"{idp.url}/userinfo"})

    idp.answers[DISCOVERY] = elsewhere
    with pytest.raises(ProviderUnfit, match="answers 302"):
        await provider.begin()
    assert idp.paths() == [DISCOVERY]


async def test_a_provider_that_is_not_there_is_away(idp: StandIn) -> None:
    async with Provider(OidcSettings("http://127.0.0.1:1", "pwm")) as provider:
        with pytest.raises(ProviderAway, match="does not answer"):
            await provider.begin()


async def test_what_is_known_of_a_provider_helps_while_it_is_slow_to_say_it_again(idp: StandIn) -> None:
    now_s = [0.0]
    async with Provider(settings(idp), clock_s=lambda: now_s[0]) as provider:
        await provider.begin()
        now_s[0] = provider_module.KEPT_S + 1
        idp.answers[DISCOVERY] = (503, {})
        assert (await provider.begin()).device_code == "DEVICE"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"issuer": "idp.example.org"}, "is no issuer"),
        ({"issuer": "http://idp.example.org"}, "is no issuer"),
        ({"issuer": "https://idp.example.org/?a=b"}, "is no issuer"),
        ({"issuer": "https://idp.example.org/#a"}, "is no issuer"),
        ({"issuer": "https://"}, "is no issuer"),
        ({"client_id": ""}, "--oidc-client-id"),
        ({"claim": ""}, "--oidc-claim"),
        ({"token_life_ms": 0}, "live for 1 second"),
    ],
)
def test_settings_that_cannot_work_are_refused(changed: dict[str, Any], why: str) -> None:
    right = {"issuer": "https://idp.example.org/realms/lab", "client_id": "pwm", "client_secret": "hidden"}
    assert "hidden" not in repr(OidcSettings(**right))  # type: ignore[arg-type]
    with pytest.raises(BadSettings, match=why):
        OidcSettings(**{**right, **changed})


@pytest.mark.parametrize(
    ("scopes", "claim", "asked"),
    [
        ((), "email", "openid email"),
        ((), "nickname", "openid profile"),
        (("email", "groups"), "email", "openid email groups"),
        (("openid",), "sub", "openid"),
    ],
)
def test_what_is_asked_for_is_what_the_claim_needs(scopes: tuple[str, ...], claim: str, asked: str) -> None:
    assert OidcSettings("https://idp.example.org", "pwm", scopes=scopes, claim=claim).scope == asked


async def test_authorities_that_are_none_are_a_mistake_of_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    for content in (None, "nothing"):
        if content is not None:
            file.write_text(content)
        with pytest.raises(BadSettings, match="authorities cannot be read"):
            async with Wire(ca=file):
                pass
