"""What the dispatcher does with agents before their session begins: strangers are refused, in doubt all are held."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from pwm.api.v1.agent_pb2 import Heartbeat, HeldContainer, Hello, SessionRequest, SessionResponse
from pwm.api.v1.store_pb2 import Doubt, Position
from pwm.controlplane.clock import Clock
from pwm.controlplane.core.nodes import DEFAULT_TIMES
from pwm.controlplane.dispatcher.admittance import Admittance
from pwm.controlplane.dispatcher.dispatcher import Dispatcher
from pwm.controlplane.store.commits import Guard
from tests.unit.controlplane.conftest import Plane


class Aborted(Exception):
    pass


class Call:
    """The server's side of a session: what the agent says is put in, what it hears comes out."""

    def __init__(self, hello: Hello) -> None:
        self.said: asyncio.Queue[Any] = asyncio.Queue()
        self.said.put_nowait(SessionRequest(hello=hello))
        self.heard: asyncio.Queue[SessionResponse] = asyncio.Queue()
        self.end: tuple[grpc.StatusCode, str] | None = None

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("authorization", "Bearer node")]

    async def read(self) -> Any:
        return await self.said.get()

    async def write(self, message: SessionResponse) -> None:
        self.heard.put_nowait(message)

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.end = code, details
        raise Aborted

    def say(self, number: int) -> None:
        self.said.put_nowait(SessionRequest(heartbeat=Heartbeat(number=number)))


class Store:
    """What the dispatcher knows of custody and presence."""

    uid = "ours"
    incarnation = 0

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self.doubt: Doubt | None = None
        self.stands_still = True
        self.checks = 0
        self._settled = asyncio.Event()

    def epoch(self, revision: int) -> int:
        return revision

    async def check(self) -> None:
        self.checks += 1

    def testify(self, revision: int, position: Position) -> None:
        position.position = revision

    async def witness(self, *, node: str, position: Position) -> None:
        if position.position > 100:
            self.doubt = Doubt(why=f"{node} knows more")

    async def settled(self) -> None:
        await self._settled.wait()

    def settle(self) -> None:
        self.doubt = None
        self._settled.set()

    async def announce(self, node: str) -> Guard:
        # A mark among the events, so that the view follows.
        key = self._plane.store.keys.mark(node)
        return Guard(key, mod_revision=await self._plane.kv.put(key, b"r1"))

    async def withdraw(self, node: str, guard: Guard, *, silent_ms: int) -> None:
        pass

    async def standing(self, nodes: Any) -> set[str]:
        return set(nodes)


@pytest.fixture
async def store(plane: Plane) -> Store:
    return Store(plane)


@pytest.fixture
async def dispatcher(plane: Plane, store: Store) -> Dispatcher:
    async def anybody(token: str) -> str:
        return ""

    async def unknown(node: str) -> int:
        return 0

    return Dispatcher(
        replica="r1",
        view=plane.view,
        commands=plane.commands,
        clock=Clock(),
        presence=store,
        admittance=Admittance(view=plane.view, clock=Clock(), authenticate=anybody, node_revision=unknown),
        times=DEFAULT_TIMES,
        custody=store,
        give=plane.secrets.given_to,
    )


def hello(*, cluster: str = "ours", position: int = 5) -> Hello:
    containers = [HeldContainer(uid="c1", name="w.0.1", group="users")]
    return Hello(node="n1", cluster=cluster, position=Position(position=position), containers=containers)


async def served(dispatcher: Dispatcher, call: Call) -> None:
    with pytest.raises(Aborted):
        await asyncio.wait_for(dispatcher.Session(None, call), 10)


async def test_an_agent_of_another_cluster_is_refused_and_told_what_to_do(dispatcher: Dispatcher) -> None:
    call = Call(hello(cluster="theirs"))
    await served(dispatcher, call)
    assert call.end is not None
    code, said = call.end
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "another cluster" in said
    assert "remove the agent's state directory" in said


async def test_an_agent_that_knows_more_is_held_until_it_is_decided_and_its_heartbeats_are_answered(
    dispatcher: Dispatcher, store: Store
) -> None:
    call = Call(hello(position=101))
    serving = asyncio.create_task(served(dispatcher, call))
    first = await asyncio.wait_for(call.heard.get(), 5)
    assert (first.hold.message, first.hold.number) == ("n1 knows more", 0)
    assert [c.name for c in dispatcher.held()["n1"]] == ["w.0.1"]
    checks = store.checks
    for number in (1, 2):
        call.say(number)
        assert (await asyncio.wait_for(call.heard.get(), 5)).hold.number == number
    assert store.checks == checks + 2, "the store is asked after each heartbeat, before it is answered"
    store.settle()
    await serving
    assert call.end is not None
    assert call.end[0] is grpc.StatusCode.UNAVAILABLE
    assert "say hello again" in call.end[1]
    assert not dispatcher.held()


async def test_an_agent_is_not_held_as_long_as_others_could_still_act(dispatcher: Dispatcher, store: Store) -> None:
    store.doubt, store.stands_still = Doubt(why="it went back"), False
    call = Call(hello())
    await served(dispatcher, call)
    assert call.end == (
        grpc.StatusCode.UNAVAILABLE,
        "the control plane cannot take the session now: it went back",
    )
    assert call.heard.empty()


async def test_without_doubt_a_session_begins_with_the_clusters_name(dispatcher: Dispatcher) -> None:
    call = Call(hello(cluster=""))
    serving = asyncio.create_task(dispatcher.Session(None, call))
    welcome = (await asyncio.wait_for(call.heard.get(), 5)).welcome
    assert welcome.epoch > 0
    assert welcome.cluster == "ours"
    orders = (await asyncio.wait_for(call.heard.get(), 5)).assignments
    assert orders.full
    assert orders.position.position > 0
    call.said.put_nowait(grpc.aio.EOF)
    await asyncio.wait_for(serving, 5)
