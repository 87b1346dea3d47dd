"""Who somebody is that a provider knows, and the tokens of log-ins, decided."""

from typing import Any

import pytest

from pwm.api.v1.events_pb2 import TokenIssued, TokenRevoked
from pwm.api.v1.identity_pb2 import Token, TokenSpec, User
from pwm.controlplane.core import logins
from pwm.controlplane.core.decide import Change, Refusal
from pwm.controlplane.core.fields import NAME
from pwm.controlplane.core.tokens import MAX_LIVE_TOKENS, TooManyTokens

NOW_MS = 1_700_000_000_000


def user(name: str, email: str = "", *, active: bool | None = None) -> User:
    made = User()
    made.metadata.name, made.metadata.uid = name, f"uid-{name}"
    made.spec.contact.email = email
    if active is not None:
        made.spec.active = active
    return made


USERS = [
    user("ann", "ann@example.org"),
    user("bob", "Bob@Example.org", active=True),
    user("gone", "gone@example.org", active=False),
    user("admin"),
    user("twin", "twins@example.org"),
    user("twin2", "twins@example.org"),
    user("kate", "kate@example.org"),
    user("müller", "müller@example.org"),
]


def who(claim: str = "email", **claims: Any) -> str:
    return logins.whose(claims, claim=claim, users=USERS).metadata.name


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("ann@example.org", "ann"),
        ("ANN@example.org", "ann"),
        ("bob@example.org", "bob"),
        ("müller@example.org", "müller"),
    ],
)
def test_a_verified_address_is_that_of_the_user_it_is_written_at(said: str, name: str) -> None:
    assert who(email=said, email_verified=True) == name


@pytest.mark.parametrize("verified", [None, False, "true", "True", 1, "yes", [True], {}])
def test_an_address_that_is_not_verified_is_nobodys(verified: object) -> None:
    with pytest.raises(logins.NotKnown, match=r"has not verified that ann@example\.org is"):
        who(email="ann@example.org", email_verified=verified)
    with pytest.raises(logins.NotKnown, match="has not verified"):
        who(email="ann@example.org")


@pytest.mark.parametrize(
    "said",
    [
        "ann@example.org.evil.org",
        "an@example.org",
        "ann@example.or",
        "aNN@example.org\0",
        "MÜLLER@example.org",
        "@",
        " ",
        "ann@example.org,eve@evil.org",
        "\u212aate@example.org",  # a sign whose lower case is the letter k
    ],
)
def test_an_address_that_only_looks_like_it_is_another_one(said: str) -> None:
    with pytest.raises(logins.NotKnown, match="no user here has the e-mail address"):
        who(email=said, email_verified=True)


@pytest.mark.parametrize("said", [None, "", 7, True, [], ["ann@example.org"], {"a": 1}])
def test_who_is_not_said_is_nobody(said: object) -> None:
    for claim in ("email", "preferred_username"):
        with pytest.raises(logins.NotKnown, match=f"does not say the {claim}"):
            logins.whose({claim: said, "email_verified": True}, claim=claim, users=USERS)


def test_nobody_without_an_address_is_found_by_one() -> None:
    with pytest.raises(logins.NotKnown):
        who(email="", email_verified=True)
    with pytest.raises(logins.NotKnown):
        who(email=" ", email_verified=True)


def test_an_address_of_two_is_nobodys() -> None:
    with pytest.raises(logins.NotKnown, match="2 users here have the e-mail address twins@"):
        who(email="twins@example.org", email_verified=True)


def test_who_is_deactivated_stays_out_and_is_known() -> None:
    with pytest.raises(logins.NotKnown, match="user gone is deactivated") as caught:
        who(email="gone@example.org", email_verified=True)
    assert caught.value.user == "gone"
    assert "ask an admin" in caught.value.next_step


