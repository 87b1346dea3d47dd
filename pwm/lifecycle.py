"""The life of a container, as one table that control plane and agent share.

A container is one attempt: its phase only moves forward and each step has one owner. The agent owns
what it does itself (pull, create, run, exit); the control plane owns what only it can say: that a
container was placed, that its node is gone, that it was deleted. Whoever reports a step that is not in
the table is wrong, and the report is dropped. An admin who confirms that a node is dead speaks for its agent.

        assigned -> pulling -> creating -> running -> exiting -> exited | failed
            any phase before the end -> lost -> (the node came back) exited | failed
            any end -> deleted
"""

from enum import Enum

from pwm.api.v1.workload_pb2 import ContainerStatus
from pwm.enums import value_name

Phase = ContainerStatus.Phase
P = ContainerStatus


class Owner(Enum):
    AGENT = "agent"
    CONTROLLER = "controller"


# Phases in which a container holds its resources. A lost one does: its node may still run it.
LIVE = frozenset({P.ASSIGNED, P.PULLING, P.CREATING, P.RUNNING, P.EXITING, P.LOST})
# Phases in which the attempt is over.
ENDED = frozenset({P.EXITED, P.FAILED, P.DELETED})
# Phases in which its replica may have another: a lost one has ended too, but nobody could say so yet.
GIVEN_UP = ENDED | {P.LOST}

_A, _C = Owner.AGENT, Owner.CONTROLLER

# from -> to -> owner. An agent that reconnects may report only the latest phase, so steps may be skipped.
TRANSITIONS: dict[Phase.ValueType, dict[Phase.ValueType, Owner]] = {
    P.ASSIGNED: {P.PULLING: _A, P.CREATING: _A, P.RUNNING: _A, P.EXITING: _A, P.EXITED: _A, P.FAILED: _A, P.LOST: _C},
    P.PULLING: {P.CREATING: _A, P.RUNNING: _A, P.EXITING: _A, P.EXITED: _A, P.FAILED: _A, P.LOST: _C},
    P.CREATING: {P.RUNNING: _A, P.EXITING: _A, P.EXITED: _A, P.FAILED: _A, P.LOST: _C},
    P.RUNNING: {P.EXITING: _A, P.EXITED: _A, P.FAILED: _A, P.LOST: _C},
    P.EXITING: {P.EXITED: _A, P.FAILED: _A, P.LOST: _C},
    P.LOST: {P.EXITED: _A, P.FAILED: _A, P.DELETED: _C},
    P.EXITED: {P.DELETED: _C},
    P.FAILED: {P.DELETED: _C},
    P.DELETED: {},
}


def may_move(before: Phase.ValueType, after: Phase.ValueType, *, owner: Owner) -> bool:
    """Whether `owner` may take a container from one phase to the other."""
    return TRANSITIONS.get(before, {}).get(after) is owner


def phase_word(phase: Phase.ValueType) -> str:
    """The phase as people read it: `running`."""
    return value_name(Phase.Name, phase).lower()
