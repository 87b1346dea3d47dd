"""Whose orders an agent obeys, and what it remembers of them."""

from pathlib import Path

import pytest

from pwm.api.v1.agent_pb2 import Welcome
from pwm.api.v1.store_pb2 import Position
from pwm.nodeagent.allegiance import Allegiance, Outdated
from pwm.nodeagent.journal import Journal


@pytest.fixture
def allegiance(tmp_path: Path) -> Allegiance:
    return reopened(tmp_path)


def reopened(tmp_path: Path) -> Allegiance:
    return Allegiance(Journal(tmp_path / "journal.db"), clock_ns=lambda: 7_000_000_000)


def welcome(epoch: int, *, cluster: str = "ours", incarnation: int = 0) -> Welcome:
    return Welcome(epoch=epoch, cluster=cluster, incarnation=incarnation)


def test_epochs_only_grow_also_over_restarts_of_the_agent(allegiance: Allegiance, tmp_path: Path) -> None:
    assert not allegiance.accept(welcome(10))
    with pytest.raises(Outdated, match="epoch 10 was there before"):
        allegiance.accept(welcome(10))
    again = reopened(tmp_path)
    with pytest.raises(Outdated):
        again.accept(welcome(9))
    assert not again.accept(welcome(11))


def test_the_newest_position_is_kept_with_the_time_it_was_told(allegiance: Allegiance, tmp_path: Path) -> None:
    allegiance.accept(welcome(10))
    allegiance.told(Position(position=20, event=b"ev/x", event_revision=19))
    allegiance.told(Position(position=15, event=b"ev/old", event_revision=14))
    allegiance.told(Position())
    kept = reopened(tmp_path).obeyed.position
    assert (kept.position, kept.event, kept.event_revision, kept.time.seconds) == (20, b"ev/x", 19, 7)
    allegiance.accept(welcome(25))
    assert allegiance.obeyed.position.event == b"ev/x", "a session says nothing of events"


def test_another_cluster_is_not_obeyed(allegiance: Allegiance) -> None:
    allegiance.accept(welcome(10))
    with pytest.raises(Outdated, match="cluster theirs"):
        allegiance.accept(welcome(11, cluster="theirs"))


def test_a_control_plane_that_names_no_cluster_is_an_older_one(allegiance: Allegiance) -> None:
    assert not allegiance.accept(welcome(10, cluster=""))
    assert not allegiance.accept(welcome(11))
    assert not allegiance.accept(welcome(12, cluster=""))
    assert allegiance.obeyed.cluster == "ours"


def test_after_a_restore_was_accepted_everything_is_told_again_once(allegiance: Allegiance) -> None:
    allegiance.accept(welcome(10))
    allegiance.told(Position(position=20, event=b"ev/x", event_revision=19))
    assert allegiance.accept(welcome(1 << 40 | 5, incarnation=1))
    assert not allegiance.obeyed.position.event, "an event of a log that is no more proves nothing"
    assert not allegiance.accept(welcome(1 << 40 | 6, incarnation=1))


def test_a_new_agent_has_nothing_to_tell_again(allegiance: Allegiance) -> None:
    assert not allegiance.accept(welcome(1 << 40 | 5, incarnation=1))
