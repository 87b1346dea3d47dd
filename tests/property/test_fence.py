"""The old container has ended before its successor may start, whatever the network does to messages.

A node's whole story is drawn: settings, clocks that run a little fast or slow, heartbeats that take their time,
a replica that ends the session because the connection broke, because nothing came, or because it lost its own
place in the store, acknowledgements that arrive late or never. The agent's side is the real `Fence`, the
leader's the real `verdicts`; between them are the rules by which replicas acknowledge and presence counts.
"""

import asyncio
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from pwm.api.v1.node_pb2 import Node, NodeStatus
from pwm.controlplane.core.nodes import Contact, NodeTimes, verdicts
from pwm.nodeagent.fence import Fence, Fencing
from pwm.nodeagent.journal import Journal

# Clocks of elapsed time are off by some parts in a million; these are far worse.
DRIFT = st.floats(0.997, 1.003)
# An engine that is asked to end a container at once does it in this time.
ENGINE_MS = 500
SETTINGS = st.builds(
    lambda lost, share: NodeTimes.of(lost_after_ms=lost, self_fence_ms=int(lost * share)),
    st.integers(10_000, 600_000),
    st.floats(0.5, 0.79),
)


class Fallen(Exception):
    """The fence has fallen."""


def fall(fencing: Fencing) -> None:
    raise Fallen(fencing)


def ended_by_ms(times: NodeTimes, heard: list[tuple[int, int]], *, rate: float, journal: Journal) -> float:
    """True time at which the last container has ended. `heard`: (sent, answer arrives), in true time."""
    true_ms = 0.0
    answers = sorted(heard, key=lambda pair: pair[1])

    async def sleep(seconds: float) -> None:
        nonlocal true_ms
        true_ms += max(1.0, seconds * 1000) / rate
        while answers and answers[0][1] <= true_ms:
            fence.heard(int(answers.pop(0)[0] * rate) + 1)

    fence = Fence(journal, boot_id="b", clock_ms=lambda: int(true_ms * rate) + 1, sleep=sleep)
    fence.configure(self_fence_ms=times.self_fence_ms, lost_after_ms=times.lost_after_ms)
    fence.heard(1)
    try:
        asyncio.run(fence.run(fall))
    except Fallen as fallen:
        (fencing,) = fallen.args
        return true_ms + fencing.grace_ms + ENGINE_MS
    raise AssertionError("unreachable")


def lost_at_ms(
    times: NodeTimes, *, session_ends_ms: float, silent_ms: float, seen_after_ms: float, rate: float
) -> float:
    """True time at which a leader that sees the end of the session may call the node lost."""
    node = Node()
    node.metadata.name = "n1"
    node.status.phase = NodeStatus.NOT_READY
    node.status.inventory.cpu_count = 1
    seen_ms = session_ends_ms + seen_after_ms
    low, high = 0.0, 2.0 * times.lost_after_ms
    while high - low > 1:
        waited = (low + high) / 2
        contact = Contact(connected=False, silent_ms=int(waited * rate + silent_ms * rate))
        (verdict,) = verdicts([(node, contact)], times, calm_ms=1e12)
        low, high = (low, waited) if verdict[1] == NodeStatus.LOST else (waited, high)
    return seen_ms + high


@settings(max_examples=300, deadline=None)
@given(
    times=SETTINGS, agent=DRIFT, leader=DRIFT, data=st.data(), beats=st.integers(0, 30),
    how=st.sampled_from(["broke", "silent", "replica lost its place"]), seen_after_ms=st.integers(0, 20_000),
)  # fmt: skip
def test_the_old_one_has_ended_before_the_node_can_be_lost(
    times: NodeTimes, agent: float, leader: float, data: st.DataObject, beats: int, how: str, seen_after_ms: int
) -> None:
    sent = [round(n * times.heartbeat_ms * data.draw(st.floats(0.9, 1.1), "jitter")) for n in range(1, beats + 1)]
    came = [at + data.draw(st.integers(0, times.session_silence_ms // 2), "way") for at in sent]
    last = max(came, default=0)
    ends = last + (times.session_silence_ms if how == "silent" else data.draw(st.integers(0, 5_000), "end"))
    # While a replica has lost its place and does not know it, heartbeats still come; none of them is acknowledged,
    # for the store is asked after each came.
    stood_until = data.draw(st.integers(0, ends), "stood until") if how.startswith("replica") else ends
    heard = [
        (at, arrives + data.draw(st.integers(0, 3_000), "answer"))
        for at, arrives in zip(sent, came, strict=True)
        if arrives <= stood_until and data.draw(st.booleans(), "is answered")
    ]
    silent_ms = times.session_silence_ms if how == "silent" else 0
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal.db")
        ended = ended_by_ms(times, heard, rate=agent, journal=journal)
        journal.close()
    lost = lost_at_ms(times, session_ends_ms=stood_until, silent_ms=silent_ms, seen_after_ms=seen_after_ms, rate=leader)
    assert ended < lost, f"ended {ended:.0f} ms, lost {lost:.0f} ms"
