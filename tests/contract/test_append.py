"""Appending decisions: what is checked, what is refused and why, on each backend."""

import asyncio
from contextlib import aclosing

import pytest

from pwm.api.v1.store_pb2 import Head
from pwm.controlplane.store import errors
from pwm.controlplane.store.eventstore import (
    COMMIT_LIMIT_OPERATIONS,
    EVENT_LIMIT_BYTES,
    HEADS_AT_ONCE,
    STATE_LIMIT_BYTES,
    EventStore,
    Guard,
    ReceiptWrite,
    StreamId,
    StreamWrite,
)
from pwm.controlplane.store.kv import KV, Put
from tests.contract.decisions import all_heads, birth, change, commit, head_of, stream

A, B = stream("a"), stream("b")


async def test_events_and_head_are_written_together(store: EventStore) -> None:
    revision = await store.append(commit(birth(A, b"one", b"two", state=b"after two")))
    head = await head_of(store, A)
    assert (head.version, head.revision, head.state, head.removed_at_ms, head.first_version) == (
        2,
        revision,
        b"after two",
        0,
        1,
    )
    events = [event async for event in store.read_stream(A)]
    assert [(e.version, e.revision, e.position, e.event) for e in events] == [
        (1, revision, 0, b"one"),
        (2, revision, 1, b"two"),
    ]


async def test_a_stream_goes_on_from_its_head(store: EventStore) -> None:
    await store.append(commit(birth(A, b"one")))
    await store.append(commit(change(await head_of(store, A), b"two", state=b"2", removed_at_ms=5_123)))
    head = await head_of(store, A)
    assert (head.version, head.state, head.removed_at_ms) == (2, b"2", 5_123)
    assert [e.event async for e in store.read_stream(A)] == [b"one", b"two"]
    assert [e.event async for e in store.read_stream(A, from_version=2)] == [b"two"]


async def test_a_stream_of_more_than_a_page_is_read_whole(store: EventStore) -> None:
    await store.append(commit(birth(A)))
    for _ in range(11):
        head = await head_of(store, A)
        await store.append(commit(change(head, *(b"%d" % v for v in range(head.version, head.version + 100)))))
    versions = [e.version async for e in store.read_stream(A)]
    assert versions == list(range(1, 1102))


async def test_there_is_no_head_of_an_unknown_stream(store: EventStore) -> None:
    assert await store.head(A) is None
    assert [e async for e in store.read_stream(A)] == []


async def test_a_decision_on_an_old_head_is_refused(store: EventStore) -> None:
    await store.append(commit(birth(A)))
    old = await head_of(store, A)
    await store.append(commit(change(old, b"first")))
    with pytest.raises(errors.Conflict) as refusal:
        await store.append(commit(change(old, b"second"), birth(B)))
    assert refusal.value.streams == (A,)
    assert await store.head(B) is None, "a commit is applied whole or not at all"
    assert [e.event async for e in store.read_stream(A)] == [b"born", b"first"]


async def test_a_stream_is_born_once(store: EventStore) -> None:
    await store.append(commit(birth(A)))
    with pytest.raises(errors.Conflict):
        await store.append(commit(birth(A)))


async def test_a_name_has_one_holder(store: EventStore) -> None:
    await store.append(commit(birth(A), claim_names=(("Workload/g/web", "Workload/a"),)))
    with pytest.raises(errors.NameTaken) as refusal:
        await store.append(commit(birth(B), claim_names=(("Workload/g/web", "Workload/b"),)))
    assert (refusal.value.name, refusal.value.holder) == ("Workload/g/web", "Workload/a")
    assert await store.lookup_name("Workload", "g", "web") == A
    assert await store.head(B) is None


async def test_a_released_name_is_free(store: EventStore) -> None:
    await store.append(commit(birth(A), claim_names=(("User//eva", "Workload/a"),)))
    await store.append(commit(change(await head_of(store, A)), release_names=("User//eva",)))
    assert await store.lookup_name("User", "", "eva") is None
    await store.append(commit(birth(B), claim_names=(("User//eva", "Workload/b"),)))
    assert await store.lookup_name("User", "", "eva") == B


