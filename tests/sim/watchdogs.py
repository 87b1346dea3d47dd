"""The process beside each agent that keeps its promise when it is dead or hangs.

What the watchdog decides is the product's own (`Watch` of pwm/nodeagent/watchdog.py), and so is when the agent
tells it something. Simulated are what they share, a page of memory that is a file and outlives both; how the
agent starts it (pwm/nodeagent/guard.py); and the engine that it asks to end containers, which may be away or hang.
"""

import asyncio
from contextlib import suppress
from typing import Any

from pwm.api.v1.workload_pb2 import WorkloadSpec
from pwm.nodeagent.guard import RESTART_S
from pwm.nodeagent.journal import Contact
from pwm.nodeagent.watchdog import ANSWER_S, END, LEAVE, RETRY_S, TICK_S, Promise, Watch
from tests.sim.docker import Machine
from tests.sim.network import Network, Process
from tests.sim.processes import Program

# An interpreter starts in that time, at most.
START_S = 0.2


class Watchdog(Program):
    """One of them, in its only life."""

    def __init__(self, network: Network, machine: Machine, *, agent: Process, judge: Any) -> None:
        machine.watchdogs_made += 1
        self._mark = machine.watchdogs_made
        super().__init__(network, machine, f"{machine.name}-watchdog{self._mark}")
        self._machine = machine
        self._agent = agent
        self._judge = judge

    async def _run(self, stop: asyncio.Event) -> None:
        machine = self._machine
        await asyncio.sleep(START_S * machine.rng.random())
        machine.on_duty = self._mark
        watch = Watch()
        while True:
            on_duty = machine.on_duty == self._mark
            action, wait_ms = watch.look(machine.promise, on_duty=on_duty, now_ms=machine.uptime_ms())
            if action == LEAVE:
                return
            if action == END:
                has_ended = await self._end()
                if has_ended and not self._agent.alive:
                    return
                wait_ms = int(1000 * (TICK_S if has_ended else RETRY_S))
            await asyncio.sleep(min(TICK_S, wait_ms / 1000))

    async def _end(self) -> bool:
        """Whether there was nothing."""
        machine, after_ms = self._machine, self._machine.promise.heard_ms
        if not await self._engine_answers():
            return False
        alive = [box for box in machine.running() if box.spec.on_node_lost == WorkloadSpec.reschedule]
        if alive and machine.promise.heard_ms != after_ms:
            return False
        if alive:
            self._judge.watchdog_ends(machine, alive)
        machine.killed.update(box.uid for box in alive)
        if await self._engine_answers():
            for box in alive:
                if machine.boxes.get(box.uid) is box:
                    machine.signal(box, kill=True)
        return not alive

    async def _engine_answers(self) -> bool:
        machine = self._machine
        await asyncio.sleep(0.004 * machine.rng.random())
        if machine.hangs:
            back = asyncio.Event()
            machine.when_back(self.process, back.set)
            with suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    await back.wait()
        return not machine.away and not machine.hangs


class Guard:
    """The agent's side: what `pwm.nodeagent.guard.Guard` does with files and real processes."""

    def __init__(self, network: Network, machine: Machine, process: Process, *, judge: Any) -> None:
        self.killed = machine.killed
        self._network = network
        self._machine = machine
        self._process = process
        self._judge = judge
        self._promised = asyncio.Event()
        self._watchdog: Watchdog | None = None

    def tell(self, contact: Contact) -> None:
        self._machine.promise = Promise(contact.heard_ms, contact.self_fence_ms, contact.lost_after_ms)
        if contact.heard_ms and contact.self_fence_ms:
            self._promised.set()
            return
        self._promised.clear()
        if self._watchdog is not None:
            self._watchdog.kill()

    async def run(self) -> None:
        while True:
            await self._promised.wait()
            await self._keep_one()
            if self._promised.is_set():
                await asyncio.sleep(RESTART_S)

    async def _keep_one(self) -> None:
        machine, process = self._machine, self._process
        watchdog = self._watchdog = Watchdog(self._network, machine, agent=process, judge=self._judge)
        watchdog.start()
        machine.watchdogs = [*(w for w in machine.watchdogs if w.process.alive), watchdog]
        gone, universe = asyncio.Event(), self._network.universe
        watchdog.process.mourners.append(lambda: universe.at(universe.now_s, process.loop, gone.set))
        await gone.wait()
        self._watchdog = None
