"""Every kind of event has words for people."""

import pytest

from pwm.api.v1 import events_pb2 as ev
from pwm.controlplane.services.event_text import line, said

PAYLOADS = [field.name for field in ev.Event.DESCRIPTOR.oneofs_by_name["payload"].fields]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_every_event_is_said_in_words(payload: str) -> None:
    event = ev.Event(kind="Workload", name="train", group="vision", version=1)
    getattr(event, payload).SetInParent()
    text = said(event)
    assert text
    assert "unknown" not in text
    assert "vision/train" in line(event)
