"""Many processes in one, in virtual time: each has an event loop of its own, with its own clock, and can be frozen
or killed at any moment, while one scheduler runs them all and moves time when nobody has anything to do.

A *universe* keeps true time, one queue of what is ready and one heap of what will be. A *process loop* is what
the code under test gets as its running loop: `time()` is the process's own monotonic clock, which runs a
little fast or slow. What a frozen process should do piles up until it is thawed; what a dead one should do
never happens, no `finally` either, as with `kill -9`.

The same seed gives the same run, byte for byte: callbacks run in the order in which they became due, and tasks
hash by a number of their own, since asyncio keeps them in sets whose order would else be that of addresses.
Garbage must not be collected during a run (see `runner`): a dead task's `finally` would come to life.
"""

import asyncio
import contextvars
import heapq
import itertools
import sys
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

# Callbacks without any time passing, before it counts as a loop without an end.
MAX_STEPS_AT_ONCE = 200_000

_NO_CONTEXT = contextvars.copy_context()
_RUNNING, _FROZEN, _DEAD = 0, 1, 2


class Deadlock(RuntimeError):
    """Everybody waits for something that will not happen."""


class Livelock(RuntimeError):
    """Somebody is busy without end, and no time passes."""


class ProcessFailed(Exception):
    """Something in a simulated process failed that its event loop would only have logged."""


class Handle:
    """A callback that is ready, or will be at a time; what asyncio calls Handle and TimerHandle."""

    __slots__ = ("args", "callback", "context", "loop", "when_s")

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], loop: "ProcessLoop", context: Any
    ) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args
        self.loop = loop
        self.context = context
        self.when_s = 0.0

    def cancel(self) -> None:
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        return self.callback is None

    def when(self) -> float:
        return self.when_s


class SimTask(asyncio.Task[Any]):
    """A task whose place in a set does not depend on where it lies in memory."""

    _numbers = itertools.count(1)

    def __init__(self, coro: Coroutine[Any, Any, Any], *, loop: "ProcessLoop", context: Any = None) -> None:
        self._number = next(SimTask._numbers)
        super().__init__(coro, loop=loop, context=context)  # type: ignore[call-arg]

    def __hash__(self) -> int:
        return self._number


