"""What admins ask of the control plane itself: status, proof, drills, word on dead nodes, agents' credentials."""

import grpc

from pwm import lifecycle
from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.events_pb2 import TokenIssued
from pwm.api.v1.identity_pb2 import TokenSpec
from pwm.controlplane.audit import AuditLog
from pwm.controlplane.auth import Authorizer, new_token, token_uid
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import Commands, timestamp
from pwm.controlplane.context import CallContext
from pwm.controlplane.core.authz import ALL
from pwm.controlplane.core.decide import Change, change, confirm_dead
from pwm.controlplane.errors import ApiError, not_found, unavailable
from pwm.controlplane.presence import Presence
from pwm.controlplane.services.access import AccessQuestions
from pwm.controlplane.services.cluster_status import ClusterStatus
from pwm.controlplane.services.drill import Drill
from pwm.controlplane.services.joining import Joining
from pwm.controlplane.services.node_credentials import NodeCredentials
from pwm.controlplane.services.restore import Restore
from pwm.controlplane.sight import Sight
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.verify import verify
from pwm.controlplane.view import View


class AdminService:
    def __init__(
        self,
        *,
        view: View,
        store: EventStore,
        audit_log: AuditLog,
        commands: Commands,
        clock: Clock,
        presence: Presence,
        status: ClusterStatus,
        drill: Drill,
        restore: Restore,
        authorizer: Authorizer,
        joining: Joining,
    ) -> None:
        self._view = view
        self._store = store
        self._audit_log = audit_log
        self._commands = commands
        self._clock = clock
        self._presence = presence
        self._status = status
        self._drill = drill
        self._restore = restore
        self._authorizer = authorizer
        self._joining = joining
        self._node_credentials = NodeCredentials(view=view, commands=commands, clock=clock)
        self._questions = AccessQuestions(view=view, authorizer=authorizer)

    async def Can(self, request: api.CanRequest, context: CallContext) -> api.CanResponse:
        return self._questions.can(request, context.principal)

    async def GetStatus(self, request: api.GetStatusRequest, context: CallContext) -> api.GetStatusResponse:
        return await self._status.read()

    async def Drill(self, request: api.DrillRequest, context: CallContext) -> api.DrillResponse:
        return await self._drill.run(request, by=context.principal.name)

    async def Verify(self, request: api.VerifyRequest, context: CallContext) -> api.VerifyResponse:
        try:
            return await verify(self._store, self._view, self._audit_log)
        except store_errors.StoreError as error:
            raise unavailable(f"the log cannot be read now: {error}") from error

    async def ConfirmDead(self, request: api.ConfirmDeadRequest, context: CallContext) -> api.ConfirmDeadResponse:
        """Only says so in the log; the zone's leader does to the containers what follows."""
        name = request.node
        containers: list[str] = []

        def decide() -> list[Change]:
            node = self._view.by_name("Node", name)
            if node is None:
                raise not_found(f"there is no Node {name}", next_step="pwm get nodes lists what there is")
            alive = [c for c in self._view.containers_on(name) if c.status.phase not in lifecycle.ENDED]
            containers[:] = sorted(f"{c.metadata.group}/{c.metadata.name}" for c in alive)
            return [change(node, *confirm_dead(node))]

        if self._presence.contact(name).connected:
            raise _is_alive(name)
        try:
            outcome = await self._commands.run(
                decide, actor=context.principal.actor, guards=(self._presence.still_silent(name),)
            )
        except store_errors.GuardFailed as error:
            raise _is_alive(name) from error
        seen = filter(Sight(self._authorizer, context.principal).container, containers)
        return api.ConfirmDeadResponse(revision=outcome.revision, containers=seen)

    async def AcceptRestore(self, request: api.AcceptRestoreRequest, context: CallContext) -> api.AcceptRestoreResponse:
        return await self._restore.accept(dry_run=request.dry_run, by=context.principal.name)

    async def CreateJoinToken(
        self, request: api.CreateJoinTokenRequest, context: CallContext
    ) -> api.CreateJoinTokenResponse:
        return await self._joining.create_token(request, context)

    async def ListNodeCredentials(
        self, request: api.ListNodeCredentialsRequest, context: CallContext
    ) -> api.ListNodeCredentialsResponse:
        return self._node_credentials.listed(request)

    async def RevokeNodeCredentials(
        self, request: api.RevokeNodeCredentialsRequest, context: CallContext
    ) -> api.RevokeNodeCredentialsResponse:
        return await self._node_credentials.revoke(request, context)

    async def RotateAuthority(
        self, request: api.RotateAuthorityRequest, context: CallContext
    ) -> api.RotateAuthorityResponse:
        return await self._joining.rotate(request)

    async def CreateNodeToken(
        self, request: api.CreateNodeTokenRequest, context: CallContext
    ) -> api.CreateNodeTokenResponse:
        token = new_token()
        spec = TokenSpec(node=request.node or ALL, description=f"made by {context.principal.name}")
        if request.HasField("lifetime"):
            spec.expires_at.CopyFrom(timestamp(self._clock.now_ms() + request.lifetime.ToMilliseconds()))
        uid = token_uid(token)
        await self._commands.run(
            lambda: [Change("Token", uid, uid, "", None, (TokenIssued(spec=spec),))], actor=context.principal.actor
        )
        return api.CreateNodeTokenResponse(token=token)


def _is_alive(node: str) -> ApiError:
    return ApiError(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"node {node} is not dead: its agent is connected",
        next_step=f"stop the agent or the machine first, if it has to go; pwm describe node {node} shows its state",
    )