async def test_a_name_changes_hands_in_one_commit(store: EventStore) -> None:
    await store.append(commit(birth(A), claim_names=(("W/g/n", "Workload/a"),)))
    handover = commit(
        change(await head_of(store, A)), birth(B), claim_names=(("W/g/n", "Workload/b"),), release_names=("W/g/n",)
    )
    await store.append(handover)
    assert await store.lookup_name("W", "g", "n") == B


async def test_a_repeated_request_gets_its_first_answer(store: EventStore) -> None:
    receipt = ReceiptWrite("eva/x", "key 1/ü", b"the answer")
    revision = await store.append(commit(birth(A), receipt=receipt, claim_names=(("W/g/n", "Workload/a"),)))
    with pytest.raises(errors.AlreadyAnswered) as repeated:
        await store.append(
            commit(
                birth(B),
                receipt=ReceiptWrite("eva/x", "key 1/ü", b"another"),
                claim_names=(("W/g/n", "Workload/b"),),
            )
        )
    assert (repeated.value.answer, repeated.value.revision) == (b"the answer", revision)
    kept = await store.receipt("eva/x", "key 1/ü")
    assert kept is not None
    assert (kept.answer, kept.revision) == (b"the answer", revision)
    assert await store.receipt("eva", "x/key 1/ü") is None


async def test_receipts_hang_on_a_lease(store: EventStore, kv: KV) -> None:
    await store.append(commit(birth(A), receipt=ReceiptWrite("eva", "k", b"")))
    (found,) = (await kv.range(store.keys.receipt("eva", "k"))).kvs
    assert found.lease, "receipts end by themselves"


async def test_a_receipt_survives_the_loss_of_its_lease(store: EventStore, kv: KV) -> None:
    await store.append(commit(birth(A), receipt=ReceiptWrite("eva", "1", b"")))
    (found,) = (await kv.range(store.keys.receipt("eva", "1"))).kvs
    await kv.revoke_lease(found.lease)
    plain, receipted = commit(birth(stream("plain"))), commit(birth(B), receipt=ReceiptWrite("eva", "2", b"two"))
    await asyncio.gather(store.append(plain), store.append(receipted))
    kept = await store.receipt("eva", "2")
    assert kept is not None
    assert kept.answer == b"two"


async def test_a_guard_holds_while_its_key_is_as_it_was(store: EventStore, kv: KV) -> None:
    key = store.keys.presence("session", "n1")
    epoch = await kv.put(key, b"replica 1")
    guard = Guard(key, mod_revision=epoch)
    await store.append(commit(birth(A), guards=(guard,)))
    await kv.put(key, b"replica 2")
    with pytest.raises(errors.GuardFailed) as refusal:
        await store.append(commit(birth(B), guards=(guard,)))
    assert refusal.value.key == key


async def test_a_leaders_guard_is_its_fence(store: EventStore, kv: KV) -> None:
    key = store.keys.leader("zone")
    fence = Guard(key, create_revision=await kv.put(key, b"me"))
    await kv.put(key, b"me, at another address")
    await store.append(commit(birth(A), guards=(fence,)))
    await kv.delete(key)
    with pytest.raises(errors.FenceLost):
        await store.append(commit(birth(B), guards=(fence,)))


async def test_a_guard_of_zero_wants_the_key_absent(store: EventStore, kv: KV) -> None:
    key = store.keys.presence("session", "n1")
    await store.append(commit(birth(A), guards=(Guard(key, mod_revision=0),)))
    await kv.put(key, b"")
    with pytest.raises(errors.GuardFailed):
        await store.append(commit(birth(B), guards=(Guard(key, mod_revision=0),)))