def test_another_claim_is_the_name_of_the_user_letter_by_letter() -> None:
    assert who("preferred_username", preferred_username="ann") == "ann"
    for said in ("Ann", "ann ", "ann@example.org", "pwm.all"):
        with pytest.raises(logins.NotKnown, match="no user here has the preferred_username") as caught:
            who("preferred_username", preferred_username=said)
        assert "ask an admin" in caught.value.next_step


def test_what_a_provider_says_does_not_steer_a_terminal_nor_fill_it() -> None:
    with pytest.raises(logins.NotKnown) as caught:
        who("name", name="\033[2J" + "x" * 1000)
    assert "\033" not in str(caught.value)
    assert len(str(caught.value)) < 200


# ---- tokens


def token(name: str, *, age_ms: int = 0, revoked: bool = False, ends_ms: int = NOW_MS + 1, whose: str = "ann") -> Token:
    made = Token(kind="Token")
    made.metadata.name, made.metadata.uid = name, f"uid-{name}-{age_ms}"
    made.metadata.created_at.FromMilliseconds(NOW_MS - age_ms)
    made.metadata.updated_at.FromMilliseconds(NOW_MS - 1)
    made.spec.user, made.spec.user_uid, made.spec.revoked = whose, f"uid-{whose}", revoked
    made.spec.expires_at.FromMilliseconds(ends_ms)
    return made


def issue(of_user: list[Token], host: str = "box") -> tuple[Change, ...]:
    return logins.issue(USERS[0], of_user, uid="u", host=host, spec=TokenSpec(), now_ms=NOW_MS)


def names(changes: tuple[Change, ...]) -> list[tuple[str, type]]:
    return [(change.name, type(change.payloads[0])) for change in changes]


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("gpu7", "oidc-gpu7"),
        ("a.b.example.org", "oidc-a.b.example.org"),
        ("", "oidc-somewhere"),
        ("...", "oidc-somewhere"),
        ("Ann's Mac (2)", "oidc-Ann-s-Mac-2"),
        ("\033]0;x\007", "oidc-0-x"),
        ("x" * 300, "oidc-" + "x" * 55),
    ],
)
def test_a_token_is_called_after_its_machine(host: str, name: str) -> None:
    assert logins.token_name(host) == name
    assert all(NAME.fullmatch(f"{name}{end}") for end in ("", "-5"))
    assert names(issue([], host)) == [(name, TokenIssued)]


def test_another_one_of_the_same_machine_gets_a_number_and_ends_nothing() -> None:
    assert names(issue([token("oidc-box")])) == [("oidc-box-2", TokenIssued)]
    assert names(issue([token("oidc-box"), token("oidc-box-2"), token("laptop")])) == [("oidc-box-3", TokenIssued)]


def test_the_name_of_one_that_has_ended_is_used_again() -> None:
    assert names(issue([token("oidc-box", revoked=True)])) == [("oidc-box", TokenIssued)]
    expired = token("oidc-box", ends_ms=NOW_MS - 1)
    assert names(issue([expired])) == [("oidc-box", TokenRevoked), ("oidc-box", TokenIssued)]


def test_the_oldest_ends_when_there_are_five_of_a_machine() -> None:
    five = [token(f"oidc-box{end}", age_ms=age) for end, age in (("", 1), ("-2", 9), ("-3", 3), ("-4", 4), ("-5", 5))]
    made = issue(five)
    assert names(made) == [("oidc-box-2", TokenRevoked), ("oidc-box-2", TokenIssued)]
    assert made[0].state is five[1]


def test_others_of_ones_own_are_never_ended_for_a_log_in() -> None:
    with pytest.raises(TooManyTokens, match="30 tokens"):
        issue([token(f"token-{number}") for number in range(MAX_LIVE_TOKENS)])


def test_who_is_deactivated_gets_none() -> None:
    with pytest.raises(Refusal, match="deactivated"):
        logins.issue(USERS[2], [], uid="u", host="box", spec=TokenSpec(), now_ms=NOW_MS)
