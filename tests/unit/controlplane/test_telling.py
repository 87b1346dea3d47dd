"""Notices are told once, over terms of leaders, and go out until they are taken; what sends them is kept in."""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1.agent_pb2 import LogData, OpenStream, RelayRequest
from pwm.api.v1.common_pb2 import Actor, Reason
from pwm.api.v1.identity_pb2 import UserSpec
from pwm.api.v1.store_pb2 import PendingNotice
from pwm.api.v1.workload_pb2 import (
    Container,
    ContainerSpec,
    ContainerStatus,
    Notify,
    Workload,
    WorkloadSpec,
    WorkloadStatus,
)
from pwm.controlplane.agentlink import AgentUnreachable
from pwm.controlplane.clock import Clock
from pwm.controlplane.controllers import notices as controller_of_notices
from pwm.controlplane.controllers.lost_notices import LostNotices
from pwm.controlplane.controllers.notices import NoticeController
from pwm.controlplane.core.decide import Change, change
from pwm.controlplane.delivery import last_words, post, webhook
from pwm.controlplane.delivery.courier import Courier, MailServer, NoticeSettings
from pwm.controlplane.delivery.guard import may_connect
from pwm.controlplane.delivery.last_words import LastWords, readable
from pwm.controlplane.delivery.outbox import Outbox
from pwm.controlplane.delivery.post import Post
from pwm.controlplane.follower import Follower
from pwm.controlplane.services import event_text
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.store.errors import FenceLost
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import Put
from pwm.controlplane.view import View
from tests.patience import PATIENCE_S
from tests.unit.controlplane.conftest import Plane

KEYS = Keys(b"/test/")
ACTOR = Actor(type=Actor.USER, name="eve")
CHAT, HERS = "tgram://token/1", "tgram://token/2"


class Postman(Courier):
    """Takes down what it is given, and fails as often as it is told to."""

    def __init__(self) -> None:
        super().__init__(NoticeSettings())
        self.taken: list[PendingNotice] = []
        self.attempts = 0
        self.fails = False

    async def deliver(self, letters: Sequence[PendingNotice]) -> list[str]:
        self.attempts += len(letters)
        if self.fails:
            return ["no"] * len(letters)
        self.taken += letters
        return [""] * len(letters)

    @property
    def kinds(self) -> list[str]:
        return sorted(letter.kind for letter in self.taken)


class Printers:
    """Agents whose containers have printed something, if they are connected."""

    def __init__(self, printed: dict[str, bytes] | None = None, *, hangs: bool = False) -> None:
        self.printed = printed or {}
        self.hangs = hangs
        self.asked: list[str] = []

    @asynccontextmanager
    async def open(self, node: str, request: OpenStream) -> AsyncIterator[Any]:
        self.asked.append(request.logs.container_uid)
        if self.hangs:
            await asyncio.Event().wait()
        if node not in self.printed:
            raise AgentUnreachable(f"the agent of node {node} is not connected")

        async def frames() -> AsyncIterator[RelayRequest]:
            for start in range(0, len(self.printed[node]), 1000):
                yield RelayRequest(log=LogData(data=self.printed[node][start : start + 1000]))

        yield frames()


async def nobody_cares(letter: PendingNotice, why: str) -> None:
    """That a letter is given up."""


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def _win(plane: Plane) -> Guard:
    """The role, taken from whoever had it."""
    await plane.kv.txn([], [Put(KEYS.leader("chores"), b"")])
    page = await plane.kv.range(KEYS.leader("chores"))
    return Guard(KEYS.leader("chores"), mod_revision=page.kvs[0].mod_revision)


@asynccontextmanager
async def leading(
    plane: Plane, postman: Postman, *, view: View | None = None, shown_as: Callable[[Workload], Workload] = lambda w: w
) -> AsyncIterator[None]:
    outbox = Outbox(plane.kv, keys=KEYS, fence=await _win(plane))
    controller = NoticeController(
        view=view or plane.view, store=plane.store, outbox=outbox, courier=postman, clock=Clock(), shown_as=shown_as,
        agents=Printers(), may_read=lambda user, group: True, given_up=nobody_cares,
    )  # fmt: skip
    running = asyncio.create_task(controller.run())
    try:
        while not (await plane.kv.range(KEYS.notices_read)).kvs and not running.done():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def add_eve(plane: Plane) -> None:
    spec = UserSpec()
    spec.contact.email = "eve@example.org"
    await plane.commands.run(
        lambda: [Change("User", "eve", "eve", "", None, (ev.UserApplied(spec=spec),))], actor=ACTOR
    )


