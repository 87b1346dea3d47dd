"""Version and identity."""

from pwm.api.v1 import services_pb2 as api
from pwm.controlplane.auth import Authorizer
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import timestamp
from pwm.controlplane.context import CallContext
from pwm.controlplane.core.tokens import entry
from pwm.controlplane.services.access import permissions_of
from pwm.controlplane.services.accounts import AccountReader
from pwm.controlplane.services.joining import Joining
from pwm.controlplane.treasury import Treasury
from pwm.version import API_VERSION, OLDEST_CLIENT, VERSION


class SystemService:
    def __init__(
        self, clock: Clock, authorizer: Authorizer, joining: Joining, accounts: AccountReader, treasury: Treasury
    ) -> None:
        self._clock = clock
        self._authorizer = authorizer
        self._joining = joining
        self._accounts = accounts
        self._treasury = treasury

    async def GetVersion(self, request: api.GetVersionRequest, context: CallContext) -> api.GetVersionResponse:
        return api.GetVersionResponse(version=VERSION, api_version=API_VERSION, oldest_client=OLDEST_CLIENT)

    async def GetAuthorities(
        self, request: api.GetAuthoritiesRequest, context: CallContext
    ) -> api.GetAuthoritiesResponse:
        return self._joining.authorities()

    async def Join(self, request: api.JoinRequest, context: CallContext) -> api.JoinResponse:
        return await self._joining.join(request)

    async def WhoAmI(self, request: api.WhoAmIRequest, context: CallContext) -> api.WhoAmIResponse:
        principal = context.principal
        return api.WhoAmIResponse(
            user=principal.name,
            default_group=principal.default_group,
            groups=[membership.name for membership in principal.user.spec.groups],
            token=entry(principal.token, now_ms=self._clock.now_ms(), current=True) if principal.token else None,
            permissions=permissions_of(principal.user, self._authorizer.roles),
            accounts=self._accounts.of(principal.user),
            credits=self._treasury.of_user(principal.user) if self._treasury.in_use else None,
            credits_reset_at=timestamp(self._treasury.reset_at_ms()),
        )
