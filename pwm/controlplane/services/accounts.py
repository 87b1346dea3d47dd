"""What somebody may have at once and what is in use of it, for `pwm whoami`."""

from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.common_pb2 import Resources
from pwm.api.v1.identity_pb2 import Group, ResourceLimits, User
from pwm.controlplane.core.limits import GROUP, USER, Account
from pwm.controlplane.core.scheduling.cluster import Cluster
from pwm.controlplane.view import View


class AccountReader:
    def __init__(self, *, view: View, cluster: Cluster) -> None:
        self._view = view
        self._cluster = cluster

    def of(self, user: User) -> list[api.Account]:
        """The user's own account, then those of its groups that have limits."""
        own = Account(USER, user.metadata.name)
        found = [self._read(own, user.spec.limits.resources)]
        for name in dict.fromkeys(membership.name for membership in user.spec.groups):
            group: Group | None = self._view.by_name(GROUP, name)
            if group is not None and group.spec.limits.HasField("resources"):
                found.append(self._read(Account(GROUP, name), group.spec.limits.resources))
        return found

    def _read(self, account: Account, limits: ResourceLimits) -> api.Account:
        use = self._cluster.accounts.use(account)
        used = Resources(cpu_millis=use.cpu_millis, memory_bytes=use.memory_bytes, gpus=use.gpus)
        return api.Account(kind=account.kind, name=account.name, limits=limits, workloads=use.workloads, used=used)