async def start(plane: Plane, name: str, *, on: Sequence[str] = ()) -> Container:
    """A workload that wants to be told of, and its only container."""
    spec = WorkloadSpec(notify=Notify(to=[CHAT], on=on))
    applied = ev.WorkloadApplied(spec=spec, generation=1, first_attempt=1)
    placed = ev.ContainerPlaced(spec=ContainerSpec(workload_uid=name, workload=name, attempt=1, node="n1"))
    await plane.commands.run(
        lambda: [
            Change("Workload", name, name, "vision", None, (applied,)),
            Change("Container", f"{name}.0.1", f"{name}.0.1", "vision", None, (placed,)),
        ],
        actor=ACTOR,
    )
    return plane.view.get("Container", f"{name}.0.1")  # type: ignore[no-any-return]


async def report(plane: Plane, name: str, phase: Any, **more: Any) -> None:
    reported = ev.ContainerReported(phase=phase, **more)
    if phase == ContainerStatus.RUNNING:
        reported.started_at.GetCurrentTime()
    state = plane.view.get("Container", f"{name}.0.1")
    await plane.commands.run(lambda: [change(state, reported)], actor=ACTOR)


async def crash(plane: Plane, name: str) -> None:
    await report(plane, name, ContainerStatus.RUNNING)
    await report(plane, name, ContainerStatus.EXITED, exit_code=3)


async def test_a_run_that_crashes_is_told_once_though_the_leader_changes(plane: Plane) -> None:
    await add_eve(plane)
    postman = Postman()
    async with leading(plane, postman):
        await start(plane, "train")
        await crash(plane, "train")
        await until(lambda: postman.kinds == ["crashed", "running"])
    async with leading(plane, postman):
        await start(plane, "later", on=["crashed"])
        await crash(plane, "later")
        await until(lambda: len(postman.taken) >= 3)
    assert postman.kinds == ["crashed", "crashed", "running"]
    assert not [_ async for page in plane.kv.pages(KEYS.notices_out("")) for _ in page.kvs]


async def test_what_happened_while_nobody_led_is_told_by_the_next_leader(plane: Plane) -> None:
    await add_eve(plane)
    postman = Postman()
    async with leading(plane, postman):
        await start(plane, "train")
    await crash(plane, "train")
    async with leading(plane, postman):
        await until(lambda: postman.kinds == ["crashed", "running"])


async def test_a_leader_that_was_started_since_reads_it_from_the_store(plane: Plane) -> None:
    await add_eve(plane)
    postman, fresh = Postman(), View()
    async with leading(plane, postman):
        await start(plane, "train")
        await start(plane, "short")
    await crash(plane, "train")
    await crash(plane, "short")
    gone = plane.view.get("Workload", "short"), plane.view.get("Container", "short.0.1")
    await plane.commands.run(lambda: [change(state, ev.Removed()) for state in gone], actor=ACTOR)
    follower = Follower(store=plane.store, view=fresh, clock=Clock(), on_loaded=lambda: None)
    following = asyncio.create_task(follower.run())
    try:
        await fresh.wait_for(0)
        assert not list(fresh.recent)
        async with leading(plane, postman, view=fresh):
            await until(lambda: len(postman.taken) >= 3)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    told = {(letter.about_name, letter.kind) for letter in postman.taken}
    assert told >= {("train", "running"), ("train", "crashed"), ("short", "running")}


async def test_nobody_is_told_of_what_was_before_there_were_notices(plane: Plane) -> None:
    await add_eve(plane)
    await start(plane, "old")
    await crash(plane, "old")
    postman = Postman()
    async with leading(plane, postman):
        await start(plane, "new", on=["crashed"])
        await crash(plane, "new")
        await until(lambda: postman.taken)
    assert [letter.about_name for letter in postman.taken] == ["new"]


async def test_what_was_not_taken_is_left_to_the_next_leader(plane: Plane) -> None:
    await add_eve(plane)
    postman = Postman()
    postman.fails = True
    async with leading(plane, postman):
        await start(plane, "train", on=["crashed"])
        await crash(plane, "train")
        await until(lambda: postman.attempts)
    postman.fails = False
    # Its turn comes after five seconds; this leader's clock says so.
    page = await plane.kv.range(KEYS.notices_out(""), b"/test/notices/p")
    letter = PendingNotice.FromString(page.kvs[0].value)
    letter.next_attempt.FromMilliseconds(0)
    await plane.kv.txn([], [Put(page.kvs[0].key, letter.SerializeToString())])
    async with leading(plane, postman):
        await until(lambda: postman.taken)
    assert postman.kinds == ["crashed"]


