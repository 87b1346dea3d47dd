"""Why a workload cannot start: one sentence, the same per node, and what would help.

The sentence comes from the nodes that got furthest through the filters, for they are the closest to running
it. It claims no more than was seen: "no node that matches has ..." when others had already said no.
"""

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.workload_pb2 import Workload
from pwm.controlplane.core.limits import HeldBack, whom
from pwm.controlplane.core.scheduling.accounts import Budget
from pwm.controlplane.core.scheduling.cluster import Cluster
from pwm.controlplane.core.scheduling.demand import Demand
from pwm.controlplane.core.scheduling.scratch import Scratch
from pwm.controlplane.core.scheduling.suggest import changes_that_help, changes_without_node
from pwm.controlplane.core.scheduling.survey import Survey
from pwm.controlplane.core.scheduling.verdicts import Change, Explanation, Refusal, Stage, listed
from pwm.quantity import format_bytes


def explain(cluster: Cluster, workload: Workload) -> Explanation:
    """Why replicas of the workload that wait do not start, as things are now. Answers are kept until a change."""
    demand, together = cluster.accounts.demand_of(workload), 1
    if workload.spec.gang:
        count = workload.spec.replica.count if workload.spec.replica.HasField("count") else 1
        together = max(1, count - cluster.live_replicas(workload.metadata.uid))
    known = cluster.explanations.get((demand, together))
    if known is None:
        known = cluster.explanations[demand, together] = explain_demand(cluster.scratch(), demand, together=together)
    held = _held_back(cluster, workload, demand, together)
    # A limit that is reached is no news to who could not run anyway.
    return known if held is None or not (held.over or known.possible) else explain_limit(held)


def _held_back(cluster: Cluster, workload: Workload, demand: Demand, together: int) -> HeldBack | None:
    if not cluster.accounts.bounds(workload):
        return None
    budget, scratch = Budget(cluster.accounts), cluster.scratch()
    held = budget.held_back(scratch, demand, workload, together=together)
    if held is None:
        fits = scratch.fitting(demand, scratch.table.screen(demand))
        affordable = budget.affordable(scratch, demand, workload)
        if affordable is not None and fits.any() and not (fits & affordable).any():
            held = budget.held_back_where_it_fits(scratch, demand, workload, fits=fits)
    return held


def explain_limit(held: HeldBack) -> Explanation:
    """Why somebody who may have no more of something has to wait, or waits in vain."""
    change = Change(held.advice, held.fields, at_once=False)
    return Explanation(held.reason, changes=[change], possible=not held.over)


def explain_demand(scratch: Scratch, demand: Demand, *, together: int = 1) -> Explanation:
    """Why `together` replicas with this demand do not start at once on what the scratch has free."""
    if demand.invalid:
        return _refused(Reason.CONFIG_NOT_ALLOWED, demand.invalid)
    if demand.volumes:
        return _refused(Reason.VOLUME_NOT_READY, "volumes are not available in this version yet")
    if not scratch.table.names:
        return _refused(Reason.NO_NODE_READY, "the cluster has no node yet")
    if demand.node and demand.node not in scratch.table.rows:
        explanation = _refused(Reason.EMPTY_NODE_SELECTOR, f"no node is called {demand.node}")
        explanation.changes = changes_without_node(scratch, demand, together=together)
        return explanation
    survey = Survey(scratch, demand)
    capacity = scratch.capacity_for(demand)
    hosts = survey.rows[survey.stages[survey.rows] >= Stage.READY]
    most = int(capacity[hosts].sum())
    if 0 < most < together:
        message = f"needs room for {together} replicas at once, the nodes that match have room for {most}"
        reason = Reason(code=Reason.GANG_DOES_NOT_FIT, message=message)
    else:
        reason = _main_reason(survey, together)
    changes = changes_that_help(survey, together=together, possible=most >= together)
    if reason.code == Reason.NODE_NOT_ALLOWED:
        advice = f"have spec.limits.resources.nodes of {whom(demand.rules)} widened"
        changes.append(Change(advice, at_once=False))
    return Explanation(reason=reason, refusals=_by_node(survey), changes=changes, possible=most >= together)


def _refused(code: Reason.Code.ValueType, message: str) -> Explanation:
    return Explanation(Reason(code=code, message=message))


def _by_node(survey: Survey) -> list[tuple[Reason, tuple[str, ...]]]:
    """What the nodes said, most frequent first; nodes that fit said nothing."""
    said: dict[Refusal, list[str]] = defaultdict(list)
    order = survey.rows[np.argsort(survey.said[survey.rows], kind="stable")]
    for rows in np.split(order, np.flatnonzero(np.diff(survey.said[order])) + 1):
        refusal = survey.refusal(rows[0])
        if refusal.stage != Stage.FITS:
            said[refusal] += [survey.table.names[row] for row in rows.tolist()]
    ranked = sorted(said.items(), key=lambda item: (-len(item[1]), -item[0].stage, item[1]))
    return [(Reason(code=refusal.code, message=refusal.sentence), tuple(names)) for refusal, names in ranked]


def _main_reason(survey: Survey, together: int) -> Reason:
    stage = survey.furthest
    rows = survey.at(stage)
    if stage == Stage.FITS:
        return _fitting_reason(survey, together)
    if stage == Stage.READY:
        return _readiness_reason(survey, rows)
    row = survey.closest(stage)
    refusal, name = survey.refusal(row), survey.table.names[row]
    if len(survey.rows) == 1 and stage < Stage.GPU_CAPACITY:
        message = f"{name} {refusal.sentence}"
    elif stage in _NOBODY_HAS:
        reached_by_all = len(rows) == len(survey.rows)
        message = _NOBODY_HAS[stage](survey, "no node" if reached_by_all else "no node that matches")
    elif stage in (Stage.DRIVER_READY, Stage.RESERVED):
        message = f"{name} {refusal.sentence}"
    else:
        message = f"{refusal.sentence} on {name}" + (f", the closest of {len(rows)} nodes" if len(rows) > 1 else "")
    return Reason(code=refusal.code, message=message)


