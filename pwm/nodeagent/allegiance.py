"""Whose orders this agent obeys: those of one cluster, and never older ones than it has obeyed before.

Each session has an epoch, which only grows; a replica that offers a lower one is out of date. During a session the
agent is told how far the log has been read, which is a number of the same kind. The highest is kept in the journal
and said with each hello, since an agent may know better than the control plane itself: when the control plane's
store was restored from an older snapshot, its replicas may have forgotten that there was more, and this proves it.
Once an admin has accepted what was restored, the *incarnation* grows, and what this agent has reported may have
been forgotten, too: it tells everything again.
"""

from collections.abc import Callable
from dataclasses import replace

import structlog

from pwm.api.v1.agent_pb2 import Welcome
from pwm.api.v1.store_pb2 import Position
from pwm.nodeagent.journal import Journal, Obeyed

log = structlog.get_logger(__name__)


class Outdated(Exception):
    """These orders are not to be obeyed; the message says why."""


class Allegiance:
    def __init__(self, journal: Journal, *, clock_ns: Callable[[], int]) -> None:
        self._journal = journal
        self._clock_ns = clock_ns

    @property
    def obeyed(self) -> Obeyed:
        return self._journal.obeyed

    def accept(self, welcome: Welcome) -> bool:
        """Obey this session from now on. True: what was reported before has to be told again. Raises Outdated."""
        known = self._journal.obeyed
        if known.cluster and welcome.cluster and known.cluster != welcome.cluster:
            raise Outdated(f"the server is of cluster {welcome.cluster}, but this agent works for {known.cluster}")
        if welcome.epoch <= known.position.position:
            raise Outdated(
                f"the server offers epoch {welcome.epoch}, but epoch {known.position.position} was there before"
            )
        position = Position()
        if welcome.incarnation == known.incarnation:
            position.CopyFrom(known.position)
        position.position = welcome.epoch
        self._journal.obey(Obeyed(welcome.cluster or known.cluster, position, welcome.incarnation))
        if not known.position.position or welcome.incarnation <= known.incarnation:
            return False
        log.warning("the control plane was restored from an older snapshot", incarnation=welcome.incarnation)
        return True

    def told(self, position: Position) -> None:
        """The control plane has read its log up to here."""
        known = self._journal.obeyed
        if position.position > known.position.position:
            kept = Position()
            kept.CopyFrom(position)
            kept.time.FromNanoseconds(self._clock_ns())
            self._journal.obey(replace(known, position=kept))
