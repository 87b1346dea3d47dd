"""How long containers have not used the GPUs they have, as far as this agent has watched them.

Every look at the GPUs that a heartbeat takes counts. A GPU that is as busy as the control plane says counts as used,
and its time without use begins again. Between two looks it may have been used, so a watch with too long a pause in it
proves nothing and begins anew; the same goes for one of which the driver gave no figures. An agent that has just
started knows nothing, and says so by reporting little. The time that is reported ends with the last look: what
is repeated because nothing new is known does not grow.

What follows from that is for the control plane (`core.idle`), which hears it with the heartbeats.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pwm.api.v1.agent_pb2 import ContainerActivity, GPUUsage
from pwm.api.v1.workload_pb2 import GPUActivity

# As the control plane has it when it says nothing.
USED_FROM_PERCENT = 5
# Heartbeats come each 5 s or more often. Several may fail, or wait for a driver.
MAX_PAUSE_MS = 60_000


@dataclass(slots=True)
class _Watch:
    """One GPU of one container: since when it is unused, and what was seen in that time."""

    since_ms: int
    last_ms: int
    seen_in_use: bool = False
    samples: int = 0
    most: float = 0.0
    total: float = 0.0


class ActivityWatch:
    def __init__(self) -> None:
        self._watches: dict[tuple[str, str], _Watch] = {}
        self._used_from = USED_FROM_PERCENT / 100

    def configure(self, used_from_percent: int) -> None:
        """From how much on a GPU counts as used; 0: the control plane is of a version that does not say."""
        self._used_from = (used_from_percent or USED_FROM_PERCENT) / 100

    def look(
        self, usage: Iterable[GPUUsage], holders: Mapping[str, Sequence[str]], *, now_ms: int
    ) -> list[ContainerActivity]:
        """Take a look into account, and report what is known then.

        `holders`: the GPUs, by uuid, of each container that runs, by uid. `now_ms`: of a clock of elapsed time.
        """
        seen = {gpu.uuid: gpu for gpu in usage}
        held = {(uid, uuid) for uid, uuids in holders.items() for uuid in uuids}
        self._watches = {
            key: watch for key, watch in self._watches.items() if key in held and now_ms - watch.last_ms <= MAX_PAUSE_MS
        }
        for uid, uuid in held:
            gpu = seen.get(uuid)
            if gpu is not None and gpu.measured:
                self._count((uid, uuid), gpu.utilization, now_ms)
        return [
            ContainerActivity(uid=uid, gpus=[self._report(uid, uuid, seen) for uuid in uuids])
            for uid, uuids in holders.items()
            if uuids and all((uid, uuid) in self._watches for uuid in uuids)
        ]

    def _count(self, key: tuple[str, str], utilization: float, now_ms: int) -> None:
        if utilization >= self._used_from:
            self._watches[key] = _Watch(now_ms, now_ms, seen_in_use=True)
            return
        watch = self._watches.setdefault(key, _Watch(now_ms, now_ms))
        watch.last_ms = now_ms
        watch.samples += 1
        watch.most = max(watch.most, utilization)
        watch.total += utilization

    def _report(self, uid: str, uuid: str, seen: Mapping[str, GPUUsage]) -> GPUActivity:
        watch = self._watches[uid, uuid]
        gpu = seen.get(uuid, GPUUsage())
        return GPUActivity(
            uuid=uuid,
            unused_ms=watch.last_ms - watch.since_ms,
            seen_in_use=watch.seen_in_use,
            samples=watch.samples,
            utilization_max=watch.most,
            utilization_mean=watch.total / watch.samples if watch.samples else 0.0,
            memory_used_bytes=gpu.memory_used_bytes,
            memory_total_bytes=gpu.memory_total_bytes,
        )
