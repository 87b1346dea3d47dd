"""`pwm admin can`, and what `pwm whoami` says of permissions: the rules, asked instead of applied."""

from collections.abc import Mapping

from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.identity_pb2 import Role, User
from pwm.controlplane.auth import Authorizer, Principal
from pwm.controlplane.core import authz, kinds
from pwm.controlplane.core.document import suggestion
from pwm.controlplane.core.verbs import VERBS
from pwm.controlplane.errors import invalid, not_found
from pwm.controlplane.view import View

_VERBS = {verb.lower(): verb for verb in VERBS}


class AccessQuestions:
    def __init__(self, *, view: View, authorizer: Authorizer) -> None:
        self._view = view
        self._authorizer = authorizer

    def can(self, request: api.CanRequest, principal: Principal) -> api.CanResponse:
        """Raises ApiError PERMISSION_DENIED, before it says whether there is such a user; INVALID_ARGUMENT."""
        name = request.user or principal.name
        self._authorizer.require(principal, verb="get", kind="User", name=name)
        user: User | None = self._view.by_name("User", name)
        if user is None:
            raise not_found(f"there is no User {name}", next_step="pwm get users lists what there is")
        verb, kind = _verb(request.verb), _kind(request.kind)
        group = "" if kind in authz.CLUSTER_KINDS else request.group or authz.default_group(user)
        ruling = authz.explain_access(
            user, self._authorizer.roles, verb=verb, kind=kind, group=group, name=request.name
        )
        return api.CanResponse(allowed=ruling.allowed, rule=str(ruling), user=name, verb=verb, kind=kind, group=group)


def permissions_of(user: User, roles: Mapping[str, Role]) -> list[api.Permission]:
    return [api.Permission(group=group, kind=kind, verbs=held) for group, kind, held in authz.permissions(user, roles)]


def _verb(word: str) -> str:
    canonical = authz.canonical(word)
    if canonical not in _VERBS:
        raise invalid(f"there is no verb {word!r}", next_step=suggestion(word, VERBS))
    return _VERBS[canonical]


def _kind(word: str) -> str:
    kind = kinds.kind_named(word)
    if kind is None:
        raise invalid(f"there is no kind {word!r}", next_step=suggestion(word, kinds.spellings()))
    return kind