async def test_who_waits_in_vain_is_told_so_once(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_of_notices, "LOOK_EVERY_S", 0.01)
    looks = 0

    def denied(workload: Workload) -> Workload:
        nonlocal looks
        looks += 1
        shown = Workload()
        shown.CopyFrom(workload)
        shown.status.phase = WorkloadStatus.DENIED
        shown.status.reason.CopyFrom(Reason(code=Reason.TOO_MANY_GPUS, message="eve has 8 GPUs of 8"))
        return shown

    await add_eve(plane)
    postman = Postman()
    async with leading(plane, postman, shown_as=denied):
        await start(plane, "train")
        await until(lambda: postman.taken and looks >= 5)
    async with leading(plane, postman, shown_as=denied):
        await until(lambda: looks >= 10)
    (letter,) = postman.taken
    assert letter.subject == "PWM: train cannot start: eve has 8 GPUs of 8"


async def test_who_leads_no_longer_writes_nothing(plane: Plane) -> None:
    outbox = Outbox(plane.kv, keys=KEYS, fence=await _win(plane))
    await _win(plane)
    with pytest.raises(FenceLost):
        await outbox.write([outbox.reached(7)])
    assert await outbox.read_upto() is None


# ---- again and again


def test_it_is_tried_again_less_and_less_often() -> None:
    assert [post.pause_ms(n) // 1000 for n in (1, 2, 3, 4, 5, 6, 7, 8, 99)] == [
        5, 15, 45, 135, 405, 1215, 3600, 3600, 3600,
    ]  # fmt: skip


async def test_it_is_given_up_after_a_day(plane: Plane) -> None:
    now = [1_000_000]
    postman = Postman()
    postman.fails = True
    outbox = Outbox(plane.kv, keys=KEYS, fence=await _win(plane))
    letter = PendingNotice(id="n", address=CHAT)
    for field in (letter.accepted, letter.next_attempt):
        field.FromMilliseconds(now[0])
    await outbox.write([outbox.put(letter)])
    lost: list[tuple[PendingNotice, str]] = []

    async def given_up(letter: PendingNotice, why: str) -> None:
        lost.append((letter, why))

    sending = Post(outbox=outbox, sender=postman, now_ms=lambda: now[0], given_up=given_up)
    sending.take([letter])
    running = asyncio.create_task(sending.run())
    try:
        for attempt in range(1, 100):
            await until(lambda attempt=attempt: postman.attempts >= attempt)  # type: ignore[misc]
            if not await outbox.pending():
                break
            now[0] += post.LONGEST_PAUSE_MS
            sending.take([])
        await until(lambda: not running.done())
        assert not await outbox.pending()
        assert 24 <= postman.attempts <= 26
        ((given, why),) = lost
        assert (given.id, why, given.attempts + 1) == ("n", "no", postman.attempts)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_whose_receivers_hang_keeps_nobody_else_waiting(plane: Plane) -> None:
    class Hanging(Postman):
        async def deliver(self, letters: Sequence[PendingNotice]) -> list[str]:
            if any(letter.user == "eve" for letter in letters):
                self.taken += [letter for letter in letters if letter.user != "eve"]
                await asyncio.Event().wait()
            return await super().deliver(letters)

    postman, outbox = Hanging(), Outbox(plane.kv, keys=KEYS, fence=await _win(plane))
    sending = Post(outbox=outbox, sender=postman, now_ms=Clock().now_ms, given_up=nobody_cares)
    hers = [PendingNotice(id=f"e{number}", address=CHAT, user="eve") for number in range(post.MOST_LETTERS_OF_A_USER)]
    sending.take(hers)
    running = asyncio.create_task(sending.run())
    try:
        assert sending.full("eve")
        assert not sending.full("ann")
        await asyncio.sleep(0)
        sending.take([PendingNotice(id=f"a{number}", address=HERS, user="ann") for number in range(12)])
        await until(lambda: len(postman.taken) == 12)
        assert {letter.user for letter in postman.taken} == {"ann"}
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert not [_ async for page in plane.kv.pages(KEYS.notices_out("")) for _ in page.kvs]


