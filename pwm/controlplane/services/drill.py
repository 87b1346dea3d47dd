"""A failure on purpose, on a live cluster: `pwm admin failover` asks for it and measures what it costs.

It is refused unless it can do no more than that: another replica must be there to take over, and everybody
must have seen everything. What fails is the replica that leads a role, at the moment it is asked; the request may
name that replica, so that a request that was sent twice does not bring down the next leader as well.
"""

import grpc
import structlog

from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.peer_pb2 import FREEZE, RESIGN, FailRequest, Failure
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import timestamp
from pwm.controlplane.errors import ApiError, invalid, not_found, unavailable
from pwm.controlplane.replicas import FAIL_AFTER_S, CannotFail, Replicas
from pwm.controlplane.services.cluster_status import ClusterStatus

log = structlog.get_logger(__name__)

# Longer than a leader's lease, so that another takes over.
FREEZE_DEFAULT_MS = 5_000
# A replica that stays frozen for longer is an outage, not a drill.
FREEZE_MOST_MS = 60_000
# What is on its way at any moment of a busy cluster.
CAUGHT_UP_REVISIONS = 50


class Drill:
    def __init__(self, *, status: ClusterStatus, replicas: Replicas, clock: Clock) -> None:
        self._status = status
        self._replicas = replicas
        self._clock = clock

    async def run(self, request: api.DrillRequest, *, by: str) -> api.DrillResponse:
        """Raises ApiError when the cluster is not fit for it."""
        if not request.failure:
            raise invalid("which failure?", next_step="KILL, FREEZE or RESIGN")
        failing = FailRequest(role=request.role, failure=request.failure)
        if request.failure == FREEZE:
            failing.freeze.FromMilliseconds(_freeze_ms(request))
        victim = fit_for_drill(await self._status.read(), request.role)
        if request.replica and request.replica != victim:
            raise _unfit(
                f"{request.role} is led by {victim}, not by {request.replica} any more", next_step="Try again."
            )
        log.warning("a drill", role=request.role, failure=Failure.Name(request.failure), replica=victim, by=by)
        try:
            now_ms = self._clock.now_ms()
            await self._replicas.fail(victim, failing)
            # Whoever is asked answers first.
            fails_ms = now_ms + (0 if request.failure == RESIGN else int(FAIL_AFTER_S * 1000))
        except CannotFail as error:
            raise unavailable(str(error), next_step="Look at `pwm admin status`, and try again.") from error
        return api.DrillResponse(replica=victim, time=timestamp(fails_ms))


def fit_for_drill(status: api.GetStatusResponse, role: str) -> str:
    """The replica that leads the role; raises ApiError when nobody could take over from it well."""
    replicas = list(status.replicas)
    if len(replicas) < 2:
        raise _unfit("there is one replica only, and nobody to take over", next_step="Start another `pwm controller`.")
    for replica in replicas:
        if replica.trouble:
            raise _unfit(f"replica {replica.id} ({replica.address}) {replica.trouble}")
        if replica.HasField("stale_since"):
            raise _unfit(f"replica {replica.id} ({replica.address}) cannot reach etcd")
        if replica.lag > CAUGHT_UP_REVISIONS:
            raise _unfit(f"replica {replica.id} ({replica.address}) is {replica.lag} changes behind")
    leader = next((leader for leader in status.leaders if leader.role == role), None)
    if leader is None:
        roles = ", ".join(leader.role for leader in status.leaders)
        raise not_found(f"nobody leads {role!r}", next_step=f"There are: {roles or 'no leaders at all'}.")
    if not leader.at_work:
        raise _unfit(f"{leader.replica} has only just begun to lead {role}")
    return leader.replica


def _freeze_ms(request: api.DrillRequest) -> int:
    asked_ms = request.freeze.ToMilliseconds() if request.HasField("freeze") else FREEZE_DEFAULT_MS
    if not 0 < asked_ms <= FREEZE_MOST_MS:
        raise invalid("a replica can be frozen for up to a minute", next_step="Choose a time from 1s to 60s.")
    return asked_ms


def _unfit(
    message: str, *, next_step: str = "Wait until `pwm admin status` shows all replicas up to date."
) -> ApiError:
    return ApiError(grpc.StatusCode.FAILED_PRECONDITION, message, next_step=next_step)
