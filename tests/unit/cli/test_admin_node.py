"""`pwm admin node`: what lets agents in, and ending it."""

import json

import pytest

from tests.unit.cli.conftest import FakeServer, Pwm

USAGE = 2
LISTED = {
    "credentials": [
        {"node": "gpu7", "kind": "CERTIFICATE", "id": "3fa9", "fingerprint": "ab" * 32,
         "issuedAt": "2026-11-22T10:00:00Z", "expiresAt": "2026-11-23T10:00:00Z"},
        {"kind": "JOIN_TOKEN", "id": "0123456789ab", "issuedAt": "2026-11-22T10:00:00Z",
         "expiresAt": "2026-11-22T10:15:00Z", "issuedBy": "ann"},
        {"kind": "NODE_TOKEN", "id": "1123456789ab", "issuedAt": "2026-11-22T10:00:00Z", "issuedBy": "\x1b[31mann"},
    ],
    "revoked": [{"node": "gpu8", "revokedAt": "2026-11-22T10:00:00Z", "revokedBy": "ann"}],
}  # fmt: skip


def test_what_lets_agents_in_is_a_table(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/admin/node-credentials", LISTED)
    result = pwm("admin", "node", "credentials")
    assert result.code == 0
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0] == ["NODE", "WHAT", "ID", "FINGERPRINT", "ISSUED", "UNTIL", "BY"]
    assert lines[1][:4] == ["gpu7", "certificate", "3fa9", "ab" * 8]
    assert lines[2][:4] == ["any", "join", "token", "0123456789ab"]
    assert "never" in lines[3]
    assert "\x1b" not in result.out
    assert "node/gpu8: revoked at" in result.err


def test_of_one_node_and_as_json(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/admin/node-credentials", LISTED)
    assert json.loads(pwm("admin", "node", "credentials", "gpu7", "-o", "json").out) == LISTED
    assert server.requests[0].query == {"node": ["gpu7"]}


def test_where_nothing_lets_anybody_in_it_says_how(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/admin/node-credentials", {})
    assert "pwm admin join-token NODE" in pwm("admin", "node", "credentials").err


def test_revoking_a_node_says_what_ended_and_how_it_comes_back(server: FakeServer, pwm: Pwm) -> None:
    server.on("POST", "/v1/admin/node-credentials/revoke", {"certificates": 1, "tokens": 2, "revision": "7"})
    result = pwm("admin", "node", "revoke", "gpu7")
    assert (result.code, result.out) == (0, "node/gpu7 revoked: 1 certificate and 2 tokens\n")
    assert "pwm admin join-token gpu7" in result.err
    assert pwm("admin", "node", "revoke", "--token", "0123456789ab").out == "token 0123456789ab revoked\n"
    assert [request.body for request in server.requests] == [{"node": "gpu7"}, {"token": "0123456789ab"}]


@pytest.mark.parametrize("words", [(), ("gpu7", "--token", "0123456789ab")])
def test_it_is_a_node_or_a_token(words: tuple[str, ...], server: FakeServer, pwm: Pwm) -> None:
    result = pwm("admin", "node", "revoke", *words)
    assert (result.code, server.requests) == (USAGE, [])
    assert "say a node, or one token" in result.err