async def test_what_is_at_a_limit_is_taken_and_what_is_over_it_refused(store: EventStore) -> None:
    await store.append(commit(birth(A, bytes(EVENT_LIMIT_BYTES), state=bytes(STATE_LIMIT_BYTES))))
    for write in (birth(B, bytes(EVENT_LIMIT_BYTES + 1)), birth(B, state=bytes(STATE_LIMIT_BYTES + 1))):
        with pytest.raises(errors.TooLarge):
            await store.append(commit(write))
    assert await store.head(B) is None


async def test_a_commit_takes_as_many_streams_as_etcd_takes_operations(store: EventStore) -> None:
    writes = [birth(stream(f"s{i}")) for i in range(COMMIT_LIMIT_OPERATIONS // 2)]
    await store.append(commit(*writes))
    with pytest.raises(errors.TooLarge):
        await store.append(commit(*(birth(stream(f"t{i}")) for i in range(len(writes) + 1))))


async def test_a_commit_over_a_mebibyte_is_refused(store: EventStore) -> None:
    fits = [birth(stream(f"s{i}"), bytes(60_000), state=bytes(60_000)) for i in range(8)]
    await store.append(commit(*fits))
    with pytest.raises(errors.TooLarge):
        await store.append(commit(*(birth(stream(f"t{i}"), bytes(60_000), state=bytes(60_000)) for i in range(9))))


async def test_heads_are_paged_at_one_revision(store: EventStore) -> None:
    for i in range(5):
        await store.append(commit(*(birth(stream(f"{i}-{j}"), kind_state(i, j)) for j in range(4))))
    revision, heads = await all_heads(store, page_keys=6)
    assert len(heads) == 20
    assert revision == max(head.revision for head in heads.values())
    assert {head.version for head in heads.values()} == {1}


async def test_many_heads_come_in_parts_between_which_others_run(store: EventStore, kv: KV) -> None:
    count, head = 2 * HEADS_AT_ONCE + 1, Head(version=1, state=b"s").SerializeToString()
    keys = [store.keys.head(stream(f"{i:04}")) for i in range(count)]
    for first in range(0, count, COMMIT_LIMIT_OPERATIONS):
        await kv.txn([], [Put(key, head) for key in keys[first : first + COMMIT_LIMIT_OPERATIONS]])
    turns = 0

    async def someone_else() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        other = group.create_task(someone_else())
        parts, turns_before = [], []
        async with aclosing(store.heads(page_keys=count)) as pages:
            async for part in pages:
                parts.append([x.stream.uid for x in part.heads])
                turns_before.append(turns)
        other.cancel()
    assert [uid for part in parts for uid in part] == [f"{i:04}" for i in range(count)]
    assert [len(part) for part in parts] == [HEADS_AT_ONCE, HEADS_AT_ONCE, 1]
    assert turns_before[0] < turns_before[1] < turns_before[2]


def kind_state(i: int, j: int) -> bytes:
    return b"%d %d" % (i, j)


async def test_an_empty_store_has_one_page_that_tells_the_revision(store: EventStore, kv: KV) -> None:
    now = await kv.put(store.keys.prefix + b"x", b"")
    revision, heads = await all_heads(store)
    assert (revision, heads) == (now, {})


async def test_a_closed_store_refuses(store: EventStore) -> None:
    await store.close()
    with pytest.raises(errors.Unavailable):
        await store.append(commit(birth(A)))


async def test_hundreds_of_writers_of_one_stream_lose_nothing(store: EventStore) -> None:
    """Everyone retries on conflict: the stream must hold each writer's event exactly once."""
    await store.append(commit(birth(A, b"start")))

    async def write(name: bytes) -> None:
        while True:
            try:
                await store.append(commit(change(await head_of(store, A), name)))
                return
            except errors.Conflict:
                continue

    names = [b"writer %d" % i for i in range(30)]
    await asyncio.gather(*(write(name) for name in names))
    events = [e.event async for e in store.read_stream(A)]
    assert sorted(events[1:]) == sorted(names)


def test_a_stream_write_is_plain_data() -> None:
    write = StreamWrite(StreamId("Node", "n"), 0, 0, (b"e",), b"s")
    assert write == birth(StreamId("Node", "n"), b"e", state=b"s")
