"""The spool keeps exactly what was committed, whatever happens in between."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pwm.nodeagent.logs.spool import Spool
from tests.unit.nodeagent_io.spooling import batch, spool_of, text


def _reopen(path: Path) -> Spool:
    return Spool(path, max_bytes=1 << 30, segment_bytes=1 << 20)


def test_a_spool_that_is_opened_again_goes_on_where_it_was(tmp_path: Path) -> None:
    first = spool_of(tmp_path, [batch((b"one\n", 0, False)), batch((b"two\n", 5, True))])
    first.close()
    second = _reopen(tmp_path)
    assert second.cursor == (1, 2, 1)
    assert second.end == 8
    second.append(batch((b"three\n", 9, False)), (1, 3, 1))
    assert text(second) == b"one\ntwo\nthree\n"


def test_what_was_written_but_not_committed_is_cut_off(tmp_path: Path) -> None:
    spool = spool_of(tmp_path, [batch((b"committed\n", 0, False))])
    committed = (tmp_path / "position").read_bytes()
    spool.append(batch((b"killed before the position was written\n", 1, True)), (1, 2, 1))
    spool.close()
    (tmp_path / "position").write_bytes(committed)
    again = _reopen(tmp_path)
    assert text(again) == b"committed\n"
    assert again.cursor == (1, 1, 1)
    again.append(batch((b"taken once more\n", 1, True)), (1, 2, 1))
    assert text(again) == b"committed\ntaken once more\n"


def test_a_torn_position_leaves_the_one_before(tmp_path: Path) -> None:
    spool = spool_of(tmp_path, [batch((b"a\n", 0, False)), batch((b"b\n", 1, False)), batch((b"c\n", 2, False))])
    spool.close()
    position = bytearray((tmp_path / "position").read_bytes())
    half = len(position) // 2
    # Three commits: the third went to the second slot again.
    position[half + 20] ^= 0xFF
    (tmp_path / "position").write_bytes(position)
    assert text(_reopen(tmp_path)) == b"a\nb\n"


def test_a_power_cut_that_took_committed_bytes_ends_the_log_there(tmp_path: Path) -> None:
    spool = spool_of(tmp_path, [batch((b"kept\n", 0, False)), batch((b"lost by the disk\n", 1, False))])
    spool.close()
    os.truncate(next(tmp_path.glob("*.log")), 7)
    again = _reopen(tmp_path)
    assert again.cut
    assert text(again) == b"kept\nlo"


def test_a_power_cut_in_an_early_segment_drops_what_is_behind_the_hole(tmp_path: Path) -> None:
    spool = spool_of(tmp_path, [batch((b"%d\n" % n * 10, n, False)) for n in range(5)], segment_bytes=10)
    spool.close()
    oldest, *_ = sorted(tmp_path.glob("*.log"))
    os.truncate(oldest, 3)
    again = _reopen(tmp_path)
    assert again.cut
    assert text(again) == b"0\n0"
    assert [file.name for file in tmp_path.glob("*.log")] == [oldest.name]


def test_beyond_its_cap_a_log_loses_its_oldest_segments(tmp_path: Path) -> None:
    spool = spool_of(tmp_path, [batch((b"%05d\n" % n, n, False)) for n in range(50)], max_bytes=60, segment_bytes=12)
    kept = text(spool)
    assert kept.endswith(b"00048\n00049\n")
    assert 48 <= len(kept) <= 60
    assert spool.size == len(kept)
    assert spool.end == 300
    assert len(list(tmp_path.glob("*.idx"))) == len(list(tmp_path.glob("*.log"))) == 5
    spool.close()
    assert text(_reopen(tmp_path)) == kept


def test_a_full_disk_adds_nothing_and_the_next_try_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = spool_of(tmp_path, [batch((b"before\n", 0, False))])
    pwrite, calls = os.pwrite, iter([3, None])

    def full(fd: int, data: bytes, offset: int) -> int:
        room = next(calls)
        if room is None:
            raise OSError(28, "No space left on device")
        return pwrite(fd, data[:room], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        spool.append(batch((b"after\n", 1, False)), (1, 2, 1))
    monkeypatch.setattr(os, "pwrite", pwrite)
    assert (spool.cursor, text(spool)) == ((1, 1, 1), b"before\n")
    spool.append(batch((b"after\n", 1, False)), (1, 2, 1))
    assert text(spool) == b"before\nafter\n"


def test_an_ended_log_is_known_to_have_ended_after_a_restart(tmp_path: Path) -> None:
    spool = spool_of(tmp_path, [batch((b"all\n", 0, False))])
    spool.finish()
    assert _reopen(tmp_path).ended


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 30))
def test_after_a_kill_at_any_point_the_log_is_taken_up_without_loss_or_repetition(
    tmp_path_factory: pytest.TempPathFactory, seed: int, size: int
) -> None:
    """A kill keeps what was written in the order it was written: any number of bytes beyond the last position."""
    chance = random.Random(seed)
    path = tmp_path_factory.mktemp("spool")
    source = [batch((bytes([65 + n % 26]) * chance.randint(1, 9), n, chance.random() < 0.5)) for n in range(size)]
    taken = 0
    while taken < size:
        spool = Spool(path, max_bytes=1 << 20, segment_bytes=16)
        taken = spool.cursor[1]
        assert text(spool) == b"".join(one.data for one in source[:taken])
        for number in range(taken, chance.randint(taken, size)):
            spool.append(source[number], (1, number + 1, 1))
            taken = number + 1
        if taken < size:
            _die_while_appending(spool, source[taken], chance)
    assert text(Spool(path, max_bytes=1 << 20, segment_bytes=16)) == b"".join(one.data for one in source)


def _die_while_appending(spool: Spool, one: object, chance: random.Random) -> None:
    """The same writes as an append, cut at a random byte, without the position."""
    written = chance.choice(["bytes", "runs", "all"])
    position = spool.path / "position"
    before = position.read_bytes() if position.exists() else None
    spool.append(one, (1, spool.cursor[1] + 1, 1))  # type: ignore[arg-type]
    spool.close()
    if before is None:
        position.unlink()
    else:
        position.write_bytes(before)
    newest = max(spool.path.glob("*.log"))
    index = newest.with_suffix(".idx")
    data = len(one.data)  # type: ignore[attr-defined]
    if written == "bytes":
        os.truncate(newest, newest.stat().st_size - chance.randint(0, data))
        os.truncate(index, index.stat().st_size - 16)
    elif written == "runs":
        os.truncate(index, index.stat().st_size - chance.randint(0, 16))
