"""Runs seeds, each in a child process of its own, and shrinks those that fail.

A run must neither be disturbed by garbage collection (the dead would run their `finally` blocks) nor leave
anything behind (their tasks); a child that ends without cleaning up gives both for a few milliseconds. Hashes of
strings are fixed, so that a seed means the same on every day and machine.
"""

import asyncio.tasks
import gc
import os
import pickle
import random
import sys
import time
import traceback
from asyncio import events
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import structlog

HASH_SEED = "0"
DIED = "the child process died"


@dataclass(slots=True)
class Outcome:
    """What became of a seed. `error` is empty when all went well."""

    seed: int
    error: str = ""
    trace: str = ""
    faults: int = 0
    steps: int = 0
    virtual_s: float = 0.0
    seconds: float = 0.0
    acknowledgements: int = 0
    watchdog_ended: int = 0
    excused: int = 0
    digest: str = ""
    kinds: dict[str, int] = field(default_factory=dict)

    @property
    def invariant(self) -> str:
        return self.error.partition(":")[0]


def fixed_hashes() -> None:
    """Start this program again unless hashes are fixed."""
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        os.environ["PYTHONHASHSEED"] = HASH_SEED
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


MISTAKES = frozenset({"controller failed", "container task broke"})
"""What the product says when it has caught a mistake of its own."""


def listen(logger: Any, method: str, event: dict[str, Any]) -> Any:
    """A structlog processor that takes mistakes for what they are and drops the rest."""
    if event["event"] in MISTAKES:
        loop: Any = events._get_running_loop()
        error = event.get("exc_info")
        error = error if isinstance(error, BaseException) else sys.exc_info()[1]
        loop.call_exception_handler({"message": event["event"], "exception": error})
    raise structlog.DropEvent


class Story:
    """Prints what happens, with true time and the process it happens in; logs of the product too."""

    def __init__(self) -> None:
        self.universe: Any = None
        structlog.configure(processors=[self._log, listen])

    def line(self, text: str) -> None:
        now_s = self.universe.now_s if self.universe is not None else 0.0
        sys.stdout.write(f"{now_s:9.3f} {text}\n")

    def _log(self, logger: Any, method: str, event: dict[str, Any]) -> Any:
        loop: Any = events._get_running_loop()
        rest = " ".join(f"{key}={value}" for key, value in event.items() if key not in ("event", "exc_info"))
        self.line(f"{loop.name if loop else '':6} {event['event']} {' '.join(rest.split())}")
        return event


def run_here(
    seed: int,
    *,
    only: Collection[int] | None = None,
    commands: Collection[int] | None = None,
    more: Sequence[str] = (),
    plant: str | None = None,
    verbose: bool = False,
) -> Outcome:
    """One seed in this process, which must be good for nothing else afterwards."""
    from tests.sim.planted import BUGS
    from tests.sim.world import World

    gc.disable()
    # Nobody asks for all tasks, and to keep them in a weak set takes a tenth of the time.
    for registry in ("_all_tasks", "_scheduled_tasks"):  # until Python 3.11, and since
        if (tasks := getattr(asyncio.tasks, registry, None)) is not None:
            tasks.add = lambda task: None
    random.seed(seed)
    outcome = Outcome(seed)
    begun = time.perf_counter()
    world = None
    try:
        if plant is not None:
            BUGS[plant].plant()
        story = Story() if verbose else None
        world = World(seed, only=only, commands=commands, more=more, tell=story.line if story else None)
        if story:
            story.universe = world.universe
        world.run()
    except BaseException as error:
        outcome.error = f"{error}" if type(error).__name__ == "Broken" else f"{type(error).__name__}: {error}"
        outcome.trace = traceback.format_exc()
    outcome.seconds = time.perf_counter() - begun
    if world is not None:
        outcome.faults = world.struck
        outcome.steps = world.universe.steps
        outcome.virtual_s = world.universe.now_s
        outcome.acknowledgements = world.checker.acknowledgements
        outcome.watchdog_ended = world.checker.watchdog_ended
        outcome.excused = world.checker.excused
        outcome.digest = world.checker.digest.hexdigest()
        outcome.kinds = world.checker.by_kind()
    return outcome


def run(seed: int, **options: object) -> Outcome:
    """One seed in a child process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            outcome = run_here(seed, **options)  # type: ignore[arg-type]
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(outcome, pipe)
            sys.stdout.flush()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(data) if data else Outcome(seed, error=DIED)


def run_many(seeds: Iterable[int], *, workers: int = 1, **options: object) -> Iterator[Outcome]:
    """Many seeds, as many at a time as there are workers, in their order."""
    if workers == 1:
        for seed in seeds:
            yield run(seed, **options)
        return
    waiting: deque[Future[Outcome]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for seed in seeds:
                waiting.append(pool.submit(run, seed, **options))
                # A few more than can run, so that nobody is idle while the first takes long.
                if len(waiting) >= 3 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def shrink(outcome: Outcome, **options: object) -> tuple[list[int], list[int], Outcome]:
    """Faults and commands without which the seed does not fail in the same way any more."""
    from tests.sim.world import COMMANDS, FAULTS

    def fails(only: list[int], commands: list[int]) -> Outcome | None:
        found = run(outcome.seed, only=only, commands=commands, **options)
        return found if found.error and found.invariant == outcome.invariant else None

    only, commands, last = list(range(FAULTS)), list(range(2 * COMMANDS)), outcome
    for which in (0, 1, 0):
        kept = only if which == 0 else commands
        size = max(1, len(kept) // 2)
        while size:
            start = 0
            while start < len(kept):
                fewer = kept[:start] + kept[start + size :]
                found = fails(fewer, commands) if which == 0 else fails(only, fewer)
                if found is not None:
                    kept, last = fewer, found
                    if which == 0:
                        only = fewer
                    else:
                        commands = fewer
                else:
                    start += size
            size //= 2
    return only, commands, last
