"""Tokens of users: made, listed, used, ended, and never to be found anywhere."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.identity_pb2 import RoleSpec, TokenSpec, UserSpec, Verbs
from pwm.api.v1.services_pb2 import TokenEntry
from pwm.controlplane import auth, commands
from pwm.controlplane.auth import Authenticator, Authorizer, Principal, token_uid
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import Commands, timestamp
from pwm.controlplane.context import CallContext
from pwm.controlplane.controllers.tokens import forget
from pwm.controlplane.core.decide import Change, change
from pwm.controlplane.core.tokens import DEFAULT_LIFETIME_MS, KEPT_AFTER_END_MS, MAX_LIVE_TOKENS
from pwm.controlplane.errors import ApiError
from pwm.controlplane.services.resources import ResourceService
from pwm.controlplane.services.tokens import TokenService
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.token_uses import WRITE_EVERY_MS, TokenUses
from tests.unit.controlplane.conftest import ACTOR, Plane

HOUR = Duration(seconds=3600)
KEYS = Keys(b"/test/")
DAY_MS = 86_400_000


class Tomorrow(Clock):
    """A clock that is put forward."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


class People:
    """ann, who may do nothing for others, and root, who may make tokens for everybody."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.clock = Tomorrow()
        self.uses = TokenUses(plane.kv, keys=KEYS, clock=self.clock)
        self.authenticator = Authenticator(view=plane.view, clock=self.clock, note_use=self.uses.note)
        self.service = TokenService(
            view=plane.view,
            commands=Commands(store=plane.store, view=plane.view, clock=self.clock),
            authorizer=Authorizer(plane.view),
            clock=self.clock,
            uses=self.uses,
            stale_since_ms=lambda: 0,
        )

    async def apply_user(self, name: str, *, active: bool = True, role: str = "") -> None:
        spec = UserSpec(active=active)
        spec.groups.add(name="admin" if role else "vision", role=role)
        payload = ev.UserApplied(spec=spec)
        state = self.plane.view.by_name("User", name)
        new = change(state, payload) if state else Change("User", Clock().new_id(), name, "", None, (payload,))
        await self.plane.commands.run(lambda: [new], actor=ACTOR)

    def context(self, name: str, key: str = "") -> CallContext:
        return CallContext(principal=Principal(user=self.plane.view.by_name("User", name)), idempotency_key=key)

    async def create(self, by: str = "ann", *, key: str = "", **request: Any) -> api.CreateTokenResponse:
        return await self.service.CreateToken(api.CreateTokenRequest(**request), self.context(by, key))

    async def revoke(self, *names: str, by: str = "ann", key: str = "", user: str = "") -> api.RevokeTokensResponse:
        return await self.service.RevokeTokens(api.RevokeTokensRequest(names=names, user=user), self.context(by, key))

    async def list(self, by: str = "ann", **request: Any) -> "list[TokenEntry]":
        return list((await self.service.ListTokens(api.ListTokensRequest(**request), self.context(by))).tokens)

    async def who(self, secret: str, address: str = "10.0.0.1") -> str:
        return (await self.principal(secret, address)).name

    async def principal(self, secret: str, address: str = "10.0.0.1") -> Principal:
        recognized = self.recognize(secret, address)
        try:
            looked_at = await self.authenticator.user(secret, address)
        except ApiError:
            assert recognized is None, "who is not let in is not recognized either"
            raise
        assert recognized in (None, looked_at)
        assert self.recognize(secret, address) is looked_at
        return looked_at

    def recognize(self, secret: str, address: str = "10.0.0.1") -> Principal | None:
        return self.authenticator.recognize(f"Bearer {secret}", address)

    async def delete_user(self, name: str) -> api.DeleteResponse:
        unused: Any = None
        service = ResourceService(
            view=self.plane.view, queries=unused, commands=self.plane.commands, applier=unused,
            authorizer=Authorizer(self.plane.view), clock=self.clock, stale_since_ms=lambda: 0,
            store_revision=self.plane.store.revision, observe_contact=lambda observer: None, newest_events=unused,
        )  # fmt: skip
        return await service.Delete(api.DeleteRequest(kind="User", name=name), self.context("root"))


@pytest.fixture
async def people(plane: Plane) -> People:
    made = People(plane)
    role = RoleSpec(permission={"User": Verbs(verbs=["token", "delete"])})
    new = Change("Role", "r", "admin", "", None, (ev.RoleApplied(spec=role),))
    await plane.commands.run(lambda: [new], actor=ACTOR)
    await made.apply_user("ann")
    await made.apply_user("root", role="admin")
    return made


def refusal(error: "pytest.ExceptionInfo[ApiError]") -> tuple[grpc.StatusCode, str]:
    assert error.value.problems, "every refusal says what to do next"
    assert error.value.problems[0].next_step
    return error.value.code, error.value.message


async def everything_stored(plane: Plane) -> bytes:
    return b"\n".join([kv.key + b"=" + kv.value async for page in plane.kv.pages(b"/") for kv in page.kvs])


# ---- making


async def test_a_token_is_shown_once_and_only_its_hash_is_kept(people: People) -> None:
    made = await people.create(name="laptop", description="on my desk", key="k1")
    assert made.token.startswith("pwm_")
    assert len(made.token) == 47, "256 bits"
    assert await people.who(made.token) == "ann"
    await people.uses.write_down()
    stored = await everything_stored(people.plane)
    assert token_uid(made.token).encode() in stored
    for secret in (made.token, made.token.removeprefix("pwm_")):
        assert secret.encode() not in stored
        assert secret not in str(await people.list()) + str(made.entry)
    assert not any(made.token in str(event) for event in people.plane.view.recent_events)


async def test_a_token_lives_for_90_days_unless_told_otherwise(people: People) -> None:
    made = [
        await people.create(),
        await people.create(lifetime=HOUR),
        await people.create(never_expires=True),
    ]
    lives_ms = [one.entry.expires_at.ToMilliseconds() - one.entry.created_at.ToMilliseconds() for one in made[:2]]
    assert lives_ms == [pytest.approx(DEFAULT_LIFETIME_MS, abs=1000), pytest.approx(3_600_000, abs=1000)]
    assert not made[2].entry.HasField("expires_at")
    people.clock.ahead_ms = 3_600_000
    assert [entry.state for entry in await people.list()] == [TokenEntry.LIVE, TokenEntry.EXPIRED, TokenEntry.LIVE]
    people.clock.ahead_ms = 100 * DEFAULT_LIFETIME_MS
    assert [entry.state for entry in await people.list()] == [TokenEntry.EXPIRED, TokenEntry.EXPIRED, TokenEntry.LIVE]


async def test_names_are_made_up_in_a_row(people: People) -> None:
    await people.create(name="ci")
    assert [(await people.create()).entry.name for _ in range(2)] == ["token-1", "token-2"]
    await people.revoke("token-2")
    assert (await people.create()).entry.name == "token-3", "a name that was in use is not confused with a new one"


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        ({"name": "a b"}, grpc.StatusCode.INVALID_ARGUMENT, "no name for a token"),
        ({"name": "x" * 64}, grpc.StatusCode.INVALID_ARGUMENT, "no name for a token"),
        ({"lifetime": Duration(seconds=0)}, grpc.StatusCode.INVALID_ARGUMENT, "1 second to 3650 days"),
        ({"lifetime": Duration(seconds=-5)}, grpc.StatusCode.INVALID_ARGUMENT, "1 second to 3650 days"),
        ({"lifetime": Duration(seconds=3651 * 86400)}, grpc.StatusCode.INVALID_ARGUMENT, "1 second to 3650 days"),
        ({"lifetime": HOUR, "never_expires": True}, grpc.StatusCode.INVALID_ARGUMENT, "expires or it does not"),
        ({"user": "root"}, grpc.StatusCode.PERMISSION_DENIED, "ann may not token User"),
        ({"user": "nobody"}, grpc.StatusCode.PERMISSION_DENIED, "ann may not token User"),
    ],
)
async def test_what_cannot_be_made_is_refused(
    people: People, request_: dict[str, Any], code: grpc.StatusCode, words: str
) -> None:
    with pytest.raises(ApiError) as error:
        await people.create(**request_)
    found, message = refusal(error)
    assert found is code
    assert words in message
    assert await people.list() == []


async def test_live_tokens_of_a_user_have_different_names(people: People) -> None:
    first = await people.create(name="ci", lifetime=HOUR)
    with pytest.raises(ApiError) as error:
        await people.create(name="ci")
    assert refusal(error) == (grpc.StatusCode.ALREADY_EXISTS, "ann has a token ci already")
    await people.create("root", name="ci")
    people.clock.ahead_ms = 7_200_000
    second = await people.create(name="ci")
    await people.revoke("ci")
    third = await people.create(name="ci", never_expires=True)
    assert [entry.id for entry in await people.list()] == [made.entry.id for made in (first, second, third)]
    states = [entry.state for entry in await people.list()]
    assert states == [TokenEntry.EXPIRED, TokenEntry.REVOKED, TokenEntry.LIVE]


async def test_of_two_who_want_a_name_at_the_same_moment_one_gets_it(people: People) -> None:
    outcomes = await asyncio.gather(*(people.create(name="ci") for _ in range(8)), return_exceptions=True)
    refused = [outcome.code for outcome in outcomes if isinstance(outcome, ApiError)]
    assert refused == [grpc.StatusCode.ALREADY_EXISTS] * 7
    assert len(await people.list()) == 1


async def test_a_user_can_have_only_so_many(people: People) -> None:
    for _ in range(MAX_LIVE_TOKENS):
        await people.create(lifetime=HOUR)
    with pytest.raises(ApiError) as error:
        await people.create()
    assert refusal(error)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    people.clock.ahead_ms = 7_200_000
    await people.create()


async def test_a_repeated_request_gets_a_token_that_works_and_leaves_one(people: People) -> None:
    lost = await people.create(name="ci", lifetime=HOUR, key="k1")
    again = await people.create(name="ci", lifetime=HOUR, key="k1")
    assert again.token != lost.token
    assert (again.entry.name, again.entry.expires_at) == ("ci", lost.entry.expires_at)
    assert await people.who(again.token) == "ann"
    with pytest.raises(ApiError, match="revoked"):
        await people.who(lost.token)
    with pytest.raises(ApiError, match="shown only once"):
        await people.create(name="ci", lifetime=HOUR, key="k1")
    assert await people.who(again.token) == "ann", "which may be in use, and is left alone"


async def test_a_replica_that_lags_behind_says_so_and_the_request_can_be_repeated(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = people.plane.view
    apply, advance, held = view.apply, view.advance, list[Callable[[], None]]()
    with monkeypatch.context() as patched:
        patched.setattr(view, "apply", lambda event, revision: held.append(lambda: apply(event, revision)))
        patched.setattr(view, "advance", lambda revision: held.append(lambda: advance(revision)))
        patched.setattr(commands, "READ_BACK_TIMEOUT_S", 0.05)
        with pytest.raises(ApiError) as error:
            await people.create(name="ci", key="k1")
        assert refusal(error)[0] is grpc.StatusCode.UNAVAILABLE
    for late in held:
        late()
    again = await people.create(name="ci", key="k1")
    assert await people.who(again.token) == "ann"
    assert [entry.state for entry in await people.list()] == [TokenEntry.REVOKED, TokenEntry.LIVE]


async def test_who_may_no_longer_make_tokens_for_others_gets_none_by_repeating(people: People) -> None:
    await people.create("root", user="ann", key="k1")
    await people.apply_user("root")
    for user in ("ann", "root"):
        with pytest.raises(ApiError) as error:
            await people.create("root", user=user, key="k1")
        assert refusal(error)[0] is grpc.StatusCode.PERMISSION_DENIED


# ---- for others


async def test_who_holds_the_verb_makes_lists_and_ends_tokens_of_others(people: People) -> None:
    made = await people.create("root", user="ann", name="ci")
    assert await people.who(made.token) == "ann"
    (entry,) = await people.list("ann")
    assert (entry.name, entry.created_by.name) == ("ci", "root")
    await people.create("root", name="own")
    assert [(e.user, e.name) for e in await people.list("root", all_users=True)] == [("ann", "ci"), ("root", "own")]
    assert [e.name for e in await people.list("root")] == ["own"]
    assert [e.name for e in await people.list("root", user="ann")] == ["ci"]
    await people.revoke("ci", by="root", user="ann")
    with pytest.raises(ApiError, match="the token ci of ann has been revoked"):
        await people.who(made.token)


async def test_others_see_and_end_nothing(people: People) -> None:
    made = await people.create("root", name="ci")
    refused: list[Any] = [
        lambda: people.list(user="root"),
        lambda: people.list(all_users=True),
        lambda: people.revoke("ci", user="root"),
        lambda: people.list(user="nobody"),
    ]
    for attempt in refused:
        with pytest.raises(ApiError) as error:
            await attempt()
        assert refusal(error)[0] is grpc.StatusCode.PERMISSION_DENIED
    for name in ("ci", made.entry.id):
        with pytest.raises(ApiError) as error:
            await people.revoke(name)
        assert refusal(error)[0] is grpc.StatusCode.NOT_FOUND
    assert await people.who(made.token) == "root"


async def test_a_user_that_is_not_there_is_said_to_who_may_ask(people: People) -> None:
    attempts: list[Any] = [lambda: people.create("root", user="nobody"), lambda: people.list("root", user="nobody")]
    for attempt in attempts:
        with pytest.raises(ApiError) as error:
            await attempt()
        assert refusal(error)[0] is grpc.StatusCode.NOT_FOUND


# ---- ending


async def test_tokens_are_revoked_by_name_or_by_the_beginning_of_their_id_all_or_none(people: People) -> None:
    made = [await people.create(name=name) for name in ("a", "b", "c")]
    with pytest.raises(ApiError) as error:
        await people.revoke("a", "absent")
    assert refusal(error)[0] is grpc.StatusCode.NOT_FOUND
    answer = await people.revoke("a", made[1].entry.id[:8], "a")
    assert [(entry.name, entry.state) for entry in answer.tokens] == [
        ("a", TokenEntry.REVOKED),
        ("b", TokenEntry.REVOKED),
    ]
    assert await people.who(made[2].token) == "ann"
    for secret in (made[0].token, made[1].token):
        with pytest.raises(ApiError, match="has been revoked"):
            await people.who(secret)
    with pytest.raises(ApiError, match="been revoked already"):
        await people.revoke("a")


async def test_a_repeated_revocation_is_answered_like_the_first(people: People) -> None:
    await people.create(name="ci")
    first = await people.revoke("ci", key="k1")
    assert await people.revoke("ci", key="k1") == first


async def test_whoever_shows_a_token_that_ended_is_told_how(people: People) -> None:
    made = await people.create(name="ci", lifetime=HOUR)
    people.clock.ahead_ms = 3_600_001
    with pytest.raises(ApiError, match="the token ci of ann has expired at 20") as error:
        await people.who(made.token)
    assert refusal(error)[0] is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(ApiError, match="this token is not valid"):
        await people.who("pwm_" + "x" * 43)


@pytest.mark.parametrize(
    ("lifetime", "quiet_ms", "told_ms"),
    [({}, 82 * DAY_MS, 84 * DAY_MS), ({"lifetime": Duration(seconds=36_000)}, 32_000_000, 32_500_000)],
)
async def test_whoever_uses_a_token_in_its_last_week_or_its_last_tenth_is_told(
    people: People, lifetime: dict[str, Any], quiet_ms: int, told_ms: int
) -> None:
    made = await people.create(**lifetime)
    for ahead_ms, told in ((0, ""), (quiet_ms, ""), (told_ms, made.entry.expires_at.ToJsonString())):
        people.clock.ahead_ms = ahead_ms
        assert (await people.principal(made.token)).ending == told
    forever = await people.create(never_expires=True)
    people.clock.ahead_ms = 4_000 * DAY_MS
    assert (await people.principal(forever.token)).ending == ""


async def _revoked(people: People) -> None:
    await people.revoke("ci")


async def _deactivated(people: People) -> None:
    await people.apply_user("ann", active=False)


async def _deleted(people: People) -> None:
    await people.delete_user("ann")


async def _expired(people: People) -> None:
    people.clock.ahead_ms = 3_600_001


@pytest.mark.parametrize("put_out", [_revoked, _deactivated, _deleted, _expired])
async def test_nobody_is_recognized_by_what_has_ended(
    people: People, put_out: Callable[[People], Awaitable[None]]
) -> None:
    made = await people.create(name="ci", lifetime=HOUR)
    assert people.recognize(made.token) is None, "nobody has looked at it yet"
    await people.who(made.token)
    assert people.recognize(made.token) is not None
    await put_out(people)
    assert people.recognize(made.token) is None
    with pytest.raises(ApiError):
        await people.who(made.token)


async def test_nobody_is_recognized_longer_than_he_is_known_or_where_it_has_not_been_noted(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "NOTED_EVERY_MS", 10 * DAY_MS)
    made = await people.create(name="ci", lifetime=HOUR)
    await people.who(made.token, "10.0.0.1")
    assert people.recognize(made.token, "10.0.0.2") is None
    assert people.recognize(made.token, "10.0.0.1") is not None
    people.clock.ahead_ms = 3_600_001
    assert people.recognize(made.token, "10.0.0.1") is None


async def test_nobody_is_recognized_by_a_log_that_is_not_believed_any_more(people: People) -> None:
    made = await people.create()
    await people.who(made.token)
    assert people.recognize(made.token) is not None
    people.plane.view.distrust()
    assert people.recognize(made.token) is None


async def test_a_deactivated_user_is_out_and_gets_no_tokens(people: People) -> None:
    made = await people.create()
    await people.apply_user("ann", active=False)
    with pytest.raises(ApiError, match="user ann is deactivated") as error:
        await people.who(made.token)
    assert refusal(error)[0] is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(ApiError, match="user ann is deactivated") as error:
        await people.create("root", user="ann")
    assert refusal(error)[0] is grpc.StatusCode.PERMISSION_DENIED
    await people.apply_user("ann")
    assert await people.who(made.token) == "ann"


async def test_tokens_go_with_their_user_and_do_not_speak_for_the_next_one_of_that_name(people: People) -> None:
    made = [await people.create() for _ in range(3)]
    await people.revoke("token-2")
    answer = await people.delete_user("ann")
    assert sorted(answer.cascade) == ["Token token-1", "Token token-2", "Token token-3"]
    assert list(people.plane.view.all("Token")) == []
    await people.apply_user("ann")
    for one in made:
        with pytest.raises(ApiError, match="not valid"):
            await people.who(one.token)
    assert (await people.create()).entry.name == "token-1"


async def test_a_user_with_as_many_tokens_as_one_can_have_is_deleted_in_one_piece(people: People) -> None:
    for _ in range(MAX_LIVE_TOKENS):
        await people.create()
    await people.revoke(*(f"token-{number}" for number in range(1, MAX_LIVE_TOKENS + 1)))
    made = [await people.create() for _ in range(MAX_LIVE_TOKENS)]
    await people.delete_user("ann")
    left = list(people.plane.view.all("Token"))
    assert left, "more than a commit holds"
    assert all(token.spec.revoked for token in left), "those that live go first"
    await people.apply_user("ann")
    assert await people.list() == [], "the next one of that name does not see them"
    for one in made:
        with pytest.raises(ApiError, match="not valid"):
            await people.who(one.token)
    nobody = Guard(KEYS.leader("cluster"), create_revision=0)
    plane = people.plane
    await forget(view=plane.view, commands=plane.commands, clock=people.clock, uses=people.uses, fence=nobody)
    assert list(plane.view.all("Token")) == [], "the others are forgotten"


async def test_a_token_that_was_made_while_its_user_was_deleted_is_worth_nothing(people: People) -> None:
    """Another replica decides on what it knows: the token may come after the deletion that did not see it."""
    former = people.plane.view.by_name("User", "ann")
    assert former is not None
    await people.delete_user("ann")
    spec = TokenSpec(user="ann", user_uid=former.metadata.uid)
    late = Change("Token", token_uid("pwm_late"), "late", "", None, (ev.TokenIssued(spec=spec),))
    await people.plane.commands.run(lambda: [late], actor=ACTOR)
    await people.apply_user("ann")
    with pytest.raises(ApiError, match="there is no user ann any more"):
        await people.who("pwm_late")
    assert (await people.create(name="late")).entry.name == "late", "nor does it keep its name from the next one"


async def test_tokens_from_before_they_knew_their_users_id_work_on(people: People) -> None:
    old = Change("Token", token_uid("pwm_old"), token_uid("pwm_old"), "", None, (ev.TokenIssued(spec=TokenSpec(user="ann")),))  # fmt: skip # noqa: E501
    await people.plane.commands.run(lambda: [old], actor=ACTOR)
    assert await people.who("pwm_old") == "ann"
    (entry,) = await people.list()
    assert (entry.name, entry.id) == (token_uid("pwm_old")[:12],) * 2
    await people.revoke(entry.id)
    with pytest.raises(ApiError, match="revoked"):
        await people.who("pwm_old")


async def test_nobody_is_sent_away_while_the_log_is_read_anew(people: People) -> None:
    made = await people.create()
    view = people.plane.view
    states = {kind: list(view.all(kind)) for kind in ("User", "Role", "Token")}
    revision = view.revision
    view.clear()
    asking = asyncio.create_task(people.who(made.token))
    await asyncio.sleep(0)
    for kind, found in states.items():
        for state in found:
            view.load(kind, state.metadata.uid, state=state.SerializeToString(), revision=revision)
    assert not asking.done()
    view.loaded(revision)
    assert await asking == "ann"


# ---- last use


async def test_a_row_says_when_and_from_where_it_was_used_last(people: People) -> None:
    made = await people.create()
    (entry,) = await people.list()
    assert not entry.HasField("last_used_at")
    await people.who(made.token, "10.0.0.7")
    (entry,) = await people.list()
    assert entry.last_used_from == "10.0.0.7"
    assert entry.last_used_at.ToMilliseconds() == pytest.approx(Clock().now_ms(), abs=5_000)


async def test_uses_are_written_down_once_an_hour_and_other_replicas_know_them(people: People) -> None:
    made = await people.create()
    other = TokenUses(people.plane.kv, keys=KEYS, clock=people.clock)
    token = people.plane.view.get("Token", token_uid(made.token))
    assert token is not None

    async def elsewhere() -> "Iterable[str]":
        return [use.address for use in (await other.of([token])).values()]

    await people.who(made.token, "first")
    await people.uses.write_down()
    assert await elsewhere() == ["first"]
    revision = (await people.plane.kv.range(b"/x")).revision
    people.clock.ahead_ms = WRITE_EVERY_MS // 2
    await people.who(made.token, "second")
    await people.uses.write_down()
    assert (await people.plane.kv.range(b"/x")).revision == revision, "no write for each use"
    assert [use.address for use in (await people.uses.of([token])).values()] == ["second"]
    people.clock.ahead_ms = WRITE_EVERY_MS + 1000
    await people.uses.write_down()
    assert await elsewhere() == ["second"]
    revision = (await people.plane.kv.range(b"/x")).revision
    people.clock.ahead_ms = 3 * WRITE_EVERY_MS
    await people.uses.write_down()
    assert (await people.plane.kv.range(b"/x")).revision == revision, "nor for none"


async def test_a_refused_token_was_not_used(people: People) -> None:
    made = await people.create(name="ci")
    await people.revoke("ci")
    with pytest.raises(ApiError):
        await people.who(made.token)
    (entry,) = await people.list()
    assert not entry.HasField("last_used_at")


async def test_tokens_are_forgotten_a_month_after_their_end(people: People) -> None:
    gone = await people.create(name="gone", lifetime=HOUR)
    kept = await people.create(name="kept", never_expires=True)
    for made in (gone, kept):
        await people.who(made.token)
    await people.uses.write_down()
    nobody = Guard(KEYS.leader("cluster"), create_revision=0)

    async def sweep() -> "list[str]":
        plane = people.plane
        await forget(view=plane.view, commands=plane.commands, clock=people.clock, uses=people.uses, fence=nobody)
        return [entry.name for entry in await people.list()]

    people.clock.ahead_ms = KEPT_AFTER_END_MS
    assert await sweep() == ["gone", "kept"]
    people.clock.ahead_ms = KEPT_AFTER_END_MS + 3_700_000
    assert await sweep() == ["kept"]
    used = [kv.key async for page in people.plane.kv.pages(KEYS.token_uses("")) for kv in page.kvs]
    assert used == [KEYS.token_use("ann", token_uid(kept.token))]


async def test_an_expiry_is_told_to_the_second(people: People) -> None:
    spec = TokenSpec(user="ann", expires_at=timestamp(1_700_000_000_000))
    old = Change("Token", token_uid("pwm_old"), "old", "", None, (ev.TokenIssued(spec=spec),))
    await people.plane.commands.run(lambda: [old], actor=ACTOR)
    with pytest.raises(ApiError, match="expired at 2023-11-14T22:13:20Z"):
        await people.who("pwm_old")