def _fitting_reason(survey: Survey, together: int) -> Reason:
    room = int(survey.scratch.room(survey.demand).sum())
    if room < together:
        message = f"needs room for {together} replicas at once, there is room for {room} now"
        return Reason(code=Reason.GANG_DOES_NOT_FIT, message=message)
    names = listed([survey.table.names[row] for row in survey.at(Stage.FITS)], word="or", most=3)
    return Reason(code=Reason.WAITING_FOR_SCHEDULER, message=f"fits on {names} and waits for its turn")


def _readiness_reason(survey: Survey, rows: list[int]) -> Reason:
    said: dict[Refusal, int] = defaultdict(int)
    for row in rows:
        said[survey.refusal(row)] += 1
    ranked = sorted(said.items(), key=lambda item: (-item[1], item[0].sentence))
    most = ranked[0][0]
    codes = {refusal.code for refusal in said}
    if len(rows) == 1:
        return Reason(code=most.code, message=f"{survey.table.names[rows[0]]} {most.sentence}")
    parts = [f"{count} {refusal.sentence if count == 1 else _plural(refusal.sentence)}" for refusal, count in ranked]
    everywhere = len(rows) == len(survey.table.names)
    code = Reason.NO_NODE_READY if everywhere or len(codes) > 1 else most.code
    which = f"none of the {len(rows)} nodes{'' if everywhere else ' that match'} is ready"
    return Reason(code=code, message=f"{which}: {listed(parts)}")


def _plural(sentence: str) -> str:
    """`is lost` said of several nodes."""
    first, _, rest = sentence.partition(" ")
    return f"{ {'is': 'are', 'has': 'have'}.get(first, first) } {rest}"


def _zone(survey: Survey, scope: str) -> str:
    return f"{scope} is in zone {survey.demand.zone}"


def _labels(survey: Survey, scope: str) -> str:
    labels = [f"{key}={value}" for key, value in survey.demand.labels]
    return f"{scope} has the {'label' if len(labels) == 1 else 'labels'} {listed(labels)}"


def _type(survey: Survey, scope: str) -> str:
    return f"{scope} takes {'GPU' if survey.demand.gpus else 'CPU'} workloads"


def _driver(survey: Survey, scope: str) -> str:
    return f"{scope} offers and allows the driver {survey.demand.driver}"


def _cpu_model(survey: Survey, scope: str) -> str:
    return f"{scope} has the CPU {listed(survey.demand.cpu_products, word='or')}"


def _gpu_model(survey: Survey, scope: str) -> str:
    has = listed(sorted({model.product for model in survey.table.models}))
    there_are = f"; there are {has}" if has and survey.demand.gpu_products else ""
    return f"{scope} has a GPU{' ' if survey.demand.gpu_products else ''}{_wanted(survey)}{there_are}"


def _gpu_memory(survey: Survey, scope: str) -> str:
    most = max(model.memory_bytes for model in survey.table.models)
    asked = format_bytes(survey.demand.gpu_memory_bytes)
    return (
        f"{scope} has GPUs {_wanted(survey)}".rstrip()
        + f" with {asked}; the largest there are have {format_bytes(most)}"
    )


def _wanted(survey: Survey) -> str:
    return listed(survey.demand.gpu_products, word="or")


def _gpu_capacity(survey: Survey, scope: str) -> str:
    row = max(survey.at(Stage.GPU_CAPACITY), key=lambda row: survey.model_gpus[row])
    amount = survey.amount(Stage.GPU_CAPACITY, survey.demand.gpus)
    return f"{scope} has {amount}; the largest has {survey.model_gpus[row]} ({survey.table.names[row]})"


def _cpu_capacity(survey: Survey, scope: str) -> str:
    row = max(survey.at(Stage.CPU_CAPACITY), key=lambda row: survey.table.cores[row])
    amount = survey.amount(Stage.CPU_CAPACITY, int(survey.screen.cpu_millis[row]))
    return f"{scope} has {amount}; the largest has {survey.table.cores[row]} ({survey.table.names[row]})"


def _memory_capacity(survey: Survey, scope: str) -> str:
    row = max(survey.at(Stage.MEMORY_CAPACITY), key=lambda row: survey.table.memory_bytes[row])
    amount = survey.amount(Stage.MEMORY_CAPACITY, int(survey.screen.memory_bytes[row]))
    has = format_bytes(int(survey.table.memory_bytes[row]))
    return f"{scope} has {amount}; the largest has {has} for containers ({survey.table.names[row]})"


def _admitted(survey: Survey, scope: str) -> str:
    return f"{scope} is open to {whom(survey.demand.rules)}"


_NOBODY_HAS: dict[Stage, Callable[[Survey, str], str]] = {
    Stage.ADMITTED: _admitted,
    Stage.ZONE: _zone,
    Stage.LABEL: _labels,
    Stage.TYPE: _type,
    Stage.DRIVER: _driver,
    Stage.CPU_MODEL: _cpu_model,
    Stage.GPU_MODEL: _gpu_model,
    Stage.GPU_MEMORY: _gpu_memory,
    Stage.GPU_CAPACITY: _gpu_capacity,
    Stage.CPU_CAPACITY: _cpu_capacity,
    Stage.MEMORY_CAPACITY: _memory_capacity,
}
