"""The judge of a simulation: reads every transaction as it is made and checks what must hold.

It stands behind the store, where nothing can be hidden from it, and keeps its own fold of the log. Each
check is named after the invariant it is (see docs/invariants.md):

    I1  GPUs of live containers are disjoint, and no node is promised beyond what it has
    I2  a container is created once at most            (told by the machines)
    I4  an acknowledged change is in the log exactly once
    I5  versions have no holes; replicas are equal at equal revision
    I6  phases only move forward
    I7  two minutes after the last fault everything runs, has ended, or waits for a true reason
    I8  a container is stopped only if the log says so (told by the machines)
    I16 the fold of the events is the head, byte for byte
"""

import hashlib
from collections import Counter, defaultdict

from pwm import lifecycle
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.events_pb2 import Event
from pwm.api.v1.store_pb2 import Head, Record
from pwm.api.v1.workload_pb2 import Container, ContainerStatus, Workload, WorkloadStatus
from pwm.controlplane.core.evolve import State, fold
from pwm.controlplane.core.reconcile import reconcile
from pwm.controlplane.core.scheduling.cluster import Cluster
from pwm.controlplane.core.scheduling.explain import explain
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import WatchEvent
from pwm.controlplane.view import View

# A workload that restarts for ever is always on its way; no step takes longer than this.
TRANSITION_MS = 30_000


class Broken(AssertionError):
    """An invariant does not hold."""


class Checker:
    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.states: dict[tuple[str, str], State] = {}
        self.removed: set[tuple[str, str]] = set()
        self.created = Counter[str]()
        self.commits: dict[int, list[Event]] = {}
        self.steps = 0
        self.digest = hashlib.sha256()

    # ---- every transaction

    def transaction(self, revision: int, writes: list[WatchEvent]) -> None:
        heads: dict[tuple[str, str], Head] = {}
        records: list[tuple[int, Event]] = []
        for write in writes:
            key = write.kv.key
            if write.deleted or key.startswith(self._keys.all_marks):
                continue
            if key.startswith(self._keys.all_events):
                stream, version = self._keys.parse_event(key)
                record = Record.FromString(write.kv.value)
                event = Event.FromString(record.event)
                self._must(
                    (event.kind, event.uid, event.version) == (stream.kind, stream.uid, version), "I5", f"{key!r}"
                )
                records.append((record.position, event))
            elif key.startswith(self._keys.all_heads):
                stream = self._keys.parse_stream(key, section=self._keys.all_heads)
                heads[stream.kind, stream.uid] = Head.FromString(write.kv.value)
        records.sort(key=lambda r: r[0])
        for _, event in records:
            self._fold(event)
        for stream, head in heads.items():
            self._must(head.version == self.states[stream].metadata.version, "I5", f"head of {stream}")
            same = head.state == self.states[stream].SerializeToString(deterministic=True)
            self._must(same, "I16", f"fold of {stream} at version {head.version} is not its head")
        if records:
            self.steps += 1
            self.commits[revision] = [event for _, event in records]
            self._check_devices({e.container_placed.spec.node for _, e in records if e.HasField("container_placed")})

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
            moved = after == before.status.phase or lifecycle.may_move(
                before.status.phase, after, owner=lifecycle.Owner.AGENT
            )
            self._must(moved, "I6", f"{event.name} from {before.status.phase} to {after}")
        self.states[key] = fold(before, event)
        if event.HasField("removed"):
            self.removed.add(key)

    def _check_devices(self, nodes: set[str]) -> None:
        for name in nodes:
            node = next((s for (k, _), s in self.states.items() if k == "Node" and s.metadata.name == name), None)
            self._must(node is not None, "I1", f"placed on {name}, which is not known")
            live = [c for c in self.live_containers() if c.spec.node == name]
            gpus = [uuid for c in live for uuid in c.spec.gpu_uuids]
            self._must(len(gpus) == len(set(gpus)), "I1", f"a GPU of {name} is in two containers")
            inventory = node.status.inventory  # type: ignore[union-attr]
            millis = sum(c.spec.resources.cpu_millis for c in live)
            memory = sum(c.spec.resources.memory_bytes for c in live)
            self._must(millis <= inventory.cpu_count * 1000, "I1", f"{millis} millicores of {name}")
            self._must(memory <= inventory.memory_bytes, "I1", f"{memory} bytes of {name}")

    # ---- what machines and clients tell

    def container_created(self, uid: str) -> None:
        self.created[uid] += 1
        self._must(self.created[uid] == 1, "I2", f"{uid} was created {self.created[uid]} times")

    def container_stopped(self, uid: str) -> None:
        """A machine stopped a running container: the log must say so."""
        state = self.states.get(("Container", uid))
        said = (
            state is None
            or ("Container", uid) in self.removed
            or (isinstance(state, Container) and state.status.HasField("stop_requested"))
        )
        self._must(said, "I8", f"{uid} was stopped and nobody asked for it")

    def acknowledged(self, revision: int, name: str, *, changed: bool) -> None:
        """A client was told that its change of the workload `name` is in the log at `revision`.

        By name: while a command is retried, the workload may be deleted and made anew by somebody else.
        """
        if changed:
            found = [e for e in self.commits.get(revision, []) if e.kind == "Workload" and e.name == name]
            self._must(bool(found), "I4", f"the change of {name} at {revision} is not in the log")

    # ---- now and then, and at the end

    def check_view(self, view: View) -> None:
        """A replica that has caught up holds exactly what the log says (I5)."""
        for (kind, uid), state in self.states.items():
            held = view.get(kind, uid)
            if (kind, uid) in self.removed:
                self._must(held is None, "I5", f"{kind}/{uid} was removed and is still in a view")
            else:
                self._must(held == state, "I5", f"{kind}/{uid} differs in a view")

    def check_settled(self, view: View, cluster: Cluster, *, now_ms: int) -> None:
        """I7, two minutes after the last fault."""
        for workload in self.live_workloads():
            containers = [c for c in self.containers() if c.spec.workload_uid == workload.metadata.uid]
            gap = reconcile(workload, containers, now_ms=now_ms)
            name = workload.metadata.name
            self._must(not gap.stops, "I7", f"{name} still has something to stop")
            self._must(workload.status.desired != WorkloadStatus.DELETE, "I7", f"{name} is still being deleted")
            for container in containers:
                phase, age_ms = container.status.phase, now_ms - container.metadata.updated_at.ToMilliseconds()
                settled = phase in (*lifecycle.ENDED, ContainerStatus.RUNNING) or age_ms < TRANSITION_MS
                self._must(settled, "I7", f"{container.metadata.name} is stuck in {phase}")
                stopping = container.status.HasField("stop_requested") and phase not in lifecycle.ENDED
                in_time = not stopping or age_ms < TRANSITION_MS
                self._must(in_time, "I7", f"{container.metadata.name} was to be stopped and runs")
            if any(v.not_before_ms <= now_ms for v in gap.vacancies):
                reason = explain(cluster, workload).reason
                self._must(
                    reason.code != Reason.WAITING_FOR_SCHEDULER and bool(reason.code),
                    "I7",
                    f"{name} waits for no reason",
                )
        for container in self.containers():
            orphan = ("Workload", container.spec.workload_uid) in self.removed
            self._must(not orphan, "I7", f"{container.metadata.name} outlived its workload")

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
            raise Broken(f"{invariant}: {what}")
