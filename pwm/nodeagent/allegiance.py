"""Whose orders this agent obeys: those of one cluster, and never older ones than it has obeyed before.

Each session has an epoch, which only grows; a replica that offers a lower one is out of date. The highest epoch is
kept in the journal and told with each hello, since an agent may know better than the control plane itself: when
the control plane's store was restored from an older snapshot, its replicas may have forgotten, but epochs that it
gave out after the snapshot prove it. Once an admin has accepted what was restored, the *incarnation* grows, and
what this agent has reported may have been forgotten, too: it tells everything again.
"""

import structlog

from pwm.api.v1.agent_pb2 import Welcome
from pwm.nodeagent.journal import Journal, Obeyed

log = structlog.get_logger(__name__)


class Outdated(Exception):
    """These orders are not to be obeyed; the message says why."""


class Allegiance:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @property
    def obeyed(self) -> Obeyed:
        return self._journal.obeyed

    def accept(self, welcome: Welcome) -> bool:
        """Obey this session from now on. True: what was reported before has to be told again. Raises Outdated."""
        known = self._journal.obeyed
        if known.cluster and welcome.cluster and known.cluster != welcome.cluster:
            raise Outdated(f"the server is of cluster {welcome.cluster}, but this agent works for {known.cluster}")
        if welcome.epoch <= known.epoch:
            raise Outdated(f"the server offers epoch {welcome.epoch}, but epoch {known.epoch} was there before")
        self._journal.obey(Obeyed(welcome.cluster or known.cluster, welcome.epoch, welcome.incarnation))
        if not known.epoch or welcome.incarnation <= known.incarnation:
            return False
        log.warning("the control plane was restored from an older snapshot", incarnation=welcome.incarnation)
        return True
