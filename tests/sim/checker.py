"""The judge of a simulation: sees every transaction as etcd makes it and every container as Docker has it, and checks
what must hold. Nothing can be hidden from it, and it keeps its own fold of the log.

Each check is named after the invariant it is (see docs/invariants.md):

    I1  GPUs of live containers are disjoint, in the log and on the machines; no node is promised beyond what it has
    I2  a container is created once at most
    I3  a replica never runs twice at the same time, whatever its nodes believe
    I4  an acknowledged change is in the log exactly once, in the order of asking, and can be read back at once
    I5  versions have no holes; replicas are equal at equal revision
    I6  phases only move forward
    I7  two minutes after the last fault everything runs, has ended, or waits for a true reason
    I8  a container is stopped only if the log says so, or by an agent that was cut off for too long
    I9  an agent never obeys a lower epoch
    I10 a lost node's devices stay taken (they count as live in I1); one container per attempt
    I17 nobody is given anything beyond the totals of the user or of the group that it counts for
    I16 the fold of the events is the head, byte for byte
    I18 no container is unknown to the log for long, and no live container of the log is nowhere
    FENCE  what only a leader may write is written by the leader
    ALARM  no node is called silent that was heard
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from pwm import lifecycle
from pwm.api.v1.common_pb2 import Actor, Reason
from pwm.api.v1.events_pb2 import Event
from pwm.api.v1.identity_pb2 import ResourceLimits
from pwm.api.v1.node_pb2 import NodeStatus
from pwm.api.v1.store_pb2 import Head, Record
from pwm.api.v1.workload_pb2 import Container, ContainerStatus, Workload, WorkloadSpec, WorkloadStatus
from pwm.controlplane.commands import UNNAMED_KINDS
from pwm.controlplane.core.evolve import State, fold
from pwm.controlplane.core.nodes import NodeTimes
from pwm.controlplane.core.reconcile import reconcile
from pwm.controlplane.core.scheduling.cluster import Cluster
from pwm.controlplane.core.scheduling.explain import explain
from pwm.controlplane.core.scheduling.plan import plan
from pwm.controlplane.core.scheduling.queue import Waiting
from pwm.controlplane.presence import _SILENT
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import WatchEvent
from pwm.controlplane.store.registry import SESSIONS
from pwm.controlplane.view import View
from pwm.nodeagent.drivers.driver import Runtime
from tests.sim.docker import Box, Machine, Witness
from tests.sim.loop import Universe
from tests.sim.network import Process
from tests.sim.processes import Answer, Command

# A workload that restarts for ever is always on its way; no step takes longer than this.
TRANSITION_S = 30.0
# What the scheduler may take to see that a wait is over.
PLACING_S = 3.0
ZONE_ROLE = "zone/default"
# Controllers that act for the zone's leader only; `bootstrap` is every replica's.
LEADERS_ONLY = frozenset({"scheduler", "nodes"})
# Clocks of replicas run a little fast or slow.
DRIFT = 0.95
# How long a leader's decision may be on its way to the log.
IN_FLIGHT_S = 5.0


class Broken(AssertionError):
    """An invariant does not hold."""


class Checker(Witness):
    def __init__(
        self,
        keys: Keys,
        universe: Universe | None = None,
        *,
        times: NodeTimes | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._tell = tell
        self._times = times or NodeTimes()
        self._keys = keys
        self._universe = universe
        self.states: dict[tuple[str, str], State] = {}
        self.removed: set[tuple[str, str]] = set()
        self.created_times = Counter[str]()
        self.commits: dict[int, list[Event]] = {}
        self.steps = 0
        self.digest = hashlib.sha256()
        self.acknowledgements = 0
        # Totals that were looked at.
        self.limited = 0
        # Replicas that ran twice because nobody was there to keep an agent's promise.
        self.excused = 0
        # Containers that watchdogs have ended.
        self.watchdog_ended = 0
        # While somebody looks whether all is settled, an invariant that does not hold is only an answer.
        self._settling = False
        self._restarts = Counter[str]()
        self._names: dict[tuple[str, str, str], str] = {}
        self._written_s: dict[tuple[str, str], float] = {}
        self._heads: dict[tuple[str, str, int], bytes] = {}
        self._receipts: dict[bytes, int] = {}
        self._leader = b""
        self._sessions: dict[str, str] = {}
        self._gone_since_s: dict[str, float] = {}
        self._heard_s: dict[str, float] = {}
        self._was_away_s: dict[str, tuple[float, float]] = {}
        self._answered_s: dict[str, float] = {}
        self._fenced: set[str] = set()
        self._epochs: dict[str, int] = {}
        self._notes: defaultdict[str, list[int]] = defaultdict(list)
        self._noted: dict[str, list[int]] = {}
        self._running: dict[tuple[str, int], tuple[Machine, Box]] = {}

    @property
    def now_s(self) -> float:
        return self._universe.now_s if self._universe is not None else 0.0

    # ---- every transaction

    def transaction(self, revision: int, writes: list[WatchEvent], author: Process | None = None) -> None:
        keys = self._keys
        heads: dict[tuple[str, str], Head] = {}
        records: list[tuple[int, Event]] = []
        led_by = self._leader
        for write in writes:
            key = write.kv.key
            if key == keys.leader(ZONE_ROLE):
                self._leader = b"" if write.deleted else write.kv.value.partition(b"\n")[0]
            elif key.startswith(keys.presence(SESSIONS)):
                node = key[len(keys.presence(SESSIONS)) :].decode()
                held = not write.deleted and not write.kv.value.startswith(_SILENT)
                self._session(node, write.kv.value.decode() if held else "")
            elif write.deleted or key.startswith(keys.all_marks):
                continue
            elif key.startswith(keys.all_events):
                stream, version = keys.parse_event(key)
                record = Record.FromString(write.kv.value)
                event = Event.FromString(record.event)
                self._must(
                    (event.kind, event.uid, event.version) == (stream.kind, stream.uid, version), "I5", f"{key!r}"
                )
                records.append((record.position, event))
            elif key.startswith(keys.all_heads):
                stream = keys.parse_stream(key, section=keys.all_heads)
                heads[stream.kind, stream.uid] = Head.FromString(write.kv.value)
            elif key.startswith(keys.prefix + b"receipt/"):
                self._must(key not in self._receipts, "I4", f"{key!r} was carried out twice")
                self._receipts[key] = revision
        records.sort(key=lambda r: r[0])
        for _, event in records:
            self._check_author(event, led_by, author)
            self._fold(event)
        for stream, head in heads.items():
            self._must(head.version == self.states[stream].metadata.version, "I5", f"head of {stream}")
            same = head.state == self.states[stream].SerializeToString(deterministic=True)
            self._must(same, "I16", f"fold of {stream} at version {head.version} is not its head")
            self._heads[*stream, head.version] = head.state
        if records:
            self.steps += 1
            self.commits[revision] = [event for _, event in records]
            placed = [event for _, event in records if event.HasField("container_placed")]
            self._check_devices({event.container_placed.spec.node for event in placed})
            for kind, name in sorted({account for event in placed for account in _accounts(event)}):
                self._check_totals(kind, name)

    def _fold(self, event: Event) -> None:
        self.digest.update(event.SerializeToString(deterministic=True))
        key = (event.kind, event.uid)
        before = self.states.get(key)
        self._must(key not in self.removed, "I5", f"{key} goes on after its end")
        self._must(
            event.version == (before.metadata.version + 1 if before else 1), "I5", f"{key} version {event.version}"
        )
        if isinstance(before, Container) and event.HasField("container_reported"):
            after = event.container_reported.phase
            owner = lifecycle.Owner.AGENT if event.actor.type == Actor.NODE else lifecycle.Owner.CONTROLLER
            moved = after == before.status.phase or lifecycle.may_move(before.status.phase, after, owner=owner)
            self._must(moved, "I6", f"{event.name} from {before.status.phase} to {after}")
        if event.HasField("workload_applied") and "NOTE" in event.workload_applied.spec.config.env:
            self._notes[event.name].append(int(event.workload_applied.spec.config.env["NOTE"]))
        if event.HasField("workload_restarted"):
            self._restarts[event.name] -= 1
            self._must(self._restarts[event.name] >= 0, "I4", f"{event.name} was restarted more often than asked for")
        if event.HasField("node_phase_changed"):
            self._check_alarm(before, event)
        self._check_name(event)
        self.states[key] = fold(before, event)
        self._written_s[key] = self.now_s
        if event.HasField("removed"):
            self.removed.add(key)

    def _check_name(self, event: Event) -> None:
        """I5: no two live resources of a kind have the same name."""
        if event.kind in UNNAMED_KINDS:
            return
        name, removed = (event.kind, event.group, event.name), event.HasField("removed")
        holder = self._names.setdefault(name, event.uid)
        self._must(holder == event.uid, "I5", f"{name} is the name of {holder} and of {event.uid}")
        if removed:
            del self._names[name]

    def _check_author(self, event: Event, led_by: bytes, author: Process | None) -> None:
        if author is None or event.actor.type != Actor.CONTROLLER or event.actor.name not in LEADERS_ONLY:
            return
        name = author.name.encode()
        self._must(led_by == name, "FENCE", f"{author.name} wrote {event.name}, and {led_by!r} leads")

    def _check_devices(self, nodes: set[str]) -> None:
        for name in sorted(nodes):
            node: Any = next((s for (k, _), s in self.states.items() if k == "Node" and s.metadata.name == name), None)
            self._must(node is not None, "I1", f"placed on {name}, which is not known")
            live = [c for c in self.live_containers() if c.spec.node == name]
            gpus = [uuid for c in live for uuid in c.spec.gpu_uuids]
            self._must(len(gpus) == len(set(gpus)), "I1", f"a GPU of {name} is in two containers")
            inventory = node.status.inventory
            millis = sum(c.spec.resources.cpu_millis for c in live)
            memory = sum(c.spec.resources.memory_bytes for c in live)
            self._must(millis <= inventory.cpu_count * 1000, "I1", f"{millis} millicores of {name}")
            self._must(memory <= inventory.memory_bytes, "I1", f"{memory} bytes of {name}")

    def _check_totals(self, kind: str, name: str) -> None:
        """I17: what the account has now that something was placed for it."""
        account: Any = next((s for (k, _), s in self.states.items() if k == kind and s.metadata.name == name), None)
        limits = account.spec.limits.resources if account is not None else ResourceLimits()
        alive = [c for c in self.containers() if c.status.phase not in lifecycle.GIVEN_UP]
        counted = [c for c in alive if (c.spec.owner if kind == "User" else c.metadata.group) == name]
        for what, limit, field, has in (
            ("workloads", limits.workloads, "concurrently", len({c.spec.workload_uid for c in counted})),
            ("GPUs", limits.gpus, "total", sum(len(c.spec.gpu_uuids) for c in counted)),
            ("millicores", limits.cpus, "total", sum(c.spec.resources.cpu_millis for c in counted)),
        ):
            if limit.HasField(field):
                most = getattr(limit, field) * (1000 if what == "millicores" else 1)
                self.limited += 1
                self._must(has <= most, "I17", f"{kind} {name} has {has} {what} of {most}")

    # ---- nodes: who was heard, who was called silent

    def _session(self, node: str, holder: str) -> None:
        self._sessions[node] = holder
        if not holder:
            self._gone_since_s.setdefault(node, self.now_s)
        else:
            self._back(node, self._gone_since_s.pop(node, self.now_s))

    def heard(self, node: str, replica: str) -> None:
        """A replica got a message of the node's agent; it counts if the replica holds the node's session."""
        if self._sessions.get(node) == replica:
            self._back(node, self._heard_s.get(node, self.now_s))
            self._heard_s[node] = self.now_s

    def _back(self, node: str, since_s: float) -> None:
        """The node was away until now."""
        away_s = self.now_s - since_s
        if away_s >= self._times.grace_ms / 1000 * DRIFT:
            self._was_away_s[node] = self.now_s, away_s

    def answered(self, machine: Machine, sent_ms: int) -> None:
        """An agent knows that what it sent at this time (of its machine's uptime) was heard."""
        sent_s = machine.booted_s + sent_ms / 1000 / machine.rate
        self._answered_s[machine.name] = max(sent_s, self._answered_s.get(machine.name, 0.0))

    def _check_alarm(self, before: Any, event: Event) -> None:
        """Not ready after the grace, lost after longer; a decision right when it was made may be written later."""
        if self._universe is None:
            return  # a real log: who was heard when is not known here
        changed, name = event.node_phase_changed, event.name
        if changed.phase == NodeStatus.LOST:
            least_s = self._times.lost_after_ms / 1000
        elif (
            changed.phase == NodeStatus.NOT_READY
            and changed.reason.code == Reason.NODE_UNREACHABLE
            and before.status.phase in (NodeStatus.READY, NodeStatus.MAINTENANCE)
        ):
            least_s = self._times.grace_ms / 1000
        else:
            return
        absent_s = self.now_s - self._gone_since_s.get(name, self.now_s)
        silent_s = self.now_s - self._heard_s.get(name, 0.0)
        back_s, away_s = self._was_away_s.get(name, (-1e9, 0.0))
        if self.now_s - back_s > IN_FLIGHT_S or changed.phase == NodeStatus.LOST:
            away_s = 0.0
        # The agent itself may know that it is not heard although something of it arrives.
        unanswered_s = self.now_s - self._answered_s.get(name, 0.0)
        long_enough = max(absent_s, silent_s, away_s, unanswered_s) >= least_s * DRIFT
        self._must(long_enough, "ALARM", f"{name}: heard {silent_s:.1f} s ago, session gone for {absent_s:.1f} s")

    def fencing(self, machine: Machine) -> None:
        """The machine's agent has found that it is cut off, and ends what may be started elsewhere."""
        unanswered_s = self.now_s - self._answered_s.get(machine.name, 0.0)
        cut_off = unanswered_s >= self._times.self_fence_ms / 1000 * DRIFT
        self._must(cut_off, "I8", f"{machine.name} fences itself {unanswered_s:.1f} s after it was answered")
        fenced = (box for box in machine.boxes.values() if box.spec.on_node_lost == WorkloadSpec.reschedule)
        self._fenced.update(box.uid for box in fenced)

    def watchdog_ends(self, machine: Machine, boxes: list[Box]) -> None:
        """The machine's agent has not been heard for so long that its watchdog ends these."""
        unanswered_s = self.now_s - self._answered_s.get(machine.name, 0.0)
        cut_off = unanswered_s >= self._times.self_fence_ms / 1000 * DRIFT
        self._must(cut_off, "I8", f"the watchdog of {machine.name} acts {unanswered_s:.1f} s after it was answered")
        self.watchdog_ended += len(boxes)
        self._fenced.update(box.uid for box in boxes)

    def epoch(self, machine: Machine, epoch: int) -> None:
        """The machine's agent has begun a session of this epoch."""
        before = self._epochs.get(machine.name, 0)
        self._must(epoch > before, "I9", f"{machine.name} took epoch {epoch} after {before}")
        self._epochs[machine.name] = epoch

    def orders(self, machine: Machine, epoch: int) -> None:
        """The machine's agent obeys orders of a session of this epoch."""
        self._must(epoch == self._epochs.get(machine.name), "I9", f"{machine.name} obeys epoch {epoch}")

    # ---- containers, as Docker has them

    def _say(self, machine: Machine, what: str, box: Box) -> None:
        if self._tell is not None:
            self._tell(f"{machine.name:6} docker: {what} {box.uid} {' '.join(box.spec.gpu_uuids)}")

    def created(self, machine: Machine, box: Box) -> None:
        self._say(machine, "created", box)
        self.container_created(box.uid)

    def container_created(self, uid: str) -> None:
        self.created_times[uid] += 1
        self._must(self.created_times[uid] == 1, "I2", f"{uid} was created {self.created_times[uid]} times")

    def started(self, machine: Machine, box: Box) -> None:
        self._say(machine, "started", box)
        if (other := self._running.get(box.replica)) is not None:
            # Where neither agent nor watchdog was there, or no engine, nobody could end anything.
            unkept = min(m.kept_for_s() for m in (machine, other[0])) < self._times.lost_after_ms / 1000
            excused = unkept and not other[0].has_left
            what = f"{box.uid} starts on {machine.name}, {other[1].uid} still runs on {other[0].name}"
            self._must(excused and other[0] is not machine, "I3", what)
            self.excused += 1
        for rival in machine.running():
            shared = set(rival.spec.gpu_uuids) & set(box.spec.gpu_uuids) if rival is not box else ()
            self._must(not shared, "I1", f"{box.uid} and {rival.uid} run on the same GPU of {machine.name}")
        self._running[box.replica] = machine, box

    def ended(self, machine: Machine, box: Box) -> None:
        self._say(machine, "ended", box)
        if self._running.get(box.replica, (None, None))[1] is box:
            del self._running[box.replica]

    def stopped(self, machine: Machine, box: Box) -> None:
        """An agent stops a running container: the log must say so."""
        self._say(machine, "stop", box)
        state = self.states.get(("Container", box.uid))
        said = (
            state is None
            or ("Container", box.uid) in self.removed
            or (
                isinstance(state, Container)
                and (state.status.HasField("stop_requested") or state.status.phase in lifecycle.GIVEN_UP)
            )
        )
        self._must(said or box.uid in self._fenced, "I8", f"{box.uid} was stopped and nobody asked for it")

    # ---- what clients were told

    def asked(self, client: str, command: Command) -> None:
        """A client begins with a command."""
        if command.verb == "restart":
            self._restarts[command.name] += 1

    def acknowledged(self, client: str, command: Command, answer: Answer) -> None:
        self.acknowledgements += 1
        if command.verb == "note":
            self._noted.setdefault(command.name, []).append(command.value)
        if answer.changed and command.verb in ("scale", "stop", "restart"):
            found = [
                e for e in self.commits.get(answer.revision, []) if e.kind == "Workload" and e.name == command.name
            ]
            self._must(bool(found), "I4", f"{command} of {client} is not in the log at {answer.revision}")

    def refused(self, client: str, command: Command, why: str) -> None:
        """The client was told no; nothing follows from that."""

    def unknown(self, client: str, command: Command) -> None:
        """The client was told nothing."""

    def read(self, client: str, command: Command, answer: Answer, got: Any) -> None:
        """Another replica, asked for at least the revision of the answer, must have the change."""
        self._must(got.revision >= answer.revision, "I4", f"{command}: read {got.revision} after {answer.revision}")

    def check_ledger(self) -> None:
        """I4: each acknowledged note was written exactly once, and they were written in the order of asking."""
        for name, noted in self._noted.items():
            written = self._notes[name]
            for value in noted:
                self._must(written.count(value) == 1, "I4", f"{name}: {value} was written {written.count(value)} times")
            kept = [value for value in written if value in set(noted)]
            self._must(kept == noted, "I4", f"{name}: written in the order {written}, acknowledged {noted}")

    # ---- now and then, and at the end

    def check_views(self, views: list[View]) -> None:
        """I5 of replicas that should have caught up. Raises Broken with what is not so yet."""
        self._settling = True
        try:
            for view in views:
                self.check_view(view, complete=True)
        finally:
            self._settling = False

    def check_view(self, view: View, *, complete: bool = False) -> None:
        """What a replica holds is what the log said at some version; when it has caught up, all that it says (I5)."""
        for kind in view._kinds:
            for uid, entry in view._kinds[kind].items():
                version = entry.state.metadata.version
                said = self._heads.get((kind, uid, version))
                held = entry.state.SerializeToString(deterministic=True)
                self._must(said == held, "I5", f"{kind}/{uid} version {version} differs in a view")
        if not complete:
            return
        for (kind, uid), state in self.states.items():
            held_state = view.get(kind, uid)
            if (kind, uid) in self.removed:
                self._must(held_state is None, "I5", f"{kind}/{uid} was removed and is still in a view")
            else:
                self._must(held_state == state, "I5", f"{kind}/{uid} differs in a view")

    def check_settled(self, cluster: Cluster, machines: list[Machine], *, clocks_ms: list[int]) -> None:
        """I7 and I18, once faults are over; `clocks_ms`: what the controllers take for now. Raises Broken with what is
        not settled yet.
        """
        self._settling = True
        try:
            self._check_settled(cluster, machines, clocks_ms)
        finally:
            self._settling = False

    def _check_settled(self, cluster: Cluster, machines: list[Machine], clocks_ms: list[int]) -> None:
        for workload in self.live_workloads():
            containers = [c for c in self.containers() if c.spec.workload_uid == workload.metadata.uid]
            self._check_workload(workload, containers, cluster, clocks_ms)
        for container in self.containers():
            orphan = ("Workload", container.spec.workload_uid) in self.removed
            self._must(not orphan, "I7", f"{container.metadata.name} outlived its workload")
        for (kind, _), node in self.states.items():
            if kind == "Node":
                phase = node.status.phase  # type: ignore[union-attr]
                self._must(phase == NodeStatus.READY, "I7", f"{node.metadata.name} is in phase {phase}")
        self._check_boxes(machines)

    def _age_s(self, kind: str, uid: str) -> float:
        """True time since the last event, whatever clock has stamped it."""
        return self.now_s - self._written_s.get((kind, uid), 0.0)

    def _check_workload(
        self, workload: Workload, containers: list[Container], cluster: Cluster, clocks_ms: list[int]
    ) -> None:
        gap = reconcile(workload, containers, now_ms=clocks_ms[0])
        name = workload.metadata.name
        self._must(not gap.stops, "I7", f"{name} still has something to stop")
        self._must(workload.status.desired != WorkloadStatus.DELETE, "I7", f"{name} is still being deleted")
        ended_s: dict[int, float] = {}
        for container in containers:
            phase, age_s = container.status.phase, self._age_s("Container", container.metadata.uid)
            replica = container.spec.replica
            ended_s[replica] = min(age_s, ended_s.get(replica, age_s))
            settled = phase in (*lifecycle.ENDED, ContainerStatus.RUNNING) or age_s < TRANSITION_S
            self._must(settled, "I7", f"{container.metadata.name} is stuck in {phase}")
            stopping = container.status.HasField("stop_requested") and phase not in lifecycle.ENDED
            in_time = not stopping or age_s < TRANSITION_S
            self._must(in_time, "I7", f"{container.metadata.name} was to be stopped and runs")
        fresh_s = self._age_s("Workload", workload.metadata.uid)
        overdue = [
            v for v in gap.vacancies
            if min(ended_s.get(v.replica, fresh_s), fresh_s) > v.delay_ms / 1000 / DRIFT + PLACING_S
        ]  # fmt: skip
        if overdue:
            reason = explain(cluster, workload).reason
            true = reason.code != Reason.WAITING_FOR_SCHEDULER and bool(reason.code)
            true = true or any(self._is_passed_over(workload, cluster, now_ms) for now_ms in clocks_ms)
            self._must(true, "I7", f"{name} waits for no reason: {overdue}")

    def _is_passed_over(self, workload: Workload, cluster: Cluster, now_ms: int) -> bool:
        """Whether what is free is kept for another, which has waited for long by this clock (one may have jumped)."""
        waiting = []
        for each in self.live_workloads():
            containers = [c for c in self.containers() if c.spec.workload_uid == each.metadata.uid]
            vacancies = reconcile(each, containers, now_ms=now_ms).vacancies
            waiting += [
                Waiting(each, v.replica, v.attempt, since_ms=v.since_ms, failures=v.failures) for v in vacancies
            ]
        planned = plan(cluster, waiting, now_ms=now_ms, seed=0)
        placed = {placement.waiting.workload.metadata.uid for placement in planned.placements}
        return workload.metadata.uid in planned.refusals.keys() - placed

    def _check_boxes(self, machines: list[Machine]) -> None:
        boxes = {box.uid: box for machine in machines for box in machine.boxes.values()}
        for uid, box in boxes.items():
            key = "Container", uid
            self._must(key in self.states and key not in self.removed, "I18", f"{uid} is unknown to the log")
            container: Any = self.states[key]
            running, phase = box.runtime is Runtime.RUNNING, container.status.phase
            agree = running == (phase in (ContainerStatus.RUNNING, ContainerStatus.EXITING))
            recent = self._age_s(*key) < TRANSITION_S
            self._must(agree or recent, "I18", f"{uid} is {box.runtime} and said to be in {phase}")
        for container in self.live_containers():
            if container.status.phase == ContainerStatus.RUNNING:
                self._must(container.metadata.uid in boxes, "I18", f"{container.metadata.name} is said to run nowhere")

    def containers(self) -> list[Container]:
        return [
            s for (kind, uid), s in self.states.items()
            if isinstance(s, Container) and (kind, uid) not in self.removed
        ]  # fmt: skip

    def live_containers(self) -> list[Container]:
        return [c for c in self.containers() if c.status.phase in lifecycle.LIVE]

    def live_workloads(self) -> list[Workload]:
        return [
            s for (kind, uid), s in self.states.items()
            if isinstance(s, Workload) and (kind, uid) not in self.removed
        ]  # fmt: skip

    def by_kind(self) -> dict[str, int]:
        counts: defaultdict[str, int] = defaultdict(int)
        for kind, _ in self.states:
            counts[kind] += 1
        return dict(counts)

    def _must(self, holds: bool, invariant: str, what: str) -> None:
        if not holds:
            broken = Broken(f"{invariant}: {what}")
            if self._universe is not None and not self._settling:
                # Whoever asked may catch everything, as an agent does with a container's troubles.
                self._universe.failures.insert(0, broken)
            raise broken


def _accounts(placed: Event) -> list[tuple[str, str]]:
    """Whom a placement counts for."""
    owner = placed.container_placed.spec.owner
    return [("Group", placed.group), *([("User", owner)] if owner else [])]
