"""The books: who has had which device for how long, as a fold over the events of containers and prices.

A container is charged while it is RUNNING or EXITING: from the event that says that it runs to the one that says that
it has ended, is lost or is gone. Until that is known it holds its devices, also on a node that is out of reach. What
counts is the *time of the event*, which a controller sets; clocks of agents take no part.

Clocks of controllers may jump, too. So the books are closed again and again, at most every few minutes, by the one
leader, whose own sense of time goes forward only. A closing says until when (`until`) and by the log up to where
(`revision`). Each event belongs to the stretch between two closings in which the log has it, and counts at its own
time if that lies in the stretch, else at the nearer end of it. So whatever a clock says, an event is misplaced by no
more than one stretch, nothing is negative, and nothing is charged twice: not before a closing, since that is
settled, nor, on one GPU, before the container that had it last has ended.

    closing k          RUNNING   price changes      EXITED              closing k+1
    ────┼─────────────────┼────────────┼───────────────┼─────────────────────┼────▶
        until_k           └── old price┴── new price ──┘                     until_k+1

Everything is an integer. Device time is in microseconds of a whole device (milliseconds of a thousandth of one), a
price in micro-credits an hour; their product is the unit of cost, of which `UNITS_PER_MICRO` are a micro-credit.

Where next: `core.credits` makes weeks, prices and decisions of it, `controlplane.books` keeps it in step with the view.
"""

import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple, TypeAlias

from pwm.api.v1.credits_pb2 import LedgerLine
from pwm.api.v1.events_pb2 import Event
from pwm.api.v1.identity_pb2 import ResourceCredit
from pwm.api.v1.node_pb2 import Inventory
from pwm.api.v1.workload_pb2 import Container, ContainerSpec, ContainerStatus, DeviceShare
from pwm.controlplane.core.scheduling.filters import product_matches

MICRO = 1_000_000
# Microseconds of a device times micro-credits an hour: so many are one micro-credit.
UNITS_PER_MICRO = 3_600 * 1_000_000
WHOLE_DEVICE = 1000
CHARGED = frozenset({ContainerStatus.RUNNING, ContainerStatus.EXITING})
# Lines of a week are spread over so many streams, so that none outgrows what the store takes of one: about a thousand
# lines. A user's lines are all in the same one.
PARTS = 8


@dataclass(frozen=True, slots=True)
class Holding:
    """What a container has while it runs, and who pays."""

    uid: str
    name: str
    owner: str
    group: str
    # (product, thousandths of a device)
    shares: tuple[tuple[str, int], ...]
    # UUIDs: of these one container at most has each.
    gpus: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """A container's event by which it begins to be charged, or ends: then without `holding`."""

    revision: int
    at_ms: int
    version: int
    uid: str
    holding: Holding | None


@dataclass(frozen=True, slots=True)
class Repricing:
    """A price's event. None: there is no such price any more."""

    revision: int
    at_ms: int
    name: str
    hourly_micro: int | None


Entry: TypeAlias = Turn | Repricing


