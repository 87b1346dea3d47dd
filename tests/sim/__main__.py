"""Runs seeds from the command line: `python -m tests.sim 17` replays one, `python -m tests.sim 0 1000` many."""

import logging
import sys
import time
import traceback

import structlog

from tests.sim.virtual_time import run
from tests.sim.world import World


def main(arguments: list[str]) -> int:
    first = int(arguments[0]) if arguments else 0
    last = int(arguments[1]) if len(arguments) > 1 else first + 1
    level = logging.DEBUG if last == first + 1 else logging.CRITICAL
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))
    started, failed = time.monotonic(), []
    for seed in range(first, last):
        world = World(seed)
        try:
            run(world.run())
        except Exception:
            failed.append(seed)
            traceback.print_exc()
    per_minute = (last - first) / (time.monotonic() - started) * 60
    print(f"{last - first} seeds, {per_minute:.0f} a minute, failed: {failed or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
