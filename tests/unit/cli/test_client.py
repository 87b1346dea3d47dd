"""Servers are tried in turn, writes are repeated safely, and what the server says becomes the right exit code."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from pwm.cli import client as client_module
from pwm.cli.client import Client, fits, quote
from pwm.cli.errors import NoServerError, ServerError
from pwm.cli.http1 import Broken, Server
from pwm.cli.profiles import Profile
from tests.unit.cli.conftest import FakeServer, Pwm, Stream


def _unused_url() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


_order = client_module._order


@contextmanager
def _frozen() -> Iterator[str]:
    """A server that takes connections and says nothing, as a stopped process does; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def _client(*urls: str, warned: list[str] | None = None) -> Client:
    return Client(Profile("lab", servers=urls, token="pwm_secret"), warn=(warned if warned is not None else []).append)


def test_a_server_that_cannot_be_reached_is_passed_over(server: FakeServer) -> None:
    server.on("GET", "/v1/whoami", {"user": "ada"})
    client = _client(_unused_url(), server.url)
    assert client.call("GET", "/v1/whoami") == {"user": "ada"}
    client.close()


def test_a_server_that_answers_503_is_passed_over(server: FakeServer, other_server: FakeServer) -> None:
    server.on("GET", "/v1/whoami", (503, {"code": 14, "message": "no quorum"}))
    other_server.on("GET", "/v1/whoami", {"user": "ada"})
    client = _client(server.url, other_server.url)
    assert client.call("GET", "/v1/whoami") == {"user": "ada"}
    assert client.call("GET", "/v1/whoami") == {"user": "ada"}
    assert len(server.requests) == 1, "the one that answered is asked first from then on"
    client.close()


