"""What is written down of what happens again and again, and which tampering with it is found."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pwm.api.v1.audit_pb2 import AuditBatch, AuditEntry, SealedBatch
from pwm.controlplane.core.auditing import (
    MOST_SOURCES,
    MOST_THINGS,
    WINDOW_MS,
    StoredBatch,
    Tally,
    check_chains,
    event_digest,
    seal,
)

FAILED, DENIED = AuditEntry.LOGIN_FAILED, AuditEntry.DENIED


def entry(ms: int, action: AuditEntry.Action.ValueType = FAILED, **fields: str) -> AuditEntry:
    made = AuditEntry(action=action, **fields)
    made.time.FromMilliseconds(ms)
    return made


def times(one: AuditEntry) -> int:
    return one.count or 1


def test_the_first_is_written_at_once_and_the_rest_as_one_entry_a_minute() -> None:
    tally, written = Tally(), []
    for ms in range(0, 5 * WINDOW_MS, 100):
        now = tally.note(entry(ms, address="a"), source="a")
        written += [now] if now is not None else []
        written += tally.due(ms)
    written += tally.due(5 * WINDOW_MS, all_of_it=True)
    assert sum(map(times, written)) == 5 * WINDOW_MS / 100
    assert [times(one) for one in written[:2]] == [1, 600]
    assert len(written) == 6
    second = written[1]
    assert (second.time.ToMilliseconds(), second.until.ToMilliseconds()) == (100, WINDOW_MS)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3 * WINDOW_MS),
            st.integers(0, MOST_SOURCES + 20),
            st.integers(0, MOST_THINGS + 5),
            st.booleans(),
        ),
        max_size=100,
    )
)
def test_everything_is_counted_once_and_what_is_written_is_bounded(tried: list[tuple[int, int, int, bool]]) -> None:
    tally, written = Tally(), []
    noted: Counter[int] = Counter()
    for ms, source, thing, denied in sorted(tried):
        action = DENIED if denied else FAILED
        noted[action] += 1
        written += tally.due(ms)
        now = tally.note(entry(ms, action, address=f"a{source}", user="u", name=f"n{thing}"), source=f"a{source}")
        written += [now] if now is not None else []
    written += tally.due(4 * WINDOW_MS, all_of_it=True)
    counted: Counter[int] = Counter()
    for one in written:
        counted[one.action] += times(one)
    assert counted == noted
    assert tally.due(9 * WINDOW_MS) == []


def test_guesses_from_a_thousand_addresses_are_a_few_hundred_entries() -> None:
    tally, written = Tally(), []
    for number in range(20_000):
        now = tally.note(entry(number // 100, address=f"a{number % 1000}"), source=f"a{number % 1000}")
        written += [now] if now is not None else []
    written += tally.due(0, all_of_it=True)
    assert sum(map(times, written)) == 20_000
    assert len(written) <= 2 * (MOST_SOURCES + 1)
    (others,) = (one for one in written if one.count > 100)
    assert others.address == ""
    assert others.count == 20_000 - MOST_SOURCES * 20 - 1


def test_what_one_address_does_does_not_push_aside_what_another_does() -> None:
    tally = Tally()
    for number in range(1000):
        tally.note(entry(0, DENIED, address="a", user="eve", name=f"n{number}"), source="a")
    named = tally.note(entry(0, DENIED, address="b", user="ann", name="secret"), source="b")
    assert named is not None
    assert named.name == "secret"


# ---- chain


def chain(name: str, count: int, *, first_ms: int = 1_000) -> list[StoredBatch]:
    made: list[StoredBatch] = []
    previous, previous_ms = b"", 0
    for number in range(1, count + 1):
        batch = AuditBatch(replica="r", chain=name, number=number, entries=[entry(number, address=f"{number}")])
        time_ms = first_ms + 1_000 * number
        batch.time.FromMilliseconds(time_ms)
        if previous:
            batch.previous = previous
            batch.previous_time.FromMilliseconds(previous_ms)
        sealed = seal(batch)
        previous, previous_ms = sealed.digest, time_ms
        made.append(StoredBatch(time_ms, name, number, sealed.SerializeToString()))
    return made


def changed(stored: StoredBatch, *, sealed_anew: bool = False) -> StoredBatch:
    sealed = SealedBatch.FromString(stored.value)
    batch = AuditBatch.FromString(sealed.batch)
    batch.entries[0].address = "6.6.6.6"
    again = seal(batch)
    value = again if sealed_anew else SealedBatch(batch=again.batch, digest=sealed.digest)
    return StoredBatch(stored.time_ms, stored.chain, stored.number, value.SerializeToString())


def test_whole_chains_are_as_they_should_be() -> None:
    both = sorted(chain("a", 5) + chain("b", 7), key=lambda b: b.time_ms)
    assert check_chains(both) == []
    assert check_chains([]) == []


Tamper = Callable[[list[StoredBatch]], list[StoredBatch]]


@pytest.mark.parametrize(
    ("tamper", "found"),
    [
        (lambda c: [*c[:2], *c[3:]], "audit a: batch 3 is missing before 1970-01-01T00:00:05Z"),
        (lambda c: [*c[:1], *c[4:]], "audit a: batches 2 to 4 are missing before 1970-01-01T00:00:06Z"),
        (lambda c: c[1:], "audit a: batch 1 is missing before 1970-01-01T00:00:03Z"),
        (lambda c: [*c[:2], changed(c[2]), *c[3:]], "audit a: batch 3 has been changed"),
        (lambda c: [*c[:4], changed(c[4])], "audit a: batch 5 has been changed"),
        (
            lambda c: [*c[:2], changed(c[2], sealed_anew=True), *c[3:]],
            "audit a: batch 3 or 4 has been replaced, at 1970-01-01T00:00:05Z",
        ),
        (
            lambda c: [*c[:2], StoredBatch(c[2].time_ms, "a", 3, c[3].value), *c[3:]],
            "audit a: batch 3 has been changed",
        ),
        (lambda c: [*c[:2], StoredBatch(c[2].time_ms, "a", 3, b"\xff"), *c[3:]], "audit a: batch 3 has been changed"),
    ],
)
def test_tampering_is_found_and_named(tamper: Tamper, found: str) -> None:
    assert check_chains(tamper(chain("a", 5))) == [found]


@given(st.integers(2, 8), st.data())
def test_every_byte_that_is_changed_and_every_batch_that_is_gone_is_found(count: int, data: st.DataObject) -> None:
    whole = chain("a", count)
    place = data.draw(st.integers(0, count - 1))
    if data.draw(st.booleans()) and place < count - 1:
        assert check_chains(whole[:place] + whole[place + 1 :])
        return
    stored = whole[place]
    at = data.draw(st.integers(0, len(stored.value) - 1))
    value = bytes([*stored.value[:at], stored.value[at] ^ data.draw(st.integers(1, 255)), *stored.value[at + 1 :]])
    whole[place] = StoredBatch(stored.time_ms, "a", stored.number, value)
    assert check_chains(whole)


def test_what_retention_has_dropped_is_not_missing() -> None:
    whole = chain("a", 5)
    assert check_chains(whole[2:], kept_since_ms=3_500) == []
    assert check_chains(whole[3:], kept_since_ms=3_500) != []
    assert check_chains([whole[2], whole[4]], kept_since_ms=10_000) != []


def test_a_digest_covers_the_event_and_its_origin() -> None:
    assert len({event_digest(b"ab", b""), event_digest(b"a", b"b"), event_digest(b"", b"ab")}) == 3
