"""How agents get in: join tokens, first certificates, and the authority behind them.

The join token that a person carries to a machine is two things: a secret, of which the log has the hash as of every
token, and the fingerprint of the authority. With the fingerprint the agent makes sure that it talks to this cluster
before it shows the secret. Whoever calls `Join` is nobody yet, so it answers everything that is wrong with a token
as a failed log-in, and counts those that nobody was ever given against the caller's address.
"""

from collections.abc import Callable, Iterable

import grpc

from pwm import certificates
from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.events_pb2 import TokenIssued
from pwm.api.v1.identity_pb2 import TokenSpec
from pwm.controlplane.auth import new_token, token_uid
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import Commands, timestamp
from pwm.controlplane.context import CallContext
from pwm.controlplane.core import authorities, joining
from pwm.controlplane.core.authz import ALL
from pwm.controlplane.core.decide import Change, Refusal
from pwm.controlplane.credentials import CannotServe, Credentials
from pwm.controlplane.errors import ApiError, LoginFailed, conflict, invalid, unavailable
from pwm.controlplane.memberships import JOIN_PREFIX, Memberships
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.view import View


class Joining:
    def __init__(
        self,
        *,
        view: View,
        commands: Commands,
        clock: Clock,
        credentials: Credentials | None,
        memberships: Memberships | None,
        replicas: Callable[[], Iterable[dict[str, object]]],
    ) -> None:
        """`credentials`, `memberships`: None without TLS. `replicas`: what those that are here say of themselves."""
        self._view = view
        self._commands = commands
        self._clock = clock
        self._credentials = credentials
        self._memberships = memberships
        self._replicas = replicas

    @property
    def _in_use(self) -> Credentials:
        """Raises ApiError FAILED_PRECONDITION."""
        if self._credentials is None:
            raise ApiError(
                grpc.StatusCode.FAILED_PRECONDITION,
                "this controller runs without TLS, so there are no certificates",
                next_step="start it without --plaintext",
            )
        return self._credentials

    def authorities(self) -> api.GetAuthoritiesResponse:
        known = self._in_use
        return api.GetAuthoritiesResponse(certificates=known.roots, id=known.bundle_id, authorities=known.entries())

    async def join(self, request: api.JoinRequest) -> api.JoinResponse:
        _ = self._in_use
        assert self._memberships is not None, "there is TLS"
        try:
            if request.certificate:
                return await self._memberships.come_back(request)
            return await self._memberships.join(request)
        except certificates.BadRequest as error:
            raise invalid(str(error)) from error
        except joining.NotAdmitted as error:
            # Who has something that was good once has guessed nothing, and is not to be banned for it: an agent that is
            # shut out asks again and again, and joins from the same address when it is given another token.
            guessed = isinstance(error, joining.Unknown)
            raise LoginFailed(str(error), next_step=error.next_step, is_guess=guessed) from error
        except Refusal as error:
            raise invalid(str(error), next_step=error.next_step) from error

    async def create_token(
        self, request: api.CreateJoinTokenRequest, context: CallContext
    ) -> api.CreateJoinTokenResponse:
        known = self._in_use
        try:
            asked_ms = request.lifetime.ToMilliseconds() if request.HasField("lifetime") else None
            lifetime_ms = joining.check_lifetime(joining.DEFAULT_LIFETIME_MS if asked_ms is None else asked_ms)
            node = joining.check_node_name(request.node) if request.node else ALL
        except Refusal as error:
            raise invalid(str(error), next_step=error.next_step) from error
        secret = new_token()
        uid = token_uid(secret)
        spec = TokenSpec(node=node, join=True, description=f"made by {context.principal.name}")
        spec.expires_at.CopyFrom(timestamp(self._clock.now_ms() + lifetime_ms))
        await self._commands.run(
            lambda: [Change("Token", uid, uid, "", None, (TokenIssued(spec=spec),))], actor=context.principal.actor
        )
        here = list(self._replicas())
        return api.CreateJoinTokenResponse(
            token=f"{JOIN_PREFIX}{known.fingerprint}.{secret}",
            expires_at=spec.expires_at,
            controllers=sorted(str(about.get("peer", "")) for about in here),
            servers=sorted(str(about.get("address", "")) for about in here),
        )

    async def rotate(self, request: api.RotateAuthorityRequest) -> api.RotateAuthorityResponse:
        known = self._in_use
        asked = request.HasField("trust_old_for")
        trust_old_for_ms = request.trust_old_for.ToMilliseconds() if asked else authorities.OVERLAP_MS
        try:
            await known.rotate(trust_old_for_ms=trust_old_for_ms)
        except Refusal as error:
            made = conflict if error.conflict else invalid
            raise made(str(error), next_step=error.next_step) from error
        except (store_errors.StoreError, CannotServe) as error:
            raise unavailable(str(error)) from error
        entries = known.entries()
        return api.RotateAuthorityResponse(authority=entries[0], old=entries[1] if len(entries) > 1 else None)
