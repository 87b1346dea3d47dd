"""What the cluster has and who holds it, kept up to date change by change.

This is the one owner of "what is free": the scheduler plans on it, quotas and listings read it. It is fed
from the view with every node and container as they change, in any order and as often as wanted: a container
may come before its node (resources are held once the node is known), and the same one twice counts once. A
container holds what it was placed with from its placement until its end, also while its node is lost, for the
node may still run it.
"""

from collections.abc import Mapping
from types import MappingProxyType

from pwm.api.v1.identity_pb2 import ResourceLimits
from pwm.api.v1.node_pb2 import Node
from pwm.api.v1.workload_pb2 import Container
from pwm.controlplane.core.limits import Account
from pwm.controlplane.core.scheduling.accounts import Accounts
from pwm.controlplane.core.scheduling.demand import Demand
from pwm.controlplane.core.scheduling.nodes import Holding, NodeState, holding_of
from pwm.controlplane.core.scheduling.scratch import Scratch
from pwm.controlplane.core.scheduling.table import Table
from pwm.controlplane.core.scheduling.verdicts import Explanation
from pwm.lifecycle import LIVE


class Cluster:
    """Nodes, what they have, and who holds it."""

    def __init__(self) -> None:
        self._states: dict[str, NodeState] = {}
        self.nodes: Mapping[str, NodeState] = MappingProxyType(self._states)
        # What users and groups have of all this, and how much of it they may have.
        self.accounts = Accounts()
        self._holdings: dict[str, Holding] = {}
        self._by_node: dict[str, dict[str, Holding]] = {}
        self._spread: dict[str, dict[str, int]] = {}  # workload uid -> node -> its live containers there
        self._table: Table | None = None
        # Grows with every change, so that answers can be kept until one.
        self.revision = 0
        # Answers to `explain` that hold until something changes.
        self.explanations: dict[tuple[Demand, int], Explanation] = {}

    def set_node(self, node: Node) -> None:
        """A node as it is now: its spec, inventory and phase."""
        name = node.metadata.name
        state = NodeState.of(node, self._by_node.get(name, {}).values())
        before = self._states.get(name)
        if before is not None and before.gpus == state.gpus and before.kind == state.kind and _same_size(before, state):
            return
        self._states[name] = state
        self._forget_answers()
        if self._table is not None and self._table.takes(state):
            self._table.write_node(state)
        else:
            self._table = None

    def drop_node(self, name: str) -> None:
        """The node was removed; what its containers hold is remembered in case it returns."""
        if self._states.pop(name, None) is not None:
            self._table = None
            self._forget_answers()

    def set_limits(self, account: Account, limits: ResourceLimits | None) -> None:
        """The limits of a user or a group as they are now; None: it was removed."""
        if self.accounts.drop_limits(account) if limits is None else self.accounts.set_limits(account, limits):
            self._forget_answers()

    def set_container(self, container: Container) -> None:
        """A container as it is now; live ones hold, ended ones release."""
        uid = container.metadata.uid
        if self.accounts.set_container(container):
            self._forget_answers()
        if container.status.phase not in LIVE:
            self.drop_container(uid)
        elif uid not in self._holdings:
            self._hold(holding_of(container))

    def drop_container(self, uid: str) -> None:
        """The container is gone."""
        if self.accounts.drop_container(uid):
            self._forget_answers()
        holding = self._holdings.pop(uid, None)
        if holding is None:
            return
        del self._by_node[holding.node][uid]
        spread = self._spread[holding.workload_uid]
        spread[holding.node] -= 1
        if not spread[holding.node]:
            del spread[holding.node]
        if not spread:
            del self._spread[holding.workload_uid]
        state = self._states.get(holding.node)
        if state is not None:
            state.release(uid)
            self._changed(state)

    def clear(self) -> None:
        """Forget everything, to be told anew."""
        for kept in (self._states, self._holdings, self._by_node, self._spread):
            kept.clear()
        self.accounts.clear()
        self._table = None
        self._forget_answers()

    def _hold(self, holding: Holding) -> None:
        self._holdings[holding.uid] = holding
        self._by_node.setdefault(holding.node, {})[holding.uid] = holding
        spread = self._spread.setdefault(holding.workload_uid, {})
        spread[holding.node] = spread.get(holding.node, 0) + 1
        state = self._states.get(holding.node)
        if state is not None:
            state.hold(holding)
            self._changed(state)

    def _changed(self, state: NodeState) -> None:
        self._forget_answers()
        if self._table is not None:
            self._table.write_use(state)

    def _forget_answers(self) -> None:
        self.revision += 1
        self.explanations.clear()

    def live_replicas(self, workload_uid: str) -> int:
        """How many containers of a workload hold resources."""
        return sum(self._spread.get(workload_uid, {}).values())

    def scratch(self) -> Scratch:
        """A copy of what is free, to plan on."""
        if self._table is None:
            self._table = Table(list(self._states.values()))
        return Scratch(self._table, self._spread)


def _same_size(before: NodeState, after: NodeState) -> bool:
    return before.cores == after.cores and before.memory_bytes == after.memory_bytes