@dataclass(frozen=True, slots=True)
class Opening:
    """The books at one moment: what runs then, at which prices. `at_ms` 0: they have never been opened."""

    at_ms: int = 0
    revision: int = 0
    running: Mapping[str, Holding] = field(default_factory=dict)
    prices: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A container that had a product at one price for a while."""

    holding: Holding
    product: str
    millis: int
    hourly_micro: int
    from_ms: int
    until_ms: int
    # Versions of the events by which it began and ended; 0: it went on over that end.
    begun_by: int = 0
    ended_by: int = 0

    @property
    def device_us(self) -> int:
        return (self.until_ms - self.from_ms) * self.millis


class LineKey(NamedTuple):
    owner: str
    group: str
    product: str
    hourly_micro: int


Lines: TypeAlias = dict[LineKey, int]


# ---- from events to entries


def holding_of(container: Container) -> Holding | None:
    """None: nobody pays for it, or it has nothing that is counted."""
    spec = container.spec
    if not spec.owner or not spec.devices:
        return None
    shares = tuple((share.product_name, share.millis) for share in spec.devices)
    return Holding(
        container.metadata.uid, container.metadata.name, spec.owner, container.metadata.group, shares,
        tuple(spec.gpu_uuids),
    )  # fmt: skip


def charged(container: Container | None) -> bool:
    """Whether a container in this state is charged, as far as its phase goes."""
    return container is not None and container.status.phase in CHARGED


def entry_of(before: Any, after: Any, event: Event, *, revision: int) -> Entry | None:
    """What an event of a Container or a ResourceCredit means to the books. None as a state: it is not there."""
    at_ms = event.time.ToMilliseconds()
    if event.kind == "ResourceCredit":
        if price_of(before) == price_of(after):
            return None
        return Repricing(revision, at_ms, event.name, price_of(after))
    if charged(before) == charged(after):
        return None
    if not charged(after):
        return Turn(revision, at_ms, event.version, event.uid, None)
    holding = holding_of(after)
    return None if holding is None else Turn(revision, at_ms, event.version, event.uid, holding)


def price_of(price: ResourceCredit | None) -> int | None:
    return micro(price.spec.credit.per.hour) if price is not None else None


def micro(credits: float) -> int:
    """Micro-credits, of a number as people write it: the decimal digits count, not what a float makes of them."""
    return int((Decimal(repr(credits)) * MICRO).to_integral_value())


def devices_of(spec: ContainerSpec, inventory: Inventory) -> list[DeviceShare]:
    """What a container that is placed on this machine has, by product."""
    millis: dict[str, int] = defaultdict(int)
    if held := frozenset(spec.gpu_uuids):
        for gpu in inventory.gpus:
            if gpu.uuid in held:
                millis[gpu.product_name] += WHOLE_DEVICE
    if inventory.cpu_product and spec.resources.cpu_millis:
        millis[inventory.cpu_product] += spec.resources.cpu_millis
    return [DeviceShare(product_name=product, millis=amount) for product, amount in sorted(millis.items())]


def price_for(product: str, prices: Mapping[str, int]) -> int:
    """An hour of a product: the price of just that name, else of the longest name that finds it, else nothing."""
    found = [name for name in prices if product_matches(name, product)]
    if not found:
        return 0
    return prices[max(found, key=lambda name: (name.casefold() == product.casefold(), len(name), name))]


# ---- the fold


def settle(
    opening: Opening, entries: Iterable[Entry], *, until_ms: int, revision: int
) -> tuple[Opening, list[Stretch]]:
    """Close the books at `until_ms`, by these entries, in the order of the log, up to `revision`.

    Books that were never opened are opened at `until_ms`, and nothing before is charged.
    """
    fold = _Fold(opening, until_ms)
    for entry in entries:
        if isinstance(entry, Repricing):
            fold.reprice(entry)
        elif entry.holding is not None:
            fold.begin(entry, entry.holding)
        else:
            fold.end(entry)
    closed = Opening(until_ms, revision, fold.running, fold.prices)
    return closed, fold.stretches() if opening.at_ms else []


class _Span(NamedTuple):
    """From when until when one was charged, whatever it cost."""

    holding: Holding
    from_ms: int
    until_ms: int
    begun_by: int
    ended_by: int


class _Fold:
    """Spans and prices by themselves first; only then each span is cut where prices change."""

    def __init__(self, opening: Opening, until_ms: int) -> None:
        assert until_ms >= opening.at_ms, "the books go forward only"
        self.running = dict(opening.running)
        self._from_ms, self._until_ms = opening.at_ms, until_ms
        self._spans: list[_Span] = []
        # Of those that run: since when, and the version of the event that said so.
        self._since = dict.fromkeys(self.running, (opening.at_ms, 0))
        # GPU -> when the container that had it last has ended.
        self._free_ms: dict[str, int] = {}
        # From when which prices hold.
        self._tariffs: list[tuple[int, Mapping[str, int]]] = [(opening.at_ms, opening.prices)]

    @property
    def prices(self) -> Mapping[str, int]:
        return self._tariffs[-1][1]

    def _at(self, entry: Entry) -> int:
        return min(max(entry.at_ms, self._from_ms), self._until_ms)

    def begin(self, turn: Turn, holding: Holding) -> None:
        uid = turn.uid
        if uid not in self.running:
            at_ms = max([self._at(turn), *(self._free_ms.get(gpu, 0) for gpu in holding.gpus)])
            self.running[uid] = holding
            self._since[uid] = at_ms, turn.version

    def end(self, turn: Turn) -> None:
        holding = self.running.pop(turn.uid, None)
        if holding is not None:
            since_ms, begun_by = self._since.pop(holding.uid)
            ended_ms = max(since_ms, self._at(turn))
            self._spans.append(_Span(holding, since_ms, ended_ms, begun_by, turn.version))
            self._free_ms.update(dict.fromkeys(holding.gpus, ended_ms))

    def reprice(self, repricing: Repricing) -> None:
        prices = {name: hourly for name, hourly in self.prices.items() if name != repricing.name}
        if repricing.hourly_micro is not None:
            prices[repricing.name] = repricing.hourly_micro
        self._tariffs.append((max(self._tariffs[-1][0], self._at(repricing)), prices))

    def stretches(self) -> list[Stretch]:
        going_on = [
            _Span(holding, self._since[uid][0], self._until_ms, self._since[uid][1], 0)
            for uid, holding in self.running.items()
        ]
        ends = [*(from_ms for from_ms, _ in self._tariffs[1:]), self._until_ms]
        found: list[Stretch] = []
        for (from_ms, prices), until_ms in zip(self._tariffs, ends, strict=True):
            if from_ms < until_ms:
                found += _priced([*self._spans, *going_on], prices, from_ms, until_ms)
        return found


def _priced(spans: Iterable[_Span], prices: Mapping[str, int], from_ms: int, until_ms: int) -> Iterator[Stretch]:
    """What of the spans lies in a time of unchanging prices."""
    rates: dict[str, int] = {}
    for span in spans:
        begin, end = max(span.from_ms, from_ms), min(span.until_ms, until_ms)
        if begin >= end:
            continue
        for product, millis in span.holding.shares:
            if product not in rates:
                rates[product] = price_for(product, prices)
            yield Stretch(
                span.holding, product, millis, rates[product], begin, end,
                begun_by=span.begun_by if begin == span.from_ms else 0,
                ended_by=span.ended_by if end == span.until_ms else 0,
            )  # fmt: skip


def add_up(stretches: Iterable[Stretch]) -> Lines:
    """Device time by who had what at which price."""
    lines: Lines = defaultdict(int)
    for stretch in stretches:
        holding = stretch.holding
        lines[LineKey(holding.owner, holding.group, stretch.product, stretch.hourly_micro)] += stretch.device_us
    return dict(lines)


def joined(stretches: Sequence[Stretch]) -> list[Stretch]:
    """The same, with what only a closing divides in one piece, by container and time."""
    pieces: list[Stretch] = []
    for s in sorted(stretches, key=lambda s: (s.holding.name, s.holding.uid, s.product, s.from_ms)):
        last = pieces[-1] if pieces else None
        if (
            last is not None and last.until_ms == s.from_ms and not last.ended_by and not s.begun_by
            and (last.holding.uid, last.product, last.hourly_micro) == (s.holding.uid, s.product, s.hourly_micro)
        ):  # fmt: skip
            pieces[-1] = Stretch(
                s.holding, s.product, s.millis, s.hourly_micro, last.from_ms, s.until_ms,
                begun_by=last.begun_by, ended_by=s.ended_by,
            )  # fmt: skip
        else:
            pieces.append(s)
    return pieces


# ---- as they are stored


def part_of(owner: str) -> int:
    """Which of the streams of a week has a user's lines."""
    return zlib.crc32(owner.encode()) % PARTS


def to_messages(lines: Lines) -> list[LedgerLine]:
    return [
        LedgerLine(
            owner=key.owner, group=key.group, product_name=key.product, hourly_micro=key.hourly_micro, device_us=us
        )
        for key, us in sorted(lines.items())
    ]


def key_of(line: LedgerLine) -> LineKey:
    return LineKey(line.owner, line.group, line.product_name, line.hourly_micro)


def merged(*parts: Iterable[LedgerLine]) -> Lines:
    """Lines added up."""
    lines: Lines = defaultdict(int)
    for part in parts:
        for line in part:
            lines[key_of(line)] += line.device_us
    return dict(lines)


def cost_units(lines: Lines) -> int:
    """What they cost, exactly."""
    return sum(key.hourly_micro * device_us for key, device_us in lines.items())
