"""Strangers' connections: the limits hold whatever comes and goes, and a flood pushes out nobody but itself."""

from hypothesis import given
from hypothesis import strategies as st

from pwm.controlplane.core.antechamber import LOOKED_AT, OVERFULL, Antechamber, ConnectionLimits

PER_ADDRESS, TOTAL = 4, 9
LIMITS = ConnectionLimits(per_address=PER_ADDRESS, total=TOTAL)
Steps = st.lists(st.tuples(st.sampled_from(["enter", "leave", "many"]), st.integers(0, 4), st.booleans()), max_size=80)


@given(Steps)
def test_there_are_never_more_than_the_limits_allow_and_the_oldest_go_first(steps: list[tuple[str, int, bool]]) -> None:
    chamber: Antechamber[int] = Antechamber(LIMITS)
    inside: dict[str, list[int]] = {}
    for number, (step, which, oldest) in enumerate(steps):
        address = f"a{which}"
        mine = inside.setdefault(address, [])
        if step == "leave":
            if mine:
                chamber.leave(address, mine.pop(0 if oldest else -1))
            continue
        gone = chamber.enter(address, number, many=step == "many")
        if gone is not None:
            owner = next(a for a, theirs in inside.items() if gone in theirs)
            assert gone == inside[owner][0], "the oldest"
            too_many = len(mine) >= PER_ADDRESS and step != "many"
            assert owner == address if too_many else len(inside[owner]) == max(map(len, inside.values()))
            inside[owner].remove(gone)
        mine.append(number)
        assert chamber.count == sum(map(len, inside.values())) <= TOTAL
        assert step == "many" or len(mine) <= PER_ADDRESS or gone is not None


@given(st.integers(0, 200), st.integers(1, 3))
def test_a_flood_from_one_address_pushes_out_nobody_else(flood: int, others: int) -> None:
    chamber: Antechamber[str] = Antechamber(LIMITS)
    for number in range(others):
        assert chamber.enter(f"quiet-{number}", f"quiet-{number}") is None
    gone = [chamber.enter("flood", f"flood-{number}") for number in range(flood)]
    assert [name for name in gone if name is not None and not name.startswith("flood")] == []


@given(st.sets(st.integers(0, 60)))
def test_what_is_spared_stays_while_there_is_another_to_choose_or_room_for_a_crowd(spared: set[int]) -> None:
    chamber: Antechamber[int] = Antechamber(ConnectionLimits(per_address=PER_ADDRESS), spared=spared.__contains__)
    inside: list[int] = []
    for number in range(60):
        gone = chamber.enter("a", number)
        if gone is not None:
            assert gone not in spared or set(inside[:LOOKED_AT]) <= spared
            inside.remove(gone)
        inside.append(number)
        assert len(inside) <= OVERFULL * PER_ADDRESS


def test_the_limit_of_all_spares_nobody() -> None:
    chamber: Antechamber[int] = Antechamber(LIMITS, spared=lambda connection: True)
    gone = [chamber.enter("a", number) for number in range(30)]
    assert gone == [None] * TOTAL + list(range(30 - TOTAL))


def test_without_limits_nobody_goes_and_leaving_twice_is_no_error() -> None:
    chamber: Antechamber[int] = Antechamber(ConnectionLimits())
    assert [chamber.enter("a", number) for number in range(1000)] == [None] * 1000
    for _ in range(2):
        chamber.leave("a", 5)
        chamber.leave("nowhere", 5)
    assert chamber.count == 999