async def test_what_came_later_waits_for_what_is_on_its_way_to_the_same_address(plane: Plane) -> None:
    taking = asyncio.Event()

    class Slow(Postman):
        async def deliver(self, letters: Sequence[PendingNotice]) -> list[str]:
            if letters[0].id == "first":
                self.attempts = 1
                await taking.wait()
            return await super().deliver(letters)

    postman, outbox = Slow(), Outbox(plane.kv, keys=KEYS, fence=await _win(plane))
    sending = Post(outbox=outbox, sender=postman, now_ms=Clock().now_ms, given_up=nobody_cares)
    sending.take([PendingNotice(id="first", address=CHAT)])
    running = asyncio.create_task(sending.run())
    try:
        await until(lambda: postman.attempts)
        sending.take([PendingNotice(id="second", address=CHAT), PendingNotice(id="other", address=HERS)])
        await until(lambda: postman.taken)
        taking.set()
        await until(lambda: len(postman.taken) == 3)
        assert [letter.id for letter in postman.taken] == ["other", "first", "second"]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


# ---- what was printed last


def of_crash(**more: Any) -> PendingNotice:
    about = {"about_kind": "Workload", "about_group": "vision", "about_name": "w", "user": "eve", "id": "c"}
    of = {"address": CHAT, "node": "n1", "container_uid": "w.0.1", "text": "w crashed.\n"}
    return PendingNotice(**{**about, **of, **more})


async def told(letter: PendingNotice, agents: Printers, *, may_read: bool = True) -> str:
    postman = Postman()
    sender = LastWords(postman, agents=agents, may_read=lambda user, group: may_read)  # type: ignore[arg-type]
    assert await sender.deliver([letter]) == [""]
    (sent,) = postman.taken
    assert letter.text == "w crashed.\n", "what is kept has no output in it"
    return sent.text


async def test_a_crash_is_told_with_what_was_printed_last() -> None:
    text = await told(of_crash(), Printers({"n1": b"one\n\x1b[31mtwo\x1b[0m\r\n\n"}))
    assert text == "w crashed.\n\nIts last lines were:\n\n    one\n    two\n"


@pytest.mark.parametrize(
    ("agents", "more", "may_read"),
    [
        (Printers(), {}, True),
        (Printers({"n1": b""}), {}, True),
        (Printers({"n1": b"secret"}), {}, False),
        (Printers({"n1": b"secret"}), {"container_uid": "", "node": ""}, True),
    ],
)
async def test_a_crash_is_told_all_the_same_without(agents: Printers, more: dict[str, Any], may_read: bool) -> None:
    assert await told(of_crash(**more), agents, may_read=may_read) == "w crashed.\n"
    assert agents.asked == (["w.0.1"] if may_read and not more else [])


async def test_an_agent_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_words, "LIMIT_S", 0.05)
    assert await told(of_crash(), Printers(hangs=True)) == "w crashed.\n"


def test_no_more_of_it_is_told_than_is_read_at_a_glance() -> None:
    many = b"".join(b"line %d\n" % number for number in range(100))
    assert readable(many).splitlines() == [f"line {number}" for number in range(80, 100)]
    wide = b"".join(b"%d%s\n" % (number, b"x" * 1000) for number in range(9))
    assert [line[0] for line in readable(wide).splitlines()] == ["7", "8"]
    endless = readable("ä".encode() * 100_000)
    assert endless.startswith("…ä")
    assert len(endless.encode()) <= last_words.MOST_BYTES + 3
    assert readable(b"\x1b]0;title\x07a\x08b\xff\tc") == "ab\ufffd\tc"


# ---- what nobody has taken


async def test_a_notice_that_is_given_up_is_in_the_log_of_what_it_was_about(plane: Plane) -> None:
    await add_eve(plane)
    await start(plane, "w")
    lost = LostNotices(view=plane.view, commands=plane.commands, fence=await _win(plane))
    letter = of_crash(kind="crashed", attempts=30, address="mailto:eve@example.org")
    letter.time.GetCurrentTime()
    await lost.note(letter, "550 no such user eve@example.org")
    event = list(plane.view.recent_events)[-1]
    said = "notice to eve given up after 31 attempts (crashed, by mail): 550 no such user …"
    assert (event.kind, event.name, event_text.said(event)) == ("Workload", "w", said)
    before = of_crash(kind="crashed", address=CHAT)
    before.time.FromMilliseconds(1)
    await lost.note(before, "no")
    event = list(plane.view.recent_events)[-1]
    assert (event.kind, event.name) == ("User", "eve"), "the workload of that name is another one"
    assert event_text.said(event) == "notice to eve given up after 1 attempt (crashed, by tgram://***): no"
    await lost.note(of_crash(user="nobody", about_name="gone"), "no")
    assert list(plane.view.recent_events)[-1] is event


# ---- where it may go


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
     "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "localhost", "", "/run/docker.sock"],
)  # fmt: skip
def test_what_is_not_public_is_not_connected_to(address: str) -> None:
    assert not may_connect(address, ())


