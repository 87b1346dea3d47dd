"""Which GPUs and which cores of a node a container gets."""

from collections import defaultdict
from collections.abc import Container, Iterable, Sequence

from pwm.controlplane.core.scheduling.nodes import GPUUnit


def pick_gpus(free: Sequence[GPUUnit], count: int) -> tuple[GPUUnit, ...]:
    """`count` of the free GPUs (given by index), on as few NUMA sides as can be.

    Of the sides that have enough, the one with the fewest free is taken, so that the others stay whole. If
    none has, the fullest sides are joined. Within a side the lowest index goes first.
    """
    if len(free) <= count:
        return tuple(free)
    first_side = free[0].numa
    if all(gpu.numa == first_side for gpu in free):
        return tuple(free[:count])
    sides: dict[int, list[GPUUnit]] = defaultdict(list)
    for gpu in free:
        sides[gpu.numa].append(gpu)
    enough = [side for side in sides.values() if len(side) >= count]
    if enough:
        best = min(enough, key=lambda side: (len(side), side[0].index))
        return tuple(best[:count])
    picked: list[GPUUnit] = []
    for side in sorted(sides.values(), key=lambda side: (-len(side), side[0].index)):
        picked += side[: count - len(picked)]
    return tuple(sorted(picked, key=lambda gpu: (gpu.index, gpu.uuid)))


def pick_cores(
    count: int, *, cores: int, taken: Container[int], gpus: Iterable[GPUUnit] = (), node_gpus: int = 0
) -> tuple[int, ...]:
    """`count` whole cores that nobody has for itself, in a row from where the container's first GPU is.

    Machines number cores and GPUs side by side, so the cores near GPU i of n start at about i/n of all.
    """
    lowest = min((gpu.index for gpu in gpus), default=0)
    start = cores * min(lowest, node_gpus - 1) // node_gpus if node_gpus else 0
    picked: list[int] = []
    for offset in range(cores):
        core = (start + offset) % cores
        if core not in taken:
            picked.append(core)
            if len(picked) == count:
                break
    return tuple(sorted(picked))
