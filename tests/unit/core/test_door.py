"""Rates and bans of addresses, as sums over given times."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pwm.controlplane.core import door as door_module
from pwm.controlplane.core.door import VISIT_S, Door, DoorLimits


@dataclass(frozen=True)
class Who:
    name: str
    token_id: str


LIMITS = DoorLimits(requests_per_s=30, burst=60, failures=3, ban_s=120)


@given(st.lists(st.floats(0, 2), min_size=1, max_size=300), st.sampled_from(["visit", "knock"]))
def test_nobody_is_served_more_than_the_rate_and_a_burst(pauses: list[float], way: str) -> None:
    door, now_s, served = Door(LIMITS), 0.0, []
    for pause_s in pauses:
        now_s += pause_s
        wait_s = door.visit("a", Who("ann", "t"), now_s)[0] if way == "visit" else door.knock("a", now_s)
        if not wait_s:
            served.append(now_s)
    for first in range(len(served)):
        for last in range(first, len(served)):
            assert last - first + 1 <= LIMITS.burst + LIMITS.requests_per_s * (served[last] - served[first]) + 1e-6


@given(st.lists(st.floats(0, 0.1), min_size=1, max_size=300))
def test_who_waits_as_long_as_told_is_served(pauses: list[float]) -> None:
    door, now_s = Door(LIMITS), 0.0
    for pause_s in pauses:
        now_s += pause_s
        wait_s, _ = door.visit("a", Who("ann", "t"), now_s)
        if wait_s:
            now_s += wait_s + 1e-9
            assert door.visit("a", Who("ann", "t"), now_s) == (0.0, False)


@pytest.mark.parametrize(
    ("other", "shares"),
    [
        (("a", "ann", "her other token"), True),
        (("a", "bob", "his"), False),
        (("b", "ann", "t"), False),
    ],
)
def test_a_user_has_one_purse_at_each_address_whatever_his_tokens(other: tuple[str, str, str], shares: bool) -> None:
    door = Door(LIMITS)
    while not door.visit("a", Who("ann", "t"), 0.0)[0]:
        pass
    address, user, token = other
    assert bool(door.visit(address, Who(user, token), 0.0)[0]) is shares


def test_strangers_of_an_address_share_a_purse_and_visitors_do_not_feel_them() -> None:
    door = Door(LIMITS)
    assert [door.knock("a", 0.0) > 0 for _ in range(61)] == [False] * 60 + [True]
    assert door.visit("a", Who("ann", "t"), 0.0)[0] == 0
    assert door.knock("b", 0.0) == 0


def test_a_visit_begins_once_until_nobody_came_for_an_hour() -> None:
    door = Door(LIMITS)
    began = [door.visit("a", Who("ann", "t"), now_s)[1] for now_s in (0, 1, VISIT_S, 2 * VISIT_S + 1)]
    assert began == [True, False, False, True]
    assert door.visit("b", Who("ann", "t"), 1)[1]


@pytest.mark.parametrize(
    ("failures_at", "banned_at", "free_at"),
    [
        ([0, 1, 2], [2, 121.9], [122.1]),
        ([0, 1], [], [1, 100]),
        # Too far apart.
        ([0, 60, 121], [], [121]),
        # What is tried during a ban does not make it longer.
        ([0, 1, 2, 50, 51, 52, 121], [121.5], [122.1, 123]),
        ([0, 1, 2, 123, 124], [], [124]),
        ([0, 1, 2, 123, 124, 125], [125, 244], [246]),
    ],
)
def test_a_ban_lasts_as_long_as_it_was_given(
    failures_at: list[float], banned_at: list[float], free_at: list[float]
) -> None:
    door = Door(LIMITS)
    for now_s in failures_at:
        door.fail("a", now_s)
    assert [door.banned_s("a", now_s) > 0 for now_s in banned_at] == [True] * len(banned_at)
    assert [door.banned_s("a", now_s) for now_s in free_at] == [0] * len(free_at)
    assert door.banned_s("b", failures_at[-1]) == 0


def test_a_ban_keeps_out_who_has_no_valid_token_and_no_one_else() -> None:
    door = Door(LIMITS)
    assert [door.fail("a", 0.0) for _ in range(5)] == [False, False, True, False, False]
    assert door.knock("a", 20.0) == 100.0
    assert door.visit("a", Who("ann", "t"), 20.0)[0] == 0


def test_0_is_no_limit_and_no_ban() -> None:
    door = Door(DoorLimits(requests_per_s=0, failures=0))
    assert not any(door.fail("a", 0.0) for _ in range(100))
    assert not any(door.knock("a", 0.0) for _ in range(1000))
    assert not any(door.visit("a", Who("ann", "t"), 0.0)[0] for _ in range(1000))


def test_what_is_remembered_is_bounded_and_a_crowd_of_strangers_ends_no_ban(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOST_STRANGERS", "MOST_VISITORS"):
        monkeypatch.setattr(door_module, name, 100)
    door = Door(LIMITS)
    door.visit("a", Who("ann", "t"), 0.0)
    for _ in range(3):
        door.fail("bad", 0.0)
    for number in range(1000):
        door.knock(f"stranger {number}", 0.1)
        door.fail(f"stranger {number}", 0.1)
    assert len(door._strangers) <= 100
    assert len(door._failures) <= 100
    assert door.banned_s("bad", 1.0)
    assert not door.visit("a", Who("ann", "t"), 1.0)[1], "forgotten"
    for number in range(1000):
        door.visit("a", Who(f"u{number}", f"t{number}"), 1.0)
    assert len(door._visits) <= 100
    assert len(door._purses) <= 100
