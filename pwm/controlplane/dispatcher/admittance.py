"""Who at the agents' port may speak for which node, and for how long.

With TLS an agent is known by its certificate, which TLS has looked at already; that its membership still counts is in
the log (`core.joining`). Without TLS it shows a node token. Either may end while calls are open: each call is looked at
again when something about its node or its token changes, and ends at once when it may not go on. So what an admin
revokes is out at every replica as soon as that has read the log.

A node that has joined a moment ago, at another replica, is in the log and maybe not in the view yet: nobody is sent
away before the view has caught up.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import structlog

from pwm.api.v1.agent_pb2 import RenewRequest, RenewResponse
from pwm.api.v1.identity_pb2 import Token
from pwm.api.v1.node_pb2 import Node
from pwm.certificates import Holder
from pwm.controlplane.auth import token_uid
from pwm.controlplane.clock import Clock
from pwm.controlplane.core import joining, tokens
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.view import View, ViewChange

log = structlog.get_logger(__name__)

# A replica whose view is further behind than this leaves the agent to another.
VIEW_PATIENCE_S = 5.0
# How often it is looked whether a token of an open call has expired. A certificate that ends takes no open call along:
# its agent has another one by then, and a clock that was set wrong must not cut off every node.
LOOK_EVERY_S = 30.0
AGAIN_WITHOUT_TLS = "an admin makes one with `pwm admin node-token NODE`"


class Issuance(Protocol):
    """Who knows nodes by their certificates, and renews them: `memberships.Memberships`."""

    @property
    def bundle_id(self) -> str: ...

    def holder(self, auth_context: dict[str, Any]) -> Holder | None: ...

    async def renew(self, request: RenewRequest, holder: Holder) -> RenewResponse:
        """Raises ValueError or Refusal, a sentence for whoever asked; ApiError."""
        ...


@dataclass(eq=False)
class Caller:
    """Who has opened a call. Exactly one of `holder` and `token_uid` says so."""

    # The node that the caller may speak for; "": any.
    node: str
    holder: Holder | None = None
    token_uid: str = ""
    # Why the call has to end.
    ended: "asyncio.Future[str]" = field(default_factory=lambda: asyncio.get_running_loop().create_future(), repr=False)


class CallerGone(Exception):
    """What the caller showed is good for nothing any more; the message says why."""


class Admittance:
    def __init__(
        self,
        *,
        view: View,
        clock: Clock,
        authenticate: Callable[[str], Awaitable[str | None]],
        node_revision: Callable[[str], Awaitable[int]],
        issuance: Issuance | None = None,
    ) -> None:
        """`authenticate` maps a node token to the node it is good for ("" = any); None: not a node's token.

        With `issuance` tokens do not count. `node_revision` asks the store when something about a node was written
        last, 0 if there is no such node; it may raise StoreError.
        """
        self._view = view
        self._clock = clock
        self._authenticate = authenticate
        self._node_revision = node_revision
        self._issuance = issuance
        # Open calls, and the node that each is about.
        self._open: dict[Caller, str] = {}
        view.observe(self._changed)

    async def identify(self, context: Any) -> Caller:
        """Who calls, without a look at the log. Ends the call of who shows nothing."""
        if self._issuance is not None:
            holder = self._issuance.holder(context.auth_context())
            if holder is None:
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this is not the certificate of a node")
            assert holder is not None
            return Caller(holder.name, holder=holder)
        metadata = dict(context.invocation_metadata())
        scheme, _, token = str(metadata.get("authorization", "")).partition(" ")
        node = await self._authenticate(token) if scheme.lower() == "bearer" and token else None
        if node is None:
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "this is not a live node token; make one with `pwm admin node-token`"
            )
        return Caller(node or "", token_uid=token_uid(token))

    async def admit(self, caller: Caller, node: str, context: Any) -> None:
        """Returns when the caller may speak for the node now; else its call ends."""
        why = self._why_not(caller, node)
        if why:
            try:
                await self._view.wait_for(await self._node_revision(node), timeout_s=VIEW_PATIENCE_S)
            except (store_errors.StoreError, TimeoutError) as error:
                said = str(error) or "this replica lags behind the log"
                await context.abort(grpc.StatusCode.UNAVAILABLE, f"it cannot be known now who may join: {said}")
            why = self._why_not(caller, node)
        if why:
            log.info("agent refused", node=node, why=why)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, why)

    @contextmanager
    def open(self, caller: Caller, node: str) -> Iterator[None]:
        """While it is entered, what the caller showed is looked at again when it changes: see `until_gone`."""
        self._open[caller] = node
        self._look(caller)
        try:
            yield
        finally:
            del self._open[caller]

    async def until_gone(self, caller: Caller) -> None:
        """Raises CallerGone as soon as the call may not go on."""
        while not caller.ended.done():
            await asyncio.wait({caller.ended}, timeout=LOOK_EVERY_S)
            self._look(caller)
        raise CallerGone(caller.ended.result())

    def _changed(self, change: ViewChange) -> None:
        if change.kind not in ("Node", "Token"):
            return
        state: Any = change.after if change.after is not None else change.before
        for caller, node in self._open.items():
            if change.uid == caller.token_uid or (change.kind == "Node" and state.metadata.name == node):
                self._look(caller)

    def _look(self, caller: Caller) -> None:
        if not self._view.synced or caller.ended.done():
            return
        why = self._why_not(caller, self._open[caller])
        if why:
            caller.ended.set_result(why)

    def _why_not(self, caller: Caller, node_name: str) -> str:
        """Why the caller may not speak for the node; "": he may."""
        if caller.node not in ("", node_name):
            return f"this credential is for node {caller.node}, not for {node_name}"
        node: Node | None = self._view.by_name("Node", node_name)
        if caller.holder is not None:
            if joining.is_member(node, caller.holder.membership):
                return ""
            return f"{joining.why_no_member(node, node_name)}; {joining.AGAIN}"
        if not caller.node and node is not None and node.status.credentials.HasField("revoked_at"):
            return f"what node {node_name} had has been revoked: it needs a token by its name; {AGAIN_WITHOUT_TLS}"
        token: Token | None = self._view.get("Token", caller.token_uid)
        has_ended = token is not None and tokens.ended_ms(token, self._clock.now_ms()) > 0
        return f"this node token has ended; {AGAIN_WITHOUT_TLS}" if has_ended else ""