def test_when_all_answer_503_the_servers_own_sentence_is_shown_and_the_code_is_6(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/whoami", (503, {"code": 14, "message": "etcd has no quorum"}))
    result = pwm("whoami")
    assert (result.code, result.err) == (6, "error: etcd has no quorum\n")


UNSURE = (503, {"code": 14, "message": "may or may not", "details": [{"@type": "pwm.v1.Problem", "code": 2}]})


def test_a_write_of_which_the_server_does_not_know_whether_it_was_saved_is_repeated_with_the_same_key(
    server: FakeServer,
) -> None:
    server.on("POST", "/v1/workloads/a/stop", UNSURE, {"changed": True, "revision": "7"})
    client = _client(server.url)
    assert client.call("POST", "/v1/workloads/a/stop", body={})["changed"]
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1
    client.close()


def test_what_may_have_been_saved_is_told_as_such_although_others_say_no(
    server: FakeServer, other_server: FakeServer
) -> None:
    server.on("POST", "/v1/workloads/a/stop", UNSURE, *[(503, {"code": 14, "message": "not saved"})] * 9)
    other_server.on("POST", "/v1/workloads/a/stop", *[(503, {"code": 14, "message": "not saved"})] * 9)
    client = _client(server.url, other_server.url)
    with pytest.raises(ServerError, match="may or may not"):
        client.call("POST", "/v1/workloads/a/stop", body={})
    client.close()


def test_no_server_at_all_names_them_and_what_to_do_with_code_6(pwm: Pwm, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = _unused_url(), _unused_url()
    monkeypatch.setenv("PWM_SERVER", f"{first},{second}")
    result = pwm("get", "wk")
    assert result.code == 6
    assert first in result.err
    assert second in result.err
    assert "nothing listens there" in result.err
    assert "pwm up" in result.err


def test_a_write_whose_answer_was_lost_is_repeated_with_the_same_key(server: FakeServer) -> None:
    server.on("POST", "/v1/workloads/a/stop", "hang up", {"changed": True, "revision": "7"})
    client = _client(server.url)
    assert client.call("POST", "/v1/workloads/a/stop", body={})["changed"] is True
    first, second = server.of("POST", "/v1/workloads/a/stop")
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    client.call("POST", "/v1/workloads/a/stop", body={})
    assert server.requests[-1].headers["idempotency-key"] != first.headers["idempotency-key"]
    client.close()


def test_a_write_that_is_never_answered_is_given_up(server: FakeServer) -> None:
    server.on("POST", "/v1/workloads/a/stop", "hang up")
    client = _client(server.url)
    with pytest.raises(NoServerError):
        client.call("POST", "/v1/workloads/a/stop", body={})
    assert 2 <= len(server.requests) <= 4


def test_a_hung_server_is_not_asked_again_and_again(server: FakeServer) -> None:
    server.on("GET", "/v1/whoami", lambda request: server.stopping.wait(10) and {})
    with pytest.raises(NoServerError, match="no answer in time"):
        _client(server.url).call("GET", "/v1/whoami", timeout_s=0.1)
    assert len(server.requests) == 1


def test_what_was_written_is_asked_to_be_seen(server: FakeServer) -> None:
    server.on("POST", "/v1/apply", {"results": [], "revision": "41"})
    server.on("GET", "/v1/resources/Workload", {"text": "", "revision": "50"})
    client = _client(server.url)
    client.call("GET", "/v1/resources/Workload")
    client.call("POST", "/v1/apply", body={"documents": []})
    client.call("GET", "/v1/resources/Workload")
    before, _, after = server.requests
    assert "minRevision" not in before.query
    assert after.query["minRevision"] == ["41"]
    client.close()


def test_one_connection_serves_many_calls_and_a_closed_one_is_made_anew(server: FakeServer) -> None:
    server.on("GET", "/v1/whoami", {"user": "ada"}, "hang up", {"user": "bob"})
    client = _client(server.url)
    assert client.call("GET", "/v1/whoami")["user"] == "ada"
    assert client.call("GET", "/v1/whoami")["user"] == "bob"
    client.close()


def test_a_token_goes_along_and_is_never_printed(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/whoami", (401, {"code": 16, "message": "this token is not known"}))
    result = pwm("whoami")
    assert server.requests[0].headers["authorization"] == "Bearer pwm_secret"
    assert result.code == 5
    assert "pwm_secret" not in result.out + result.err
    assert "PWM_TOKEN" in result.err


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (400, 3, 1), (404, 5, 3), (409, 6, 4), (409, 10, 4), (403, 7, 5), (401, 16, 5), (429, 8, 5), (503, 14, 6),
        (500, 13, 1), (400, 9, 1),
    ],
)  # fmt: skip
def test_each_refusal_has_its_exit_code(server: FakeServer, pwm: Pwm, status: int, code: int, exit_code: int) -> None:
    problem = {"@type": "pwm.v1.Problem", "message": "no", "nextStep": "try this"}
    server.on("GET", "/v1/whoami", (status, {"code": code, "message": "it cannot be", "details": [problem]}))
    result = pwm("whoami")
    assert (result.code, result.err) == (exit_code, "error: it cannot be\n  try this\n")


@pytest.mark.parametrize("content", [b"<html>hello</html>", b"", b"[1]", b"\xff"])
def test_something_else_on_that_port_is_said(server: FakeServer, pwm: Pwm, content: bytes) -> None:
    server.on("GET", "/v1/whoami", (502, content))
    assert pwm("whoami").code == 6
    server.on("GET", "/v1/whoami", (404, content))
    assert pwm("whoami").code == 3


def test_a_server_that_does_not_speak_http_is_said(pwm: Pwm, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("PWM_SERVER", f"http://127.0.0.1:{listening.getsockname()[1]}")

        def answer() -> None:
            for _ in range(3):
                connection, _ = listening.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"220 mail.example.org ESMTP\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        result = pwm("whoami")
        thread.join(10)
    assert result.code == 6
    assert "does not speak HTTP" in result.err


def test_old_answers_are_marked_once(server: FakeServer) -> None:
    warned: list[str] = []
    server.on("GET", "/v1/resources/Node", {"text": "", "staleSince": "2026-01-02T03:04:05Z"})
    client = _client(server.url, warned=warned)
    for _ in range(3):
        client.call("GET", "/v1/resources/Node")
    client.close()
    assert warned == ["the control plane cannot reach etcd since 2026-01-02T03:04:05Z; what you see may be old"]


def test_a_server_that_does_not_fit_is_warned_about_once(server: FakeServer) -> None:
    warned: list[str] = []
    server.headers = {"Pwm-Version": "4.1.0", "Pwm-Oldest-Client": "4.0.0"}
    server.on("GET", "/v1/whoami", {})
    client = _client(server.url, warned=warned)
    for _ in range(2):
        client.call("GET", "/v1/whoami")
    client.close()
    assert len(warned) == 1
    assert "4.1.0 do not fit together; update the client" in warned[0]


@pytest.mark.parametrize(
    ("client", "server", "oldest", "expected"),
    [
        ("3.0.0", "3.4.1", "3.0.0", True),
        ("3.0.0", "3.4.1", "3.1.0", False),
        ("3.9.0", "3.4.1", "3.1.0", True),
        ("3.0.0", "4.0.0", "3.0.0", False),
        ("3.0.0+local", "3.0.0-rc.1", "", True),
    ],
)
def test_versions_fit_within_a_major_version_from_the_oldest_client_on(
    client: str, server: str, oldest: str, expected: bool
) -> None:
    assert fits(client, server, oldest) is expected


def test_a_stream_yields_results_and_raises_its_error(server: FakeServer) -> None:
    server.on("GET", "/v1/events", Stream([{"text": "a"}, {"text": "b"}], error={"code": 7, "message": "not yours"}))
    messages = _client(server.url).stream("/v1/events")
    assert [next(messages)["text"], next(messages)["text"]] == ["a", "b"]
    with pytest.raises(ServerError, match="not yours"):
        next(messages)


def test_a_stream_that_is_cut_is_not_taken_for_ended(server: FakeServer) -> None:
    server.on("GET", "/v1/events", Stream([{"text": "a"}], cut=True))
    with pytest.raises(Broken):
        list(_client(server.url).stream("/v1/events"))


@pytest.mark.parametrize(
    ("text", "url", "authority"),
    [
        ("http://a:4700", "http://a:4700", "a:4700"),
        ("127.0.0.1:15", "https://127.0.0.1:15", "127.0.0.1:15"),
        ("host", "https://host:4700", "host:4700"),
        ("[::1]:15", "https://[::1]:15", "[::1]:15"),
        ("http://host", "http://host:80", "host:80"),
        ("https://pwm.example.org/cluster/", "https://pwm.example.org:443/cluster", "pwm.example.org:443"),
        ("http://[::1]:4700", "http://[::1]:4700", "[::1]:4700"),
        ("http://[::1]", "http://[::1]:80", "[::1]:80"),
    ],
)
def test_servers_are_written_in_many_ways(text: str, url: str, authority: str) -> None:
    server = Server(text)
    assert (server.url, server.authority) == (url, authority)


@pytest.mark.parametrize("text", ["ftp://a", "http://", "http://a:b", "http://a:0", "http://a:70000", ""])
def test_what_is_no_server_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a server's URL"):
        Server(text)


@contextmanager
def _tls_server() -> Iterator[int]:
    """The port of a server that takes part in handshakes."""
    from pwm.controlplane.authority import new_issuer
    from pwm.controlplane.credentials import _server_context, _use

    context, now_ms = _server_context(), int(time.time() * 1000)
    issuer = new_issuer(1, now_ms=now_ms)
    _use(context, issuer.for_controller("c", hosts=["127.0.0.1"], now_ms=now_ms, life_ms=3_600_000))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    accepted = listener.accept()[0]
                except OSError:
                    return
                with accepted, suppress(OSError):
                    context.wrap_socket(accepted, server_side=True).close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def test_who_says_http_to_a_server_that_speaks_tls_is_told_so_and_nothing_is_repeated() -> None:
    with _tls_server() as port, pytest.raises(NoServerError, match=rf"it speaks TLS; say https://127\.0\.0\.1:{port}"):
        _client(f"http://127.0.0.1:{port}").call("POST", "/v1/tokens", body={})


def test_who_expects_tls_where_there_is_none_is_told_how_to_go_without(server: FakeServer) -> None:
    address = server.url.removeprefix("http://")
    for url in (address, f"https://{address}"):
        with pytest.raises(
            NoServerError, match=f"it does not speak TLS; if that is how it should be, say {server.url}"
        ):
            _client(url).call("GET", "/v1/whoami")
    assert server.requests == []


def test_a_plain_server_that_hangs_up_is_not_taken_for_one_with_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def hang_up() -> None:
            for _ in range(6):
                listener.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(NoServerError) as refused:
            _client(f"http://127.0.0.1:{port}").call("GET", "/v1/whoami")
        assert "TLS" not in str(refused.value)


def test_names_are_quoted_in_paths() -> None:
    assert quote("a b/ü?") == "a%20b%2F%C3%BC%3F"


# --- several servers ------------------------------------------------------------------------------


def test_each_user_of_each_machine_has_an_order_of_their_own_which_is_always_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    urls = [f"http://10.0.0.{n}:4700" for n in (1, 2, 3)]
    orders = {}
    for machine in range(200):
        monkeypatch.setattr(socket, "gethostname", lambda name=f"login-{machine}": name)
        orders[machine] = [server.url for server in _order([Server(url) for url in urls])]
        assert orders[machine] == [server.url for server in _order([Server(url) for url in reversed(urls)])]
    favourites = Counter(order[0] for order in orders.values())
    assert sorted(favourites) == urls
    assert min(favourites.values()) > 40, "clients spread over the replicas"


def test_a_frozen_server_costs_its_time_once_and_the_next_one_answers(server: FakeServer) -> None:
    server.on("GET", "/v1/whoami", {"user": "ada"})
    with _frozen() as frozen:
        client = _client(frozen, server.url)
        began = time.monotonic()
        assert client.call("GET", "/v1/whoami") == {"user": "ada"}
        cost_s = time.monotonic() - began
        client.close()
        other = _client(frozen, server.url)
        began = time.monotonic()
        assert other.call("GET", "/v1/whoami") == {"user": "ada"}
        assert time.monotonic() - began < cost_s / 2, "all clients of the process know of it"
        other.close()


def test_a_server_that_freezes_between_two_calls_is_left_and_the_write_repeated_with_its_key(
    server: FakeServer, other_server: FakeServer
) -> None:
    freeze = threading.Event()
    server.on("GET", "/v1/whoami", {"user": "ada"})
    server.on("GET", "/healthz", lambda request: freeze.is_set() and server.stopping.wait(10) and {})
    server.on("POST", "/v1/workloads/a/stop", lambda request: server.stopping.wait(10) and {})
    other_server.on("POST", "/v1/workloads/a/stop", {"changed": True, "revision": "7"})
    client = _client(server.url, other_server.url)
    client.call("GET", "/v1/whoami")
    freeze.set()
    assert client.call("POST", "/v1/workloads/a/stop", body={})["changed"] is True
    keys = [s.of("POST", "/v1/workloads/a/stop")[0].headers["idempotency-key"] for s in (server, other_server)]
    assert keys[0] == keys[1]
    client.close()


def test_a_server_that_is_only_slow_is_waited_for(server: FakeServer, other_server: FakeServer) -> None:
    def slowly(request: object) -> dict[str, str]:
        time.sleep(2.5)
        return {"user": "ada"}

    server.on("GET", "/v1/whoami", slowly)
    server.on("GET", "/healthz", {})
    client = _client(server.url, other_server.url)
    assert client.call("GET", "/v1/whoami") == {"user": "ada"}
    assert not other_server.requests
    assert len(server.of("GET", "/healthz")) >= 2
    client.close()


def test_a_replica_that_is_cut_off_from_the_store_is_not_believed_while_another_knows_better(
    server: FakeServer, other_server: FakeServer
) -> None:
    warned: list[str] = []
    server.on("GET", "/v1/resources/Node", {"text": "old", "staleSince": "2026-01-02T03:04:05Z"})
    other_server.on("GET", "/v1/resources/Node", {"text": "new"})
    client = _client(server.url, other_server.url, warned=warned)
    assert client.call("GET", "/v1/resources/Node")["text"] == "new"
    assert not warned
    client.close()
    other_server.on("GET", "/v1/resources/Node", {"text": "old", "staleSince": "2026-01-02T03:04:06Z"})
    client = _client(server.url, other_server.url, warned=warned)
    assert client.call("GET", "/v1/resources/Node")["text"] == "old"
    assert len(warned) == 1
    client.close()


def test_a_stream_whose_server_says_nothing_any_more_is_cut_soon(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "BEATLESS_S", 0.2)
    server.headers = {"Pwm-Beat": "3"}
    server.on("GET", "/v1/events", Stream([{"text": "a"}], hangs=True))
    messages = _client(server.url).stream("/v1/events", timeout_s=None)
    assert next(messages) == {"text": "a"}
    assert server.requests[0].headers["pwm-beat"] == "3"
    with pytest.raises(Broken):
        next(messages)


def test_a_stream_may_be_quiet_for_longer_than_an_answer(
    server: FakeServer, other_server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "DOUBT_AFTER_S", 0.05)

    def quiet(request: object) -> Stream:
        threading.Timer(0.5, server.stopping.set).start()
        return Stream([{"text": "a"}], hangs=True)

    server.on("GET", "/v1/events", quiet)
    assert list(_client(server.url, other_server.url).stream("/v1/events")) == [{"text": "a"}]
    assert not server.of("GET", "/healthz")


def test_who_is_told_to_wait_waits_and_goes_on_with_the_same_key(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    server.headers["Retry-After"] = "1"
    server.on("POST", "/v1/apply", (429, {"code": 8, "message": "too many requests"}), {"results": []})
    client = _client(server.url, _unused_url())
    assert client.call("POST", "/v1/apply", body={}) == {"results": []}
    client.close()
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1
    assert len(pauses) == 1
    assert 1 <= pauses[0] <= 1.5


@pytest.mark.parametrize(("after", "asked"), [("120", 1), ("20", 2), ("", 1), ("soon", 1)])
def test_nobody_waits_longer_than_people_do(
    server: FakeServer, pwm: Pwm, monkeypatch: pytest.MonkeyPatch, after: str, asked: int
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    server.headers["Retry-After"] = after
    problem = {"@type": "pwm.v1.Problem", "message": "too many requests", "nextStep": "wait"}
    server.on("GET", "/v1/whoami", (429, {"code": 8, "message": "too many requests", "details": [problem]}))
    result = pwm("whoami")
    assert result.code == 5
    assert "error: too many requests\n  wait\n" in result.err
    assert ("the server asks for a pause" in result.err) is (asked > 1)
    assert len(server.requests) == asked


def test_who_uses_a_token_that_ends_soon_is_told_once(server: FakeServer) -> None:
    server.headers["Pwm-Token-Ends"] = "2026-11-22T10:00:00Z"
    server.on("GET", "/v1/whoami", {"user": "ada"})
    warned: list[str] = []
    client = _client(server.url, warned=warned)
    for _ in range(2):
        client.call("GET", "/v1/whoami")
    client.close()
    assert len(warned) == 1
    assert "this token ends at 2026-11-2" in warned[0]
    assert "`pwm token create` makes another" in warned[0]
