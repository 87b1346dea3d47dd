"""Runs seeds from the command line.

python -m tests.sim 17                                   replay one, and tell everything that happens
python -m tests.sim 17 --faults 3,20 --commands 4        the same with these faults and commands only
python -m tests.sim 0 1000                               many; those that fail are shrunk to such a line
python -m tests.sim --seconds 300 | --total-faults 100000    as many as fit
python -m tests.sim 0 1000 --more compact-all,kill-leader    half of the faults are of these kinds
python -m tests.sim --hunt                               every planted bug: the first seed that finds it
python -m tests.sim --hunt no-fence --sharp              with more of the faults that it takes
"""

import argparse
import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict

import structlog

from tests.sim import runner


def main() -> int:
    given = _parse()
    runner.fixed_hashes()
    if given.hunt is not None:
        _quiet()
        return _hunt(given)
    if given.first is not None and given.last is None:
        return _replay(given)
    _quiet()
    return _many(given)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="Simulate PWM under faults.")
    parser.add_argument("first", type=int, nargs="?")
    parser.add_argument("last", type=int, nargs="?")
    parser.add_argument("--seeds", type=_numbers, help="these, instead of all from FIRST on")
    parser.add_argument("--faults", type=_numbers, help="only these, by number")
    parser.add_argument("--commands", type=_numbers, help="only these, by number")
    parser.add_argument("--plant", help="with this bug planted")
    parser.add_argument("--more", type=_kinds, default=(), help="kinds of faults that make up half of all")
    parser.add_argument("--seconds", type=float, help="until so much time has passed")
    parser.add_argument("--total-faults", type=int, help="until so many faults have struck")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--hunt", nargs="?", const="", help="look for planted bugs (or one), from seed FIRST on")
    parser.add_argument("--sharp", action="store_true", help="hunt each bug with more of the faults that it takes")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each seed")
    parser.add_argument("--no-shrink", action="store_true")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [] if text == "none" else [int(part) for part in text.split(",")]


def _kinds(text: str) -> tuple[str, ...]:
    from tests.sim.faults import KINDS

    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in KINDS]:
        raise argparse.ArgumentTypeError(f"no such kind: {unknown[0]}; there are {', '.join(KINDS)}")
    return names


def _text(numbers: list[int]) -> str:
    return ",".join(map(str, numbers)) or "none"


def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR), processors=[runner.listen])
    import tests.sim.planted
    import tests.sim.world  # noqa: F401 - before children are made


def _replay(given: argparse.Namespace) -> int:
    outcome = runner.run(
        given.first, only=given.faults, commands=given.commands, more=given.more, plant=given.plant, verbose=True
    )
    print(outcome.trace or outcome)
    print(outcome.error or f"seed {given.first} went well")
    return 1 if outcome.error else 0


def _seeds(given: argparse.Namespace, struck: list[int]) -> Iterator[int]:
    if given.seeds is not None:
        yield from given.seeds
        return
    started = time.monotonic()
    stop = given.last if given.last is not None else sys.maxsize
    for seed in itertools.takewhile(lambda s: s < stop, itertools.count(given.first or 0)):
        if given.seconds is not None and time.monotonic() - started > given.seconds:
            return
        if given.total_faults is not None and struck[0] >= given.total_faults:
            return
        yield seed


def _many(given: argparse.Namespace) -> int:
    started, count, struck, failed = time.monotonic(), 0, [0], []
    options = {"more": given.more, "plant": given.plant}
    for outcome in runner.run_many(_seeds(given, struck), workers=given.workers, **options):
        count += 1
        struck[0] += outcome.faults
        if given.json:
            print(json.dumps(asdict(outcome)), flush=True)
        if outcome.error:
            failed.append(outcome)
            print(f"seed {outcome.seed} failed: {outcome.error}", file=sys.stderr, flush=True)
    seconds = time.monotonic() - started
    for outcome in [] if given.no_shrink else failed[:5]:
        only, commands, last = runner.shrink(outcome, **options)
        more = f" --more {','.join(given.more)}" if given.more else ""
        plant = f" --plant {given.plant}" if given.plant else ""
        print(f"python -m tests.sim {outcome.seed} --faults {_text(only)} --commands {_text(commands)}{more}{plant}")
        print(f"    {last.error}")
    rate = count / seconds * 60
    print(
        f"{count} seeds, {struck[0]:,} faults, {rate:.0f} seeds a minute with {given.workers} workers, "
        f"{len(failed)} failed",
        file=sys.stderr,
    )
    return 1 if failed else 0


def _hunt(given: argparse.Namespace) -> int:
    """A seed that fails without the bug as well does not count."""
    from tests.sim.planted import BUGS, SEEDS_AT_MOST, Bug

    missed, failing_anyway = 0, dict[tuple[int, tuple[str, ...]], bool]()

    def is_found(outcome: runner.Outcome) -> bool:
        if not outcome.error:
            return False
        if outcome.invariant in ("MovedOn", runner.DIED):
            raise SystemExit(f"{bug.name} cannot be planted any more: {outcome.error}")
        key = outcome.seed, more
        if key not in failing_anyway:
            failing_anyway[key] = bool(runner.run(outcome.seed, more=more).error)
        return not failing_anyway[key]

    first = given.first or 0
    seeds = range(first, given.last if given.last is not None else first + SEEDS_AT_MOST)

    def order(bug: Bug) -> Iterator[int]:
        known = [bug.seed] if given.sharp else []
        return itertools.chain(known, (seed for seed in seeds if seed not in known))

    for bug in BUGS.values():
        if given.hunt and bug.name not in given.hunt.split(","):
            continue
        more = bug.more if given.sharp else given.more
        outcomes = runner.run_many(order(bug), workers=given.workers, more=more, plant=bug.name)
        found = next((outcome for outcome in outcomes if is_found(outcome)), None)
        missed += found is None
        said = "not found" if found is None else f"seed {found.seed:4}  {found.error[:140]}"
        print(f"{bug.name:40} {said}", flush=True)
    print(f"{missed} of {len(BUGS)} not found", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