class Universe:
    """True time, and everything that happens in it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.steps = 0
        self.failures: list[Exception] = []
        self.world = ProcessLoop(self, "world")
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._count = 0
        # What the dead would still have done: kept, because letting go of it would run their `finally` blocks.
        self._graveyard: list[Handle] = []

    def at(self, when_s: float, loop: "ProcessLoop", callback: Callable[..., object], *args: Any) -> Handle:
        """Do something at a true time, as the process that owns `loop`."""
        handle = Handle(callback, args, loop, _NO_CONTEXT)
        self._count += 1
        heapq.heappush(self._timers, (when_s, self._count, handle))
        return handle

    def later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> Handle:
        """Do something after a while of true time, as the world itself."""
        return self.at(self.now_s + delay_s, self.world, callback, *args)

    def soon(self, handle: Handle) -> None:
        self._ready.append(handle)

    def run(self, until: Callable[[], bool]) -> None:
        """Let things happen until the condition holds; it is looked at whenever time is about to move.

        What a callback raises comes out here: a real loop would log it and go on.
        """
        ready, timers = self._ready, self._timers
        current: ProcessLoop | None = None
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=_keep_generator, finalizer=_close_generator)
        try:
            while True:
                budget = MAX_STEPS_AT_ONCE
                while ready:
                    handle = ready.popleft()
                    callback = handle.callback
                    if callback is None:
                        continue
                    loop = handle.loop
                    if loop.state:
                        self._set_aside(handle)
                        continue
                    if loop is not current:
                        events._set_running_loop(loop)
                        current = loop
                    handle.context.run(callback, *handle.args)
                    budget -= 1
                    if not budget:
                        raise Livelock(f"{loop.name} is busy with {callback} and no time passes")
                self.steps += MAX_STEPS_AT_ONCE - budget
                if self.failures:
                    raise self.failures[0]
                if until():
                    return
                self._advance(ready, timers)
        finally:
            sys.set_asyncgen_hooks(*hooks)
            events._set_running_loop(None)

    def _advance(self, ready: deque[Handle], timers: list[tuple[float, int, Handle]]) -> None:
        """Move time to the next thing that will happen, and make everything ready that is due then."""
        while timers and timers[0][2].callback is None:
            heapq.heappop(timers)
        if not timers:
            raise Deadlock("nobody is ready and no timer is set")
        now = timers[0][0]
        if now > self.now_s:
            self.now_s = now
        while timers and timers[0][0] <= now:
            handle = heapq.heappop(timers)[2]
            if handle.callback is not None:
                ready.append(handle)

    def _set_aside(self, handle: Handle) -> None:
        if handle.loop.state == _FROZEN:
            handle.loop.backlog.append(handle)
        else:
            self._graveyard.append(handle)


class ProcessLoop(asyncio.AbstractEventLoop):
    """The event loop of one simulated process.

    rate:    how fast its clocks run: 1.01 is one per cent fast
    """

    def __init__(self, universe: Universe, name: str, *, rate: float = 1.0, clock_s: float = 0.0) -> None:
        self.universe = universe
        self.name = name
        self.rate = rate
        self.state = _RUNNING
        self.backlog: list[Handle] = []
        self._clock_s = clock_s
        self._born_s = universe.now_s if hasattr(universe, "_timers") else 0.0

    def __repr__(self) -> str:
        return f"<loop of {self.name}>"

    # ---- life and death

    @property
    def alive(self) -> bool:
        return self.state != _DEAD

    @property
    def frozen(self) -> bool:
        return self.state == _FROZEN

    def freeze(self) -> None:
        """SIGSTOP: nothing runs, sockets stay open, clocks go on."""
        assert self.state == _RUNNING
        self.state = _FROZEN

    def thaw(self) -> None:
        """SIGCONT: everything that piled up is ready at once."""
        assert self.state == _FROZEN
        self.state = _RUNNING
        backlog, self.backlog = self.backlog, []
        for handle in backlog:
            self.universe.soon(handle)

    def kill(self) -> None:
        self.state = _DEAD

    # ---- what asyncio and the code under test ask of a loop

    def time(self) -> float:
        return self._clock_s + (self.universe.now_s - self._born_s) * self.rate

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:
        handle = Handle(callback, args, self, context or contextvars.copy_context())
        self.universe._ready.append(handle)
        return handle

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:
        universe = self.universe
        handle = Handle(callback, args, self, context or contextvars.copy_context())
        if delay <= 0:
            universe._ready.append(handle)
            return handle
        handle.when_s = self.time() + delay
        universe._count += 1
        heapq.heappush(universe._timers, (universe.now_s + delay / self.rate, universe._count, handle))
        return handle

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:
        return self.call_later(when - self.time(), callback, *args, context=context)

    def create_future(self) -> Any:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> Any:
        return SimTask(coro, loop=self, context=context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        raise ProcessFailed(f"{self.name} uses a thread for {func}, which the simulator cannot order")

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.alive:
            return
        failure = ProcessFailed(f"{self.name}: {context.get('message')}: {context.get('exception')!r}")
        failure.__cause__ = context.get("exception")
        # Not raised: this may be called by a destructor, which must not raise.
        self.universe.failures.append(failure)


def _keep_generator(generator: Any) -> None:
    """asyncio keeps them to close them at its end; here everything is dropped at once."""


def _close_generator(generator: Any) -> None:
    """An asynchronous generator that nobody reads any more is closed by the loop it was used in."""
    loop = events._get_running_loop()
    if loop is not None and loop.alive:  # type: ignore[attr-defined]
        loop.call_soon(loop.create_task, generator.aclose())