@pytest.mark.parametrize(
    ("address", "networks"),
    [("8.8.8.8", ()), ("2001:4860:4860::8888", ()), ("10.1.2.3", ("10.0.0.0/8",)), ("::ffff:10.1.2.3", ("10.1.2.3",)),
     ("::1", ("127.0.0.0/8", "::1"))],
)  # fmt: skip
def test_what_is_public_or_allowed_is(address: str, networks: tuple[str, ...]) -> None:
    assert may_connect(address, networks)


class Door:
    """A server on this machine, which remembers what came."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []

    async def __aenter__(self) -> "Door":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.splitlines() if line.lower().startswith(b"content-length")
        )
        self.requests.append(head + await reader.readexactly(length))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()


def _letters(door: Door) -> list[PendingNotice]:
    """Three ways to the same door: a webhook, a service of apprise, and a name that resolves to it."""
    addresses = (
        f"http://127.0.0.1:{door.port}/#0123456789abcdef",
        f"json://127.0.0.1:{door.port}/",
        f"json://localhost:{door.port}/",
    )
    made = []
    for number, address in enumerate(addresses):
        letter = PendingNotice(id=f"n{number}", address=address, subject="PWM: train has crashed", text="why\n")
        letter.time.GetCurrentTime()
        made.append(letter)
    return made


async def test_the_process_that_sends_reaches_no_machine_that_only_it_can_reach() -> None:
    async with Door() as door:
        errors = await Courier(NoticeSettings()).deliver(_letters(door))
        assert all(errors)
        assert "no public address" in errors[0]
        assert not door.requests


async def test_it_reaches_those_that_the_admin_allows() -> None:
    async with Door() as door:
        errors = await Courier(NoticeSettings(networks=("127.0.0.0/8", "::1"))).deliver(_letters(door))
        assert errors == ["", "", ""]
        assert len(door.requests) == 3
        assert sum(b"PWM: train has crashed" in request for request in door.requests) == 3


async def test_an_address_that_nothing_knows_is_an_error_and_stops_no_other() -> None:
    async with Door() as door:
        letters = [PendingNotice(address=address) for address in ("windows://", "nonsense://host", "tgram://")]
        errors = await Courier(NoticeSettings(networks=("127.0.0.1",))).deliver([*letters, _letters(door)[0]])
    assert all("apprise does not know" in error for error in errors[:3])
    assert not errors[3]


def test_a_signature_is_that_of_timestamp_and_body() -> None:
    body = webhook.body_of({"id": "n", "address": "https://host/#key", "text": "ü"})
    assert json.loads(body) == {"id": "n", "text": "ü"}
    expected = hmac.new(b"key", b"1700000000." + body, hashlib.sha256).hexdigest()
    assert webhook.signature("key", "1700000000", body) == f"v1={expected}"


def test_what_the_page_tells_receivers_to_do_tells_us_from_others() -> None:
    page = (Path(__file__).parents[3] / "docs" / "notifications.md").read_text()
    code: dict[str, Any] = {}
    exec(page.split("```python")[1].split("```")[0], code)
    body, now = b"{}", str(int(time.time()))
    headers = {"X-PWM-Timestamp": now, "X-PWM-Signature": webhook.signature("key", now, body)}
    is_from_pwm = code["is_from_pwm"]
    assert is_from_pwm("key", headers, body)
    assert not is_from_pwm("other", headers, body)
    assert not is_from_pwm("key", headers, b"{ }")
    old = str(int(time.time()) - 3600)
    late = {"X-PWM-Timestamp": old, "X-PWM-Signature": webhook.signature("key", old, body)}
    assert not is_from_pwm("key", late, body)


@pytest.mark.parametrize(
    ("address", "whole", "refusal"),
    [
        ("tgram://1234", "tgram://bot:token/1234", ""),
        ("tgram://-100/", "tgram://bot:token/-100", ""),
        ("tgram://mine/1234", "tgram://mine/1234", ""),
        ("mailto:eve@example.org", "mailto:eve@example.org", "no mail server is set"),
    ],
)
def test_a_chat_without_a_bot_is_the_clusters_bots(address: str, whole: str, refusal: str) -> None:
    settings = NoticeSettings(telegram_token="bot:token")
    assert settings.whole(address) == whole
    assert settings.refusal(address) == refusal
    assert bool(NoticeSettings().refusal("tgram://1234"))


def test_no_setting_shows_its_secret_when_it_is_printed() -> None:
    assert "bot:token" not in repr(NoticeSettings(telegram_token="bot:token"))
    mail = MailServer(host="h", port=25, sender="s", password="bot:token")
    assert "bot:token" not in repr(NoticeSettings(mail=mail))
