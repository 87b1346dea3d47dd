"""What users are told and where: each looks after the own settings, and is told what of them has no effect.

They are a part of the User, which only admins apply: here a user changes this part of the own one, and nothing else.
"""

from collections.abc import Iterator

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.identity_pb2 import User
from pwm.api.v1.services_pb2 import ApplyResult, Problem
from pwm.api.v1.workload_pb2 import Notify, Workload
from pwm.controlplane.commands import Commands
from pwm.controlplane.context import CallContext
from pwm.controlplane.core import targets
from pwm.controlplane.core.decide import Change, Refusal, change
from pwm.controlplane.core.kinds import Applied
from pwm.controlplane.core.notices import KINDS
from pwm.controlplane.core.schema import MAX_ADDRESSES
from pwm.controlplane.delivery.courier import NoticeSettings
from pwm.controlplane.errors import invalid, not_found
from pwm.controlplane.view import View

NO_ADDRESS = "there is no mail address of yours"


class NoticeService:
    def __init__(self, *, view: View, commands: Commands, settings: NoticeSettings | None) -> None:
        """`settings` None: nothing is ever sent."""
        self._view = view
        self._commands = commands
        self._settings = settings

    async def GetNotices(self, request: api.GetNoticesRequest, context: CallContext) -> api.GetNoticesResponse:
        user = self._user(context)
        answer = api.GetNoticesResponse(email=user.spec.contact.email, warnings=self._warnings(user))
        if user.spec.HasField("notify"):
            answer.notify.CopyFrom(user.spec.notify)
        return answer

    async def SetNotices(self, request: api.SetNoticesRequest, context: CallContext) -> api.SetNoticesResponse:
        _check(request.notify)

        def decide() -> list[Change]:
            user = self._user(context)
            wanted = User()
            wanted.CopyFrom(user)
            wanted.spec.ClearField("notify")
            if request.HasField("notify"):
                wanted.spec.notify.CopyFrom(request.notify)
            wanted = targets.kept(wanted, user)
            if wanted.spec == user.spec:
                return []
            return [change(user, ev.UserApplied(labels=dict(user.metadata.labels), spec=wanted.spec))]

        try:
            outcome = await self._commands.run(decide, actor=context.principal.actor)
        except Refusal as error:
            raise invalid(str(error), next_step=error.next_step) from error
        user = self._user(context)
        answer = api.SetNoticesResponse(
            email=user.spec.contact.email, warnings=self._warnings(user), revision=outcome.revision
        )
        if user.spec.HasField("notify"):
            answer.notify.CopyFrom(user.spec.notify)
        return answer

    def _user(self, context: CallContext) -> User:
        user: User | None = self._view.by_name("User", context.principal.name)
        if user is None:
            raise not_found(f"there is no User {context.principal.name}")
        return user

    def _warnings(self, user: User) -> list[Problem]:
        return list(unsent(user.spec.notify, user, settings=self._settings))


def _check(notify: Notify) -> None:
    """As documents are checked. Raises ApiError INVALID_ARGUMENT."""
    for word in notify.on:
        if word not in KINDS:
            raise invalid(f"{word!r} is nothing to be told of", next_step=f"write some of {', '.join(KINDS)}")
    if len(notify.to) > MAX_ADDRESSES or len(notify.on) > MAX_ADDRESSES:
        raise invalid(f"{MAX_ADDRESSES} addresses are the most")
    for number, address in enumerate(notify.to, start=1):
        said, step = targets.wrong(address)
        if said:
            # Not the address itself: there may be a token in it.
            raise invalid(f"address {number} {said}", next_step=step)


def warn_unsent(message: Applied, result: ApplyResult, *, settings: NoticeSettings | None, caller: User) -> None:
    """Say of what was applied that it asks for notices that nobody will get."""
    if not isinstance(message, Workload | User):
        return
    for problem in unsent(message.spec.notify, caller if isinstance(message, Workload) else message, settings=settings):
        result.warnings.add(field=f"spec.notify.{problem.field}", message=problem.message)


def unsent(notify: Notify, user: User, *, settings: NoticeSettings | None) -> Iterator[Problem]:
    """What is asked for and not sent, as the cluster is set up."""
    if settings is None:
        settings = NoticeSettings()
    if notify.by_email:
        email = user.spec.contact.email
        refusal = settings.refusal(targets.MAIL + email) if email else NO_ADDRESS
        if refusal:
            yield Problem(field="byEmail", message=f"no mail is sent: {refusal}")
    for number, address in enumerate(notify.to):
        refusal = settings.refusal(address)
        if refusal and address != targets.masked(address):
            yield Problem(field=f"to[{number}]", message=f"nothing is sent to {targets.masked(address)}: {refusal}")
