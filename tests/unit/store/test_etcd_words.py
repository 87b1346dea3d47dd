"""What etcd says, and what it means: errors, versions, addresses and keys."""

import grpc
import grpc.aio
import pytest

from pwm.controlplane.store import errors
from pwm.controlplane.store.commits import StreamId
from pwm.controlplane.store.etcd_channels import Endpoints, translate
from pwm.controlplane.store.etcd_versions import judge_version
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import prefix_end

S = grpc.StatusCode


def said(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


@pytest.mark.parametrize(
    ("code", "details", "when_writing", "when_reading"),
    [
        (S.UNAVAILABLE, "failed to connect to all addresses", errors.Unavailable, errors.Unavailable),
        (S.UNAVAILABLE, "etcdserver: no leader", errors.Unavailable, errors.Unavailable),
        (S.UNAVAILABLE, "Socket closed", errors.Ambiguous, errors.Unavailable),
        (S.UNAVAILABLE, "etcdserver: server stopped", errors.Ambiguous, errors.Unavailable),
        (S.UNAVAILABLE, "etcdserver: leader changed", errors.Ambiguous, errors.Unavailable),
        (S.UNKNOWN, "etcdserver: request timed out", errors.Ambiguous, errors.Unavailable),
        (S.UNKNOWN, "context deadline exceeded", errors.Ambiguous, errors.Unavailable),
        (S.DEADLINE_EXCEEDED, "Deadline Exceeded", errors.Ambiguous, errors.Unavailable),
        (S.CANCELLED, "Channel closed!", errors.Ambiguous, errors.Unavailable),
        (S.INTERNAL, "", errors.Ambiguous, errors.Unavailable),
        (S.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", errors.NoSpace, errors.NoSpace),
        (S.RESOURCE_EXHAUSTED, "etcdserver: too many requests", errors.Unavailable, errors.Unavailable),
        (S.RESOURCE_EXHAUSTED, "Received message larger than max", errors.RequestTooLarge, errors.RequestTooLarge),
        (S.INVALID_ARGUMENT, "etcdserver: request is too large", errors.RequestTooLarge, errors.RequestTooLarge),
        (S.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request", errors.BadRequest, errors.BadRequest),
        (S.NOT_FOUND, "etcdserver: requested lease not found", errors.LeaseLost, errors.LeaseLost),
        (S.OUT_OF_RANGE, "mvcc: required revision has been compacted", errors.Compacted, errors.Compacted),
        (S.OUT_OF_RANGE, "mvcc: required revision is a future revision", errors.Unavailable, errors.Unavailable),
        (S.PERMISSION_DENIED, "etcdserver: permission denied", errors.AccessRefused, errors.AccessRefused),
    ],
)
def test_an_error_means_one_thing(
    code: grpc.StatusCode, details: str, when_writing: type[errors.KVError], when_reading: type[errors.KVError]
) -> None:
    assert type(translate(said(code, details), write=True)) is when_writing
    assert type(translate(said(code, details), write=False)) is when_reading


def test_only_what_was_surely_not_applied_may_simply_be_repeated() -> None:
    assert errors.Unavailable("").retry_helps
    assert not any(error.retry_helps for error in (errors.Ambiguous(""), errors.NoSpace(""), errors.LeaseLost("")))


@pytest.mark.parametrize("version", ["3.3.27", "3.4.20", "3.5.0", "3.5.4", "unknown", ""])
def test_versions_that_lose_data_are_refused(version: str) -> None:
    refused, _ = judge_version(version, member="m1")
    assert "m1" in refused


@pytest.mark.parametrize(
    ("version", "warned"),
    [("3.4.21", True), ("3.5.5", True), ("3.5.28", False), ("3.6.8", True), ("3.6.9", False), ("3.7.0", False)],
)
def test_versions_with_known_faults_are_used_with_advice(version: str, warned: bool) -> None:
    refused, advice = judge_version(version, member="m1")
    assert not refused
    assert ("known faults" in advice) == warned


async def test_addresses_are_taken_with_and_without_a_scheme() -> None:
    endpoints = Endpoints(["http://127.0.0.1:1", "https://127.0.0.1:2/", "127.0.0.1:3"])
    assert sorted(e.address for e in endpoints.all) == ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]
    await endpoints.close()


async def test_calls_stick_to_a_member_until_it_fails_and_then_all_leave_it() -> None:
    endpoints = Endpoints(["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"])
    first = endpoints.pick()
    assert endpoints.pick() is first
    waiting = first.left
    endpoints.shun(first)
    assert waiting.is_set(), "who waits on a stream of it is told"
    second = endpoints.pick()
    assert second is not first
    endpoints.shun(second)
    third = endpoints.pick()
    endpoints.shun(third)
    assert endpoints.pick() is first, "when all have failed, the one that failed longest ago"
    assert endpoints.interruptions == 3
    await endpoints.close()


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"a", b"b"), (b"/x/", b"/x0"), (b"a\xff", b"b"), (b"\xff", b"\0"), (b"\xff\xff", b"\0")]
)
def test_the_end_of_a_prefix_is_the_first_key_beyond_it(prefix: bytes, end: bytes) -> None:
    assert prefix_end(prefix) == end


def test_keys_sort_as_versions_do_and_can_be_read_back() -> None:
    keys, stream = Keys(b"/p/"), StreamId("Workload", "01h")
    versions = [1, 2, 9, 10, 99, 100, 10**11]
    written = [keys.event(stream, version) for version in versions]
    assert written == sorted(written)
    assert [keys.parse_event(key) for key in written] == [(stream, version) for version in versions]
    assert keys.parse_stream(keys.head(stream), section=keys.all_heads) == stream
    assert all(key.startswith(keys.events(stream)) for key in written)


def test_what_users_choose_cannot_leave_its_place() -> None:
    keys = Keys()
    sneaky = keys.receipt("../leader", "a/b%2F\n")
    assert sneaky.count(b"/") == keys.prefix.count(b"/") + 2
    assert keys.receipt("a", "b/c") != keys.receipt("a/b", "c")
