"""Addresses of notices: which may be written, who sees them, and that documents keep them."""

import pytest

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1.common_pb2 import Actor
from pwm.api.v1.identity_pb2 import User
from pwm.api.v1.workload_pb2 import Notify, Workload
from pwm.controlplane.core import targets
from pwm.controlplane.core.decide import Refusal
from pwm.controlplane.core.targets import Allowed

HOOK = "https://hooks.example.org/pwm?x=1#0123456789abcdef"


def workload(*to: str, creator: str = "eve") -> Workload:
    made = Workload(kind="Workload")
    made.metadata.created_by.CopyFrom(Actor(type=Actor.USER, name=creator))
    made.spec.notify.to.extend(to)
    return made


@pytest.mark.parametrize(
    "address", [HOOK, HOOK.replace("https", "http"), "tgram://123:token/456", "tgram://1234", "tgram://***", "https://***"]
)  # fmt: skip
def test_these_addresses_may_be_written(address: str) -> None:
    assert targets.wrong(address) == ("", "")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("lunch", "is no address"),
        ("mailto:eve@example.org", "is no address"),
        ("tgram://a b", "is no address"),
        ("tgram://a\nb", "is no address"),
        ("x://" + "y" * 3000, "is no address"),
        ("syslog://daemon", "the controller's machine"),
        ("file:///etc/passwd", "the controller's machine"),
        ("https://hooks.example.org/pwm", "without a key"),
        ("https://hooks.example.org/pwm#short", "without a key"),
        ("https:///pwm#0123456789abcdef", "without a key"),
        ("https://[::1/#0123456789abcdef", "without a key"),
    ],
)
def test_others_are_refused_with_a_way_out(address: str, said: str) -> None:
    found, step = targets.wrong(address)
    assert said in found
    assert step


@pytest.mark.parametrize(
    ("patterns", "address", "may"),
    [
        ((), HOOK, True),
        (("tgram://*",), HOOK, False),
        (("tgram://*",), "tgram://token/1", True),
        (("https://*.example.org",), HOOK, True),
        (("https://*.example.org",), HOOK.replace("https", "http"), False),
        (("https://*.example.org",), "https://example.org.evil.com/#0123456789abcdef", False),
        (("https://*.example.org",), "https://evil.com/.example.org#0123456789abcdef", False),
        (("https://*.example.org",), "https://a.example.org@evil.com/#0123456789abcdef", False),
        (("tgram://*",), "mailto:eve@example.org", True),
    ],
)
def test_an_admin_says_which_may_be_written(patterns: tuple[str, ...], address: str, may: bool) -> None:
    assert Allowed(patterns).written(address) is may


def test_only_the_creator_sees_the_addresses_of_a_workload() -> None:
    mine = workload(HOOK, "tgram://token/1")
    assert targets.hidden_from(mine, "eve") is mine
    assert list(targets.hidden_from(mine, "ann").spec.notify.to) == ["https://***", "tgram://***"]
    assert list(mine.spec.notify.to) == [HOOK, "tgram://token/1"]


def test_only_a_user_sees_the_own_addresses() -> None:
    user = User(kind="User")
    user.metadata.name = "eve"
    user.spec.notify.to.append(HOOK)
    assert targets.hidden_from(user, "eve") is user
    assert list(targets.hidden_from(user, "admin").spec.notify.to) == ["https://***"]


def test_an_event_has_the_addresses_for_whoever_created_what_it_is_about() -> None:
    applied = ev.Event(
        workload_applied=ev.WorkloadApplied(spec=workload(HOOK).spec), actor=Actor(name="eve"), version=1
    )
    assert targets.hidden_in_event(applied, "eve") is applied
    assert list(targets.hidden_in_event(applied, "ann").workload_applied.spec.notify.to) == ["https://***"]
    assert list(applied.workload_applied.spec.notify.to) == [HOOK]
    applied.version, applied.actor.name = 2, "ann"
    assert HOOK not in str(targets.hidden_in_event(applied, "ann"))
    user = ev.Event(user_applied=ev.UserApplied(), name="eve", actor=Actor(name="admin"))
    user.user_applied.spec.notify.to.append(HOOK)
    assert HOOK not in str(targets.hidden_in_event(user, "admin"))
    assert targets.hidden_in_event(user, "eve") is user


def test_every_event_that_has_addresses_is_masked() -> None:
    """A payload that has a spec with `notify` must be known to what masks."""
    fields = ev.Event.DESCRIPTOR.oneofs_by_name["payload"].fields
    with_notify = {
        field.name
        for field in fields
        if "spec" in field.message_type.fields_by_name
        and "notify" in field.message_type.fields_by_name["spec"].message_type.fields_by_name
    }
    for name in with_notify:
        event = ev.Event(actor=Actor(name="eve"))
        getattr(event, name).spec.notify.CopyFrom(Notify(to=[HOOK]))
        assert HOOK not in str(targets.hidden_in_event(event, "ann")), name
    assert with_notify


def test_a_document_keeps_what_it_has_masked() -> None:
    before = workload("tgram://token/1", HOOK, "tgram://token/2")
    wanted = workload("tgram://***", "slack://new", "tgram://***", "https://***")
    kept = targets.kept(wanted, before)
    assert list(kept.spec.notify.to) == ["tgram://token/1", "slack://new", "tgram://token/2", HOOK]
    assert wanted.spec.notify.to[0] == "tgram://***"
    assert targets.kept(before, None) is before


@pytest.mark.parametrize("before", [None, workload(), workload("slack://a/b")])
def test_what_is_not_there_cannot_be_kept(before: Workload | None) -> None:
    with pytest.raises(Refusal, match="there is no address tgram://"):
        targets.kept(workload("tgram://***"), before)
