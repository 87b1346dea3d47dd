"""Random histories of a cluster, and the books kept of them: what is charged is what was had, each GPU once.

A history is a world with a clock of its own in which containers run on GPUs, move, end, get lost and are paused, and
prices change. Its events go into a log as controllers write them, whose clocks may be wrong by anything up to days.
Leaders, one after the other, close the books at times of their own choice. The oracle knows the world, not the log: it
counts, second by second, who had what.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
from hypothesis import given, settings

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1.identity_pb2 import ResourceCreditSpec
from pwm.api.v1.workload_pb2 import ContainerSpec, ContainerStatus
from pwm.controlplane.core import ledger
from pwm.controlplane.core.evolve import State, evolve
from pwm.controlplane.core.ledger import Entry, LineKey, Opening, Stretch

GPUS = ("GPU-0", "GPU-1", "GPU-2")
PRODUCTS = {"GPU-0": "NVIDIA A100", "GPU-1": "NVIDIA A100", "GPU-2": "NVIDIA H100"}
CPU, CPU_MILLIS = "Xeon", 1500
OWNERS = ("ann", "bob")
SECOND = 1000
BEGIN_S = 1_800_000_000
DAYS_S = 3 * 86_400

# How far the clock of the controller that writes an event is off.
SANE = st.just(0)
ANY_CLOCK = st.sampled_from([0, 0, 0, 1, -1, 7, -7, DAYS_S, -DAYS_S])
ENDS = (ContainerStatus.EXITED, ContainerStatus.FAILED, ContainerStatus.LOST)


def steps(skew: st.SearchStrategy[int]) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    """What happens, each after so many seconds: (seconds, skew, what, ...)."""
    wait = st.integers(0, 40)
    step = st.one_of(
        st.tuples(wait, skew, st.just("run"), st.sampled_from(OWNERS), st.sets(st.sampled_from(GPUS), max_size=2)),
        st.tuples(wait, skew, st.just("end"), st.integers(0, 9), st.sampled_from(ENDS)),
        st.tuples(wait, skew, st.just("move"), st.integers(0, 9), skew),
        st.tuples(wait, skew, st.just("exiting"), st.integers(0, 9)),
        st.tuples(wait, skew, st.just("price"), st.sampled_from(["A100", "NVIDIA H100", CPU]),
                  st.none() | st.sampled_from([0.0, 0.1, 1.0, 2.5])),
        st.tuples(wait, skew, st.just("close")),
        st.tuples(wait, skew, st.just("fail over")),
    )  # fmt: skip
    return st.lists(step, max_size=40)


@dataclass
class World:
    """What truly happens, and the log and the books of it."""

    now_s: int = BEGIN_S
    log: list[tuple[int, State | None, State | None, ev.Event]] = field(default_factory=list)
    states: dict[tuple[str, str], State] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    running: dict[str, tuple[str, frozenset[str]]] = field(default_factory=dict)
    made: int = 0
    prices: dict[str, int] = field(default_factory=dict)
    # (owner, product, price) -> device-milliseconds times thousandths, as they truly were.
    truth: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    true_s: Counter[str] = field(default_factory=Counter)
    opening: Opening = field(default_factory=Opening)
    kept: list[Entry] = field(default_factory=list)
    stretches: list[Stretch] = field(default_factory=list)
    closings: list[tuple[int, int]] = field(default_factory=list)

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            for name, (owner, gpus) in self.running.items():
                self.true_s[name] += 1
                for product, millis in [*((PRODUCTS[gpu], 1000) for gpu in gpus), (CPU, CPU_MILLIS)]:
                    self.truth[owner, product, self.price(product)] += SECOND * millis
            self.now_s += 1

    def price(self, product: str) -> int:
        """Independent of how the books look one up: these names are found by no other product."""
        names = {"NVIDIA A100": "A100", "NVIDIA H100": "NVIDIA H100", CPU: CPU}
        return self.prices.get(names[product], 0)

    def append(self, kind: str, name: str, skew_s: int, payload: dict[str, Any]) -> None:
        before = self.states.get((kind, name))
        version = before.metadata.version + 1 if before is not None else 1
        event = ev.Event(kind=kind, uid=name, name=name, group="g", version=version, **payload)
        event.time.FromMilliseconds((self.now_s + skew_s) * SECOND)
        after = None if "removed" in payload else evolve(before, event)
        if after is None:
            del self.states[kind, name]
        else:
            self.states[kind, name] = after
        self.log.append((len(self.log) + 1, before, after, event))
        entry = ledger.entry_of(before, after, event, revision=len(self.log))
        if entry is not None:
            self.kept.append(entry)

    def run(self, owner: str, gpus: set[str], skew_s: int) -> None:
        if any(gpu in self.held for gpu in gpus):
            return
        self.made += 1
        name = f"c{self.made}"
        spec = ContainerSpec(owner=owner, gpu_uuids=sorted(gpus))
        for product in sorted({PRODUCTS[gpu] for gpu in gpus}):
            spec.devices.add(product_name=product, millis=1000 * sum(PRODUCTS[gpu] == product for gpu in gpus))
        spec.devices.add(product_name=CPU, millis=CPU_MILLIS)
        self.append("Container", name, skew_s, {"container_placed": ev.ContainerPlaced(spec=spec)})
        self.report(name, ContainerStatus.PULLING, skew_s)
        self.report(name, ContainerStatus.RUNNING, skew_s)
        self.held.update(dict.fromkeys(gpus, name))
        self.running[name] = owner, frozenset(gpus)

    def report(self, name: str, phase: ContainerStatus.Phase.ValueType, skew_s: int) -> None:
        self.append("Container", name, skew_s, {"container_reported": ev.ContainerReported(phase=phase)})

    def end(self, number: int, phase: ContainerStatus.Phase.ValueType, skew_s: int) -> None:
        if not self.running:
            return
        name = list(self.running)[number % len(self.running)]
        _, gpus = self.running.pop(name)
        self.report(name, phase, skew_s)
        if phase == ContainerStatus.LOST:
            # What is known of it later costs nothing more.
            self.report(name, ContainerStatus.EXITED, skew_s)
        self.append("Container", name, skew_s, {"removed": ev.Removed()})
        for gpu in gpus:
            del self.held[gpu]

    def set_price(self, name: str, hourly: float | None, skew_s: int) -> None:
        if hourly is None:
            if ("ResourceCredit", name) in self.states:
                self.append("ResourceCredit", name, skew_s, {"removed": ev.Removed()})
                del self.prices[name]
            return
        spec = ResourceCreditSpec()
        spec.credit.per.hour = hourly
        self.append("ResourceCredit", name, skew_s, {"resource_credit_applied": ev.ResourceCreditApplied(spec=spec)})
        self.prices[name] = int(hourly * 1_000_000)

    def close(self) -> None:
        revision, until_ms = len(self.log), self.now_s * SECOND
        due = [entry for entry in self.kept if entry.revision <= revision]
        self.opening, stretches = ledger.settle(self.opening, due, until_ms=until_ms, revision=revision)
        self.kept = [entry for entry in self.kept if entry.revision > revision]
        self.stretches += stretches
        self.closings.append((until_ms, revision))

    def fail_over(self) -> None:
        """A new leader has nothing but the log: what ran and cost what at the last closing, and what came after it."""
        running, prices, kept = {}, {}, []
        for revision, before, after, event in self.log:
            entry = ledger.entry_of(before, after, event, revision=revision)
            if revision > self.opening.revision:
                kept += [entry] if entry is not None else []
            elif isinstance(entry, ledger.Repricing):
                prices[entry.name] = entry.hourly_micro
            elif entry is not None and entry.holding is not None:
                running[entry.uid] = entry.holding
            elif entry is not None:
                running.pop(entry.uid, None)
        found = Opening(
            self.opening.at_ms, self.opening.revision, running, {k: v for k, v in prices.items() if v is not None}
        )
        assert (found, kept) == (self.opening, self.kept)
        self.opening, self.kept = found, kept

    def live(self, steps: list[tuple[Any, ...]]) -> None:
        self.close()
        for step in steps:
            seconds, skew_s, what = step[:3]
            rest: Any = step[3:]
            self.wait(seconds)
            match what:
                case "run":
                    self.run(rest[0], rest[1], skew_s)
                case "end":
                    self.end(rest[0], rest[1], skew_s)
                case "move" if self.running:
                    number, later_skew_s = rest
                    name = list(self.running)[number % len(self.running)]
                    owner, gpus = self.running[name]
                    self.end(number, ContainerStatus.EXITED, skew_s)
                    self.run(owner, set(gpus), later_skew_s)
                case "exiting" if self.running:
                    name = list(self.running)[rest[0] % len(self.running)]
                    self.report(name, ContainerStatus.EXITING, skew_s)
                case "price":
                    self.set_price(rest[0], rest[1], skew_s)
                case "close":
                    self.close()
                case "fail over":
                    self.fail_over()
        self.close()


def by_owner(stretches: list[Stretch]) -> Counter[tuple[str, str, int]]:
    found: Counter[tuple[str, str, int]] = Counter()
    for key, device_us in ledger.add_up(stretches).items():
        found[key.owner, key.product, key.hourly_micro] += device_us
    return found


@settings(max_examples=100, deadline=None)
@given(steps(SANE))
def test_the_ledger_is_what_was_had_second_by_second_wherever_the_books_are_closed(
    history: list[tuple[Any, ...]],
) -> None:
    world = World()
    world.live(history)
    assert by_owner(world.stretches) == +world.truth


@settings(max_examples=100, deadline=None)
@given(steps(ANY_CLOCK))
def test_no_clock_makes_a_gpu_paid_twice_or_misplaces_an_event_by_more_than_a_stretch(
    history: list[tuple[Any, ...]],
) -> None:
    world = World()
    world.live(history)
    spans: defaultdict[str, set[tuple[int, int]]] = defaultdict(set)
    charged_ms: Counter[str] = Counter()
    for stretch in world.stretches:
        assert stretch.from_ms < stretch.until_ms
        assert stretch.hourly_micro >= 0
        if stretch.product == CPU:
            charged_ms[stretch.holding.name] += stretch.until_ms - stretch.from_ms
        for gpu in stretch.holding.gpus:
            if PRODUCTS[gpu] == stretch.product:
                spans[gpu].add((stretch.from_ms, stretch.until_ms))
    for of_gpu in spans.values():
        ordered = sorted(of_gpu)
        assert all(first[1] <= second[0] for first, second in pairwise(ordered))
    ends = sorted({at for at, _ in world.closings})
    longest_ms = max((b - a for a, b in pairwise(ends)), default=0)
    for name in charged_ms | world.true_s:
        assert abs(charged_ms[name] - world.true_s[name] * SECOND) <= 2 * longest_ms


@settings(max_examples=100, deadline=None)
@given(steps(ANY_CLOCK))
def test_stretches_joined_for_people_are_the_same_time(history: list[tuple[Any, ...]]) -> None:
    world = World()
    world.live(history)
    joined = ledger.joined(world.stretches)
    assert ledger.add_up(joined) == ledger.add_up(world.stretches)
    assert len(joined) <= len(world.stretches)


def test_a_line_costs_its_time_at_its_price() -> None:
    half_an_hour_of_two_devices = 1800 * 1_000_000 * 2
    lines = {LineKey("ann", "g", "A100", 1_500_000): half_an_hour_of_two_devices}
    assert ledger.cost_units(lines) == 1_500_000 * ledger.UNITS_PER_MICRO
