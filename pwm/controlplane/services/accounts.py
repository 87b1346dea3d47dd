"""What users and groups may have at once and what they have of it: for `pwm limits`, and a part of `pwm whoami`.

Everybody sees his own account and those of his groups; those of others are for who may `get` that user or group. What
one may not see is left out of lists.
"""

from collections.abc import Iterable, Iterator

from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.common_pb2 import Resources
from pwm.api.v1.identity_pb2 import Group, ResourceLimits, User
from pwm.controlplane.auth import Authorizer, Principal
from pwm.controlplane.context import CallContext
from pwm.controlplane.core.authz import ALL
from pwm.controlplane.core.limits import GROUP, USER, Account
from pwm.controlplane.core.scheduling.cluster import Cluster
from pwm.controlplane.errors import invalid, not_found
from pwm.controlplane.view import View


class AccountReader:
    def __init__(self, *, view: View, cluster: Cluster) -> None:
        self._view = view
        self._cluster = cluster

    def of(self, user: User) -> list[api.Account]:
        """The user's own account, then those of its groups that have limits."""
        groups = (self._view.by_name(GROUP, membership.name) for membership in user.spec.groups)
        limited = {g.metadata.name: g for g in groups if g is not None and g.spec.limits.HasField("resources")}
        return [self.read(user), *map(self.read, limited.values())]

    def read(self, state: User | Group) -> api.Account:
        """The account of a user or of a group."""
        account = Account(USER if isinstance(state, User) else GROUP, state.metadata.name)
        return self._read(account, state.spec.limits.resources)

    def _read(self, account: Account, limits: ResourceLimits) -> api.Account:
        use = self._cluster.accounts.use(account)
        used = Resources(cpu_millis=use.cpu_millis, memory_bytes=use.memory_bytes, gpus=use.gpus)
        return api.Account(kind=account.kind, name=account.name, limits=limits, workloads=use.workloads, used=used)


class LimitService:
    def __init__(self, *, view: View, accounts: AccountReader, authorizer: Authorizer) -> None:
        self._view = view
        self._accounts = accounts
        self._authorizer = authorizer

    async def GetLimits(self, request: api.GetLimitsRequest, context: CallContext) -> api.GetLimitsResponse:
        caller = context.principal
        if request.everybody and request.user:
            raise invalid("limits are those of everybody or those of a user", next_step="leave one of the two out")
        if request.everybody:
            shown = [*self._seen(GROUP, caller), *self._seen(USER, caller)]
            accounts = [a for a in map(self._accounts.read, shown) if a.workloads or a.limits.ByteSize()]
        else:
            accounts = self._of_user(request.user, caller)
        return api.GetLimitsResponse(accounts=accounts, revision=self._view.revision)

    async def GetGroupLimits(
        self, request: api.GetGroupLimitsRequest, context: CallContext
    ) -> api.GetGroupLimitsResponse:
        group: Group | None = self._view.by_name(GROUP, request.group)
        if group is None:
            raise not_found(f"there is no group {request.group}")
        people = (user for user in self._seen(USER, context.principal) if isinstance(user, User))
        members = (user for user in people if _is_in(user, request.group))
        accounts = [self._accounts.read(group), *map(self._accounts.read, members)]
        return api.GetGroupLimitsResponse(accounts=accounts, revision=self._view.revision)

    def _of_user(self, name: str, caller: Principal) -> list[api.Account]:
        """A user's account, and those of its groups that the caller may see as well."""
        name = name or caller.name
        self._authorizer.require(caller, verb="get", kind=USER, name=name)
        user: User | None = self._view.by_name(USER, name)
        if user is None:
            raise not_found(f"there is no user {name}")
        return [a for a in self._accounts.of(user) if a.kind == USER or self._sees(caller, GROUP, a.name)]

    def _seen(self, kind: str, caller: Principal) -> Iterator[User | Group]:
        """By name."""
        states: Iterable[User | Group] = self._view.all(kind)
        for state in sorted(states, key=lambda state: state.metadata.name):
            if self._sees(caller, kind, state.metadata.name):
                yield state

    def _sees(self, caller: Principal, kind: str, name: str) -> bool:
        return self._authorizer.may(caller, verb="get", kind=kind, name=name)


def _is_in(user: User, group: str) -> bool:
    """As a member of its own; who is in all groups is in none of them."""
    return any(membership.name == group != ALL for membership in user.spec.groups)
