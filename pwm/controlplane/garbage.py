"""Keeps Python's search for garbage from stopping a large controller again and again.

Nearly all that a controller drops is freed at once, by reference counts. What is left for the collector are cycles,
and it finds them by walking through everything that is alive: with 5,000 agents it walked through half a million
objects every seven seconds, for half a second and more in which nothing else happened, and found nothing. That was a
fifth of all processor time, and on a busy machine long enough for etcd to seem out of reach.

So what has survived a search is *settled*: it is not looked at again until, once an hour, everything is. A search then
walks only through what has been made in the seconds before. Cycles among what was settled are freed within an hour.
"""

import asyncio
import gc

# Objects made since the last look at the newest ones; Python's own 700 makes it look a thousand times a second.
YOUNG_OBJECTS = 10_000
# Looks at the newest until those that survived them are looked at.
YOUNG_ROUNDS = 10
# Never by itself: `search` does it.
NEVER = 1_000_000
SETTLE_EVERY_S = 30.0
ALL_EVERY_S = 3600.0


async def look_for_garbage() -> None:
    """Until cancelled."""
    loop = asyncio.get_running_loop()
    before = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECTS, YOUNG_ROUNDS, NEVER)
    all_due_s = loop.time() + ALL_EVERY_S
    try:
        while True:
            await asyncio.sleep(SETTLE_EVERY_S)
            if not gc.isenabled():
                continue  # the view is being loaded: all of that stays
            everything = loop.time() >= all_due_s
            if everything:
                all_due_s = loop.time() + ALL_EVERY_S
            search(everything=everything)
    finally:
        gc.set_threshold(*before)


def search(*, everything: bool) -> int:
    """Frees cycles among what has been made since the last search, or everywhere, and settles the rest.

    Returns how many objects were in such cycles.
    """
    if everything:
        gc.unfreeze()
    found = gc.collect()
    gc.freeze()
    return found
