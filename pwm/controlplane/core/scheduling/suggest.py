"""The smallest change that would let a workload start.

Each idea is one change of the spec, and none is told unless the changed demand was tried on what is free and
fits. So a suggestion that is followed works, as long as nobody else is faster. The cheap ideas come first:
less of something, then a wider selector. What always works comes last: waiting, and for whom.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pwm.controlplane.core.scheduling.demand import CORE_MILLIS, DEFAULT_ZONE, Demand
from pwm.controlplane.core.scheduling.scratch import Scratch
from pwm.controlplane.core.scheduling.shares import Ints
from pwm.controlplane.core.scheduling.survey import Survey
from pwm.controlplane.core.scheduling.table import Bools
from pwm.controlplane.core.scheduling.verdicts import Change, Stage, counted, listed
from pwm.quantity import format_bytes, format_cpu

# More than three is a list that nobody reads.
SUGGESTIONS_MAX = 3
_MIB = 1024**2
# Less than this is no help: hardly any program starts in it.
MEMORY_STEP_BYTES = 16 * _MIB
CPU_STEP_MILLIS = 10

Idea = tuple[Demand, Change]


def changes_that_help(survey: Survey, *, together: int, possible: bool) -> list[Change]:
    """Changes of which each alone lets all `together` replicas start, and what to wait for where that is `possible`."""
    scratch = survey.scratch
    stage = survey.furthest
    if stage == Stage.FITS and together == 1:
        return []
    found: list[Change] = []
    for demand, change in _ideas(survey):
        if len(found) == SUGGESTIONS_MAX:
            break
        if scratch.fits(demand, replicas=together):
            found.append(change)
    if stage == Stage.FITS:
        room = int(scratch.room(survey.demand).sum())
        found.append(Change(f"set gang to false to start {room} of {together} now", (("gang", ""),)))
    elif stage >= Stage.READY and not possible and together > 1:
        found.append(Change("set gang to false to start replicas one by one", (("gang", ""),), at_once=False))
    if possible:
        later = _wait(survey)
    elif stage == Stage.READY and together == 1 and (unknown := survey.not_joined()):
        later = _wait_for(survey, unknown[0])
    else:
        later = None if found else _shrink(survey)
    return [*found, later] if later else found


def changes_without_node(scratch: Scratch, demand: Demand, *, together: int) -> list[Change]:
    """What helps somebody who named a node that does not exist."""
    if not scratch.fits(replace(demand, node=""), replicas=together):
        return []
    return [Change("leave selectors.node.name out to run on any node", (("selectors.node.name", ""),))]


def _ideas(survey: Survey) -> Iterator[Idea]:
    """Changed demands, not tried yet."""
    yield from _fewer_gpus(survey)
    yield from _less_cpu_and_memory(survey)
    yield from _wider_selectors(survey)


def _fewer_gpus(survey: Survey) -> Iterator[Idea]:
    demand = survey.demand
    most = int(np.where(survey.screen.usable, survey.scratch.free_gpus_for(survey.screen), 0).max())
    for gpus in range(min(demand.gpus - 1, most), 0, -1):
        fewer = replace(demand, gpus=gpus)
        if survey.scratch.fits(fewer):
            text = f"ask for at most {counted(gpus, 'GPU')} instead of {demand.gpus}"
            yield fewer, Change(text, (("selectors.gpu.count", str(gpus)),))
            return


def _less_cpu_and_memory(survey: Survey) -> Iterator[Idea]:
    """Less CPU, else less memory, else less of both."""
    scratch, demand, screen = survey.scratch, survey.demand, survey.screen
    usable = screen.usable.copy()
    if demand.gpus:
        usable &= scratch.free_gpus_for(screen) >= demand.gpus
    enough_cpu = scratch.free_cpu_millis >= screen.cpu_millis
    enough_memory = scratch.free_memory_bytes >= screen.memory_bytes
    # The default memory of a CPU workload shrinks with its CPU.
    follows = demand.memory_bytes is None and not demand.gpus
    cpu_rows = usable if follows else usable & enough_memory
    less_cpu = _lower_cpu(survey, cpu_rows & ~enough_cpu)
    less_memory = _lower_memory(survey, usable & enough_cpu & ~enough_memory)
    if less_cpu:
        yield less_cpu
    if less_memory:
        yield less_memory
    both = _lower_cpu(survey, usable & ~enough_cpu & ~enough_memory) if not (less_cpu or less_memory) else None
    if both:
        less, change = both
        fits_cpu = usable & (scratch.free_cpu_millis >= scratch.table.screen(less).cpu_millis)
        memory = _lower_memory(survey, fits_cpu, of=less)
        if memory:
            text = f"{change.text}, and {memory[1].text.removeprefix('ask for ')}"
            yield memory[0], Change(text, change.fields + memory[1].fields)


def _lower_cpu(survey: Survey, rows: Bools) -> Idea | None:
    """As much CPU as the best of these rows has free."""
    scratch, demand = survey.scratch, survey.demand
    if not rows.any():
        return None
    free: Ints = scratch.free_cpu_millis
    row = int(np.where(rows, free, -1).argmax())
    step = CORE_MILLIS if demand.exclusive or free[row] >= CORE_MILLIS else CPU_STEP_MILLIS
    millis = int(free[row]) // step * step
    if not 0 < millis < int(survey.screen.cpu_millis[row]):
        return None
    count = f"{millis}m" if millis % CORE_MILLIS else str(millis // CORE_MILLIS)
    asked = format_cpu(int(survey.screen.cpu_millis[row]))
    text = f"ask for {format_cpu(millis)} {'CPU' if millis == CORE_MILLIS else 'CPUs'} instead of {asked}"
    if demand.cpu_millis is None:
        text += " (the default): set selectors.cpu.count"
    return replace(demand, cpu_millis=millis), Change(text, (("selectors.cpu.count", count),))


def _lower_memory(survey: Survey, rows: Bools, *, of: Demand | None = None) -> Idea | None:
    """As much memory as the best of these rows has free."""
    scratch, demand = survey.scratch, of or survey.demand
    if not rows.any():
        return None
    row = int(np.where(rows, scratch.free_memory_bytes, -1).argmax())
    amount = int(scratch.free_memory_bytes[row]) // MEMORY_STEP_BYTES * MEMORY_STEP_BYTES
    if not 0 < amount < int(survey.screen.memory_bytes[row]):
        return None
    value = f"{amount // _MIB}MiB"
    asked = format_bytes(int(survey.screen.memory_bytes[row]))
    text = f"ask for {value} of memory instead of {asked}"
    if demand.memory_bytes is None:
        text += " (the default): set config.memory"
    return replace(demand, memory_bytes=amount), Change(text, (("config.memory", value),))


def _wider_selectors(survey: Survey) -> Iterator[Idea]:
    demand, table = survey.demand, survey.table
    products = sorted({model.product for model in table.models}) if demand.gpu_products else []
    for product in products:
        change = Change(
            f"accept {product} too, in selectors.gpu.product_name", (("selectors.gpu.product_name", product),)
        )
        yield replace(demand, gpu_products=(*demand.gpu_products, product)), change
    sizes = sorted({m.memory_bytes for m in table.models if m.memory_bytes < demand.gpu_memory_bytes}, reverse=True)
    for size in sizes:
        value = f"{size // _MIB}MiB"
        change = Change(f"ask for GPUs with {value} of memory", (("selectors.gpu.memory", value),))
        yield replace(demand, gpu_memory_bytes=size // _MIB * _MIB), change
    if demand.cpu_products:
        change = Change("leave selectors.cpu.product_name out to run on any CPU", (("selectors.cpu.product_name", ""),))
        yield replace(demand, cpu_products=()), change
    for key, value in demand.labels:
        others = tuple(label for label in demand.labels if label[0] != key)
        yield (
            replace(demand, labels=others),
            Change(f"leave the label {key}={value} out", ((f"selectors.label.{key}", ""),)),
        )
    if len(demand.labels) > 1:
        change = Change("leave the labels out", tuple((f"selectors.label.{key}", "") for key, _ in demand.labels))
        yield replace(demand, labels=()), change
    if demand.node:
        change = Change("leave selectors.node.name out to run on any node", (("selectors.node.name", ""),))
        yield replace(demand, node=""), change
    if demand.zone != DEFAULT_ZONE:
        yield replace(demand, zone=DEFAULT_ZONE), Change(f"leave the zone {demand.zone} out", (("zone", ""),))


def _shrink(survey: Survey) -> Change | None:
    """When more is asked for than any node has: as much as the largest has, to wait for."""
    demand, stage = survey.demand, survey.furthest
    has = {
        Stage.GPU_CAPACITY: survey.working_gpus,
        Stage.CPU_CAPACITY: survey.table.cores * CORE_MILLIS,
        Stage.MEMORY_CAPACITY: survey.table.memory_bytes // MEMORY_STEP_BYTES * MEMORY_STEP_BYTES,
    }.get(stage)
    if has is None:
        return None
    row = max(survey.at(stage), key=lambda row: int(has[row]))
    most = int(has[row])
    if stage == Stage.GPU_CAPACITY:
        smaller, field, value = replace(demand, gpus=most), "selectors.gpu.count", str(most)
    elif stage == Stage.CPU_CAPACITY:
        smaller, field, value = replace(demand, cpu_millis=most), "selectors.cpu.count", format_cpu(most)
    else:
        smaller, field, value = replace(demand, memory_bytes=most), "config.memory", f"{most // _MIB}MiB"
    if not most or not survey.scratch.capacity_for(smaller)[row]:
        return None
    text = f"ask for at most {survey.amount(stage, most)}, which is what {survey.table.names[row]} has, and wait for it"
    return Change(text, ((field, value),), at_once=False)


def _wait(survey: Survey) -> Change | None:
    """What has to end before the closest node fits; None when waiting would not help."""
    stage = survey.furthest
    if stage < Stage.READY or stage == Stage.FITS:
        return None
    row = survey.closest(stage)
    name = survey.table.names[row]
    if stage in (Stage.READY, Stage.DRIVER_READY):
        return _wait_for(survey, row)
    if stage == Stage.RESERVED:
        return Change(f"wait for {survey.scratch.reservations[row].whom}, to start on {name}", at_once=False)
    gpus, cpu, memory = survey.short(row)
    missing = [
        counted(gpus, "GPU") if gpus else "",
        f"{format_cpu(cpu)} {'CPU' if cpu == CORE_MILLIS else 'CPUs'}" if cpu else "",
        f"{format_bytes(memory)} of memory" if memory else "",
    ]
    amount = listed([part for part in missing if part])
    holders = _holders(survey, row, gpus, cpu, memory)
    held = f" held by {listed(holders)}" if holders else ""
    return Change(f"wait for {amount}{held} on {name}", at_once=False, holders=tuple(holders))


def _wait_for(survey: Survey, row: int) -> Change:
    return Change(f"wait for {survey.table.names[row]}, which {survey.refusal(row).sentence}", at_once=False)


def _holders(survey: Survey, row: int, gpus: int, cpu: int, memory: int) -> list[str]:
    """The fewest containers whose end would free what is missing, found greedily; none if there are no such."""
    state, screen = survey.table.states[row], survey.screen
    fitting = {
        gpu.uuid
        for gpu in state.gpus
        if gpu.usable and (screen.any_model or survey.table.model_rows[gpu.model] in screen.models)
    }
    left = [float(gpus), float(cpu), float(memory)]
    want = [part or 1.0 for part in left]
    candidates = {
        holding.name: (
            float(len(fitting.intersection(holding.gpu_uuids))),
            float(holding.cpu_millis),
            float(holding.memory_bytes),
        )
        for holding in state.holdings.values()
    }
    picked: list[str] = []
    while any(part > 0 for part in left):
        gain = {
            name: sum(min(part, has) / all_of for part, has, all_of in zip(left, gives, want, strict=True) if part > 0)
            for name, gives in candidates.items()
            if name not in picked
        }
        if not gain or max(gain.values()) <= 0:
            return []
        best = min(gain, key=lambda name: (-gain[name], name))
        picked.append(best)
        left = [part - has for part, has in zip(left, candidates[best], strict=True)]
    return picked
