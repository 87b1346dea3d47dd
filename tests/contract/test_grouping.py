"""Group commit and lost answers: many appends in one transaction, each with an outcome of its own."""

import asyncio
from collections.abc import Awaitable

import pytest

from pwm.controlplane.store import errors
from pwm.controlplane.store.eventstore import EventStore, Guard, ReceiptWrite
from tests.contract.answers import Loss, LostAnswers
from tests.contract.decisions import birth, change, commit, head_of, stream

Lossy = tuple[LostAnswers, EventStore]
A, B, C = stream("a"), stream("b"), stream("c")


async def outcomes(*appends: Awaitable[int]) -> list[int | BaseException]:
    return list(await asyncio.gather(*appends, return_exceptions=True))


# ---- sharing a transaction


async def test_appends_of_one_moment_share_a_transaction(lossy: Lossy) -> None:
    answers, store = lossy
    revisions = await asyncio.gather(*(store.append(commit(birth(stream(f"s{i}")))) for i in range(16)))
    assert answers.transactions == 1
    assert len(set(revisions)) == 1
    positions = [e.position for i in range(16) async for e in store.read_stream(stream(f"s{i}"))]
    assert positions == list(range(16)), "the order in a transaction is the order of asking"


async def test_many_writers_need_few_transactions(lossy: Lossy) -> None:
    answers, store = lossy

    async def write(name: str) -> None:
        await store.append(commit(birth(stream(name))))
        for _ in range(9):
            await store.append(commit(change(await head_of(store, stream(name)))))

    await asyncio.gather(*(write(f"s{i}") for i in range(64)))
    assert answers.transactions < 640 / 4


async def test_a_shared_transaction_stays_within_etcds_limits(lossy: Lossy) -> None:
    answers, store = lossy
    await asyncio.gather(*(store.append(commit(birth(stream(f"s{i}")))) for i in range(200)))
    assert answers.transactions >= 4
    assert max(answers.operations) <= 128


async def test_large_appends_do_not_share_beyond_a_mebibyte(lossy: Lossy) -> None:
    answers, store = lossy
    big = [commit(birth(stream(f"s{i}"), bytes(60_000), state=bytes(60_000))) for i in range(20)]
    await asyncio.gather(*map(store.append, big))
    assert answers.transactions == 3


async def test_one_conflict_fails_alone(lossy: Lossy) -> None:
    answers, store = lossy
    await store.append(commit(birth(A)))
    stale = await head_of(store, A)
    await store.append(commit(change(stale, b"newer")))
    answers.transactions = 0
    results = await outcomes(
        *(store.append(commit(birth(stream(f"s{i}")))) for i in range(7)),
        store.append(commit(change(stale, b"too late"))),
        *(store.append(commit(birth(stream(f"t{i}")))) for i in range(7)),
    )
    assert isinstance(results.pop(7), errors.Conflict)
    assert all(isinstance(result, int) for result in results)
    assert answers.transactions <= 3, "one that failed, one that asked why, one for all the others"


async def test_each_member_of_a_failed_group_hears_its_own_reason(lossy: Lossy) -> None:
    _, store = lossy
    receipt = ReceiptWrite("eva", "1", b"first")
    await store.append(commit(birth(A), claim_names=(("W/g/n", "Workload/a"),), receipt=receipt))
    results = await outcomes(
        store.append(commit(birth(stream("x1")), claim_names=(("W/g/n", "Workload/x1"),))),
        store.append(commit(birth(stream("x2")), guards=(Guard(store.keys.leader("r"), create_revision=7),))),
        store.append(commit(birth(stream("x3")))),
        store.append(commit(birth(A))),
        store.append(commit(birth(stream("x4")), receipt=ReceiptWrite("eva", "1", b"second"))),
    )
    kinds = [type(result) for result in results]
    assert kinds == [errors.NameTaken, errors.FenceLost, int, errors.Conflict, errors.AlreadyAnswered]


async def test_appends_to_one_stream_do_not_share(lossy: Lossy) -> None:
    _, store = lossy
    await store.append(commit(birth(A)))
    head = await head_of(store, A)
    results = await outcomes(*(store.append(commit(change(head, b"%d" % i))) for i in range(5)))
    assert [type(result) for result in results] == [int] + [errors.Conflict] * 4
    assert [e.event async for e in store.read_stream(A)] == [b"born", b"0"]


async def test_two_claims_of_a_name_do_not_share(lossy: Lossy) -> None:
    _, store = lossy
    results = await outcomes(
        store.append(commit(birth(A), claim_names=(("W/g/n", "Workload/a"),))),
        store.append(commit(birth(B), claim_names=(("W/g/n", "Workload/b"),))),
    )
    assert [type(result) for result in results] == [int, errors.NameTaken]


