"""A replica that agents cannot reach notices it by where they turn up."""

from pwm.controlplane.clock import Clock
from pwm.controlplane.hearing import AWAY_S, DEAF_AFTER_S, DEAF_FOR_S, Hearing


class Scene(Clock):
    """Agents here, agents elsewhere, and the time."""

    def __init__(self) -> None:
        self.time_s = 100.0
        self.here: set[str] = set()
        self.elsewhere: dict[str, str] = {}
        self.hearing = Hearing(clock=self, connected_here=lambda: self.here, holder=lambda n: self.elsewhere.get(n, ""))

    def monotonic_s(self) -> float:
        return self.time_s

    def deaf_after(self, seconds: float) -> bool:
        """Asked every second until the time has passed."""
        for _ in range(int(seconds)):
            self.hearing.deaf()
            self.time_s += 1.0
        return self.hearing.deaf()


def test_one_that_lost_all_its_agents_to_others_is_deaf_until_one_comes_back() -> None:
    scene = Scene()
    scene.here = {"n1", "n2", "n3"}
    assert not scene.hearing.deaf()
    scene.here, scene.elsewhere = set(), {"n2": "r2"}
    assert not scene.deaf_after(DEAF_AFTER_S / 2)
    assert scene.deaf_after(DEAF_AFTER_S)
    scene.here = {"n1"}
    assert not scene.hearing.deaf()


def test_one_whose_agents_are_nowhere_is_not_deaf_for_the_agents_are_silent() -> None:
    scene = Scene()
    scene.here = {"n1", "n2"}
    scene.hearing.deaf()
    scene.here = set()
    assert not scene.deaf_after(10 * DEAF_AFTER_S)


def test_one_that_never_had_agents_or_had_a_single_one_is_not_deaf() -> None:
    scene = Scene()
    scene.elsewhere = {"n1": "r2", "n2": "r2"}
    assert not scene.deaf_after(10 * DEAF_AFTER_S)
    scene.here = {"n1"}
    scene.hearing.deaf()
    scene.here = set()
    assert not scene.deaf_after(10 * DEAF_AFTER_S)


def test_what_is_not_confirmed_again_is_forgotten_after_a_while() -> None:
    scene = Scene()
    scene.here = {"n1", "n2"}
    scene.hearing.deaf()
    scene.here, scene.elsewhere = set(), {"n1": "r2"}
    assert scene.deaf_after(DEAF_AFTER_S + DEAF_FOR_S)
    assert not scene.deaf_after(2)


def test_one_that_was_frozen_knows_why_its_agents_left() -> None:
    scene = Scene()
    scene.here = {"n1", "n2"}
    scene.hearing.deaf()
    scene.here, scene.elsewhere = set(), {"n1": "r2", "n2": "r3"}
    scene.time_s += AWAY_S + 1
    assert not scene.hearing.deaf()
    assert not scene.deaf_after(2 * DEAF_AFTER_S)
