"""Users look after what they are told themselves, and only after that."""

from typing import Any

import pytest

from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.workload_pb2 import Notify
from pwm.controlplane.context import CallContext
from pwm.controlplane.core.targets import Allowed
from pwm.controlplane.delivery.courier import MailServer, NoticeSettings
from pwm.controlplane.errors import ApiError
from pwm.controlplane.services.notices import NoticeService
from tests.unit.controlplane.conftest import Plane, add_user

HOOK = "https://hooks.example.org/#0123456789abcdef"
MAIL = MailServer(host="h", port=25, sender="pwm@example.org")


async def service(plane: Plane, settings: NoticeSettings | None = None) -> tuple[NoticeService, CallContext]:
    principal = await add_user(plane, "eve", {"vision": {"Workload": ["get"]}})
    return NoticeService(view=plane.view, commands=plane.commands, settings=settings), CallContext(principal=principal)


def wish(**fields: Any) -> api.SetNoticesRequest:
    return api.SetNoticesRequest(notify=Notify(**fields))


async def test_a_user_sets_the_own_settings_and_nothing_else_changes(plane: Plane) -> None:
    notices, context = await service(plane)
    before = plane.view.by_name("User", "eve").spec.groups
    answer = await notices.SetNotices(wish(by_email=True, on=["crashed"], to=[HOOK]), context)
    assert list(answer.notify.to) == [HOOK]
    state = plane.view.by_name("User", "eve")
    assert state.spec.notify == answer.notify
    assert state.spec.groups == before
    seen = await notices.GetNotices(api.GetNoticesRequest(), context)
    assert seen.notify == answer.notify
    again = await notices.SetNotices(wish(by_email=True, on=["crashed"], to=["https://***"]), context)
    assert again.notify == answer.notify
    assert plane.view.by_name("User", "eve").metadata.version == state.metadata.version
    await notices.SetNotices(api.SetNoticesRequest(), context)
    assert not plane.view.by_name("User", "eve").spec.HasField("notify")


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (wish(on=["lunch"]), "'lunch' is nothing to be told of"),
        (wish(to=["https://hooks.example.org/pwm"]), "without a key"),
        (wish(to=["mailto:everybody@example.org"]), "is no address"),
        (wish(to=["tgram://***"]), "there is no address tgram"),
        (wish(to=[HOOK] * 17), "16 addresses are the most"),
    ],
)
async def test_what_a_document_may_not_say_is_refused_here_too(
    plane: Plane, request_: api.SetNoticesRequest, said: str
) -> None:
    notices, context = await service(plane)
    with pytest.raises(ApiError, match=said):
        await notices.SetNotices(request_, context)
    assert not plane.view.by_name("User", "eve").spec.HasField("notify")


@pytest.mark.parametrize(
    ("settings", "wanted", "said"),
    [
        (None, wish(by_email=True), ["byEmail"]),
        (NoticeSettings(mail=MAIL), wish(by_email=True), ["byEmail"]),  # she has no address
        (NoticeSettings(), wish(to=[HOOK, "tgram://1234"]), ["to[1]"]),
        (NoticeSettings(allowed=Allowed(("tgram://*",))), wish(to=[HOOK, "tgram://t/1"]), ["to[0]"]),
        (NoticeSettings(telegram_token="t"), wish(to=["tgram://1234"]), []),
    ],
)
async def test_what_will_not_be_sent_is_said_at_once(
    plane: Plane, settings: NoticeSettings | None, wanted: api.SetNoticesRequest, said: list[str]
) -> None:
    notices, context = await service(plane, settings)
    answer = await notices.SetNotices(wanted, context)
    assert [warning.field for warning in answer.warnings] == said
    assert "0123456789abcdef" not in str(answer.warnings)