async def test_two_that_each_rely_on_what_the_other_writes_cannot_both_win(lossy: Lossy) -> None:
    """Write skew: in one transaction both compares would hold, in no order of two would they."""
    _, store = lossy
    await store.append(commit(birth(A), birth(B)))
    a, b = await head_of(store, A), await head_of(store, B)
    results = await outcomes(
        store.append(commit(change(a), guards=(Guard(store.keys.head(B), mod_revision=b.revision),))),
        store.append(commit(change(b), guards=(Guard(store.keys.head(A), mod_revision=a.revision),))),
    )
    assert {type(result) for result in results} == {int, errors.GuardFailed}


async def test_commits_of_one_leader_share_its_fence(lossy: Lossy) -> None:
    answers, store = lossy
    key = store.keys.leader("zone")
    fence = Guard(key, create_revision=await answers.put(key, b""))
    await asyncio.gather(*(store.append(commit(birth(stream(f"s{i}")), guards=(fence,))) for i in range(16)))
    assert answers.transactions == 1


async def test_one_who_gives_up_does_not_hold_up_the_others(lossy: Lossy) -> None:
    _, store = lossy
    async with asyncio.TaskGroup() as group:
        gone = group.create_task(store.append(commit(birth(A))))
        stays = group.create_task(store.append(commit(birth(B))))
        await asyncio.sleep(0)
        gone.cancel()
    assert stays.result() > 0


# ---- not knowing


async def test_a_commit_whose_answer_was_lost_is_not_applied_twice(lossy: Lossy) -> None:
    answers, store = lossy
    answers.losses.append(Loss.ANSWER)
    revision = await store.append(commit(birth(A, b"once")))
    assert [(e.event, e.revision) async for e in store.read_stream(A)] == [(b"once", revision)]
    assert (await head_of(store, A)).revision == revision


async def test_a_commit_whose_request_was_lost_is_sent_again(lossy: Lossy) -> None:
    answers, store = lossy
    answers.losses += [Loss.REQUEST, Loss.REFUSED, Loss.REQUEST]
    await store.append(commit(birth(A, b"once")))
    assert [e.event async for e in store.read_stream(A)] == [b"once"]


async def test_a_whole_group_is_told_apart_after_a_lost_answer(lossy: Lossy) -> None:
    answers, store = lossy
    await store.append(commit(birth(A)))
    head = await head_of(store, A)
    answers.losses.append(Loss.ANSWER)
    revisions = await asyncio.gather(
        store.append(commit(change(head, b"mine"))), *(store.append(commit(birth(stream(f"s{i}")))) for i in range(15))
    )
    assert len(set(revisions)) == 1
    assert [e.event async for e in store.read_stream(A)] == [b"born", b"mine"]


async def test_an_applied_commit_is_recognised_under_later_ones(lossy: Lossy) -> None:
    answers, store = lossy
    applied: list[int] = []

    async def others_write_on() -> None:
        for _ in range(2):
            head = await head_of(store, A)
            applied.append(head.revision)
            await other.append(commit(change(head, b"theirs")))

    async with EventStore(answers._kv, keys=store.keys) as other:
        answers.losses.append(Loss.ANSWER)
        answers.afterwards = others_write_on
        revision = await store.append(commit(birth(A, b"mine")))
    assert revision == applied[0]
    assert [e.event async for e in store.read_stream(A)] == [b"mine", b"theirs", b"theirs"]


async def test_a_lost_commit_that_another_overtook_is_a_conflict(lossy: Lossy) -> None:
    answers, store = lossy
    await store.append(commit(birth(A)))
    head = await head_of(store, A)
    async with EventStore(answers._kv, keys=store.keys) as other:
        answers.losses.append(Loss.REQUEST)
        answers.afterwards = lambda: other.append(commit(change(head, b"theirs"), birth(C)))
        with pytest.raises(errors.Conflict):
            await store.append(commit(change(head, b"mine")))
    assert [e.event async for e in store.read_stream(A)] == [b"born", b"theirs"]


async def test_an_applied_receipt_is_ones_own_answer_not_a_repetition(lossy: Lossy) -> None:
    answers, store = lossy
    answers.losses.append(Loss.ANSWER)
    revision = await store.append(commit(birth(A), receipt=ReceiptWrite("eva", "1", b"mine")))
    kept = await store.receipt("eva", "1")
    assert kept is not None
    assert kept.revision == revision


async def test_silence_to_the_end_is_ambiguous_if_anything_was_sent(lossy: Lossy) -> None:
    answers, store = lossy
    answers.losses += [Loss.REFUSED, Loss.REQUEST] + [Loss.REFUSED] * 1000
    with pytest.raises(errors.Ambiguous):
        await store.append(commit(birth(A)))


async def test_silence_to_the_end_is_unavailable_if_nothing_was_sent(lossy: Lossy) -> None:
    answers, store = lossy
    answers.losses += [Loss.REFUSED] * 1000
    with pytest.raises(errors.Unavailable):
        await store.append(commit(birth(A)))
    answers.losses.clear()
    assert await store.head(A) is None
