"""Applying documents: read, check, decide, append, one result per document.

Documents stand alone: one that is refused changes nothing and the others go on. Workloads next to each
other are applied at the same time, so that the store can group their commits; any other kind is finished
before what follows it, because what follows may need it (a group, then a workload in it).

A request that is repeated because its answer was lost is answered as it was: each document has a receipt of its own,
since the first attempt may have come only so far. Else it could undo what somebody else has applied in between.
"""

import asyncio
from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any

import grpc

from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.identity_pb2 import Secret
from pwm.api.v1.node_pb2 import Node
from pwm.api.v1.services_pb2 import ApplyRequest, ApplyResponse, ApplyResult, Problem
from pwm.api.v1.workload_pb2 import ContainerSpec, Workload, WorkloadStatus
from pwm.controlplane.auth import Authorizer, Principal
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import Commands, NameInUse
from pwm.controlplane.context import CallContext
from pwm.controlplane.core.decide import Change, Refusal, apply_resource, apply_workload, replica_count
from pwm.controlplane.core.ledger import devices_of
from pwm.controlplane.core.limits import OVER_CODES, REACHED_CODES, What
from pwm.controlplane.core.manifest import Parsed
from pwm.controlplane.core.reconcile import reconcile
from pwm.controlplane.core.registries import is_allowed, registry_of
from pwm.controlplane.core.scheduling.cluster import Cluster
from pwm.controlplane.core.scheduling.explain import explain
from pwm.controlplane.core.scheduling.plan import Placement, plan
from pwm.controlplane.core.scheduling.queue import Waiting
from pwm.controlplane.core.targets import kept, own_kept
from pwm.controlplane.delivery.courier import NoticeSettings
from pwm.controlplane.errors import ApiError
from pwm.controlplane.services.manifests import locate, read_request
from pwm.controlplane.services.notices import warn_unsent
from pwm.controlplane.services.secrets import SecretApplier
from pwm.controlplane.services.unknown import warn_unknown
from pwm.controlplane.services.using import check_use
from pwm.controlplane.sight import Sight
from pwm.controlplane.store.commits import ReceiptWrite
from pwm.controlplane.store.errors import AlreadyAnswered
from pwm.controlplane.treasury import Treasury
from pwm.controlplane.view import View
from pwm.quantity import format_credits

# Where a document asks for what no node has.
_ASKED_IN = {
    Reason.EMPTY_NODE_SELECTOR: "spec.selectors.node",
    Reason.EMPTY_LABEL_SELECTOR: "spec.selectors.label",
    Reason.EMPTY_GPU_SELECTOR: "spec.selectors.gpu",
    Reason.EMPTY_CPU_SELECTOR: "spec.selectors.cpu",
    Reason.NO_MEMORY_FREE: "spec.config.memory",
    Reason.NODE_NOT_ALLOWED: "spec.selectors.node",
    **{code: f"spec.{what.asked_in}" for what in What for code in (what.over, what.reached) if what.asked_in},
    Reason.TOO_MANY_WORKLOADS: "spec",
    Reason.OVER_WORKLOAD_LIMIT: "spec",
}


class Applier:
    def __init__(
        self,
        *,
        view: View,
        commands: Commands,
        cluster: Cluster,
        authorizer: Authorizer,
        secrets: SecretApplier,
        treasury: Treasury,
        clock: Clock,
        notices: NoticeSettings | None = None,
        registries: Collection[str] = (),
    ) -> None:
        """`registries` that images may come from; none: all."""
        self._registries = registries
        self._notices = notices
        self._view = view
        self._secrets = secrets
        self._treasury = treasury
        self._commands = commands
        self._cluster = cluster
        self._authorizer = authorizer
        self._clock = clock

    async def apply(self, request: ApplyRequest, context: CallContext) -> ApplyResponse:
        principal = context.principal
        group = request.group or principal.default_group
        readings = await read_request(request, group=group)
        parsed = [reading.meaning for reading in readings]
        results: list[ApplyResult] = []
        revision = self._view.revision
        key = "" if request.dry_run else context.idempotency_key
        for _, documents in groupby(_batches(parsed), key=lambda pair: pair[0]):
            # In a dry run what follows a group may be in it all the same.
            made = {r.name for r in results if r.kind == "Group" and r.outcome == ApplyResult.CREATED}
            outcomes = await asyncio.gather(
                *(
                    self._one(
                        document,
                        principal,
                        dry_run=request.dry_run,
                        made=made if request.dry_run else (),
                        receipt=_receipt(principal, key, number),
                    )
                    for number, (_, document) in enumerate(documents, start=len(results))
                )
            )
            results += [result for result, _ in outcomes]
            revision = max(revision, *(r for _, r in outcomes))
        beside = {(d.kind, d.message.metadata.name) for d in parsed if isinstance(d, Parsed)}
        for document, result in zip(parsed, results, strict=True):
            if isinstance(document, Parsed) and result.outcome in (ApplyResult.CREATED, ApplyResult.CONFIGURED):
                await asyncio.sleep(0)  # half a millisecond for each: others go on meanwhile
                if not self._warn_of_credits(document, result, principal):
                    self._warn_in_vain(document, result, principal)
                warn_unsent(document.message, result, settings=self._notices, caller=principal.user)
                warn_unknown(document.message, result, view=self._view, beside=beside)
                if isinstance(document.message, Workload):
                    self._secrets.warn_absent(document.message, result)
        await locate(readings, results)
        return ApplyResponse(results=results, revision=revision)

    async def _one(
        self,
        parsed: Parsed | ApplyResult,
        principal: Principal,
        *,
        dry_run: bool,
        made: Collection[str],
        receipt: ReceiptWrite | None,
    ) -> tuple[ApplyResult, int]:
        """`made`: groups that would be there by now."""
        if isinstance(parsed, ApplyResult):
            return parsed, 0
        message = parsed.message
        result = ApplyResult(
            kind=parsed.kind, name=message.metadata.name, group=message.metadata.group, warnings=parsed.warnings
        )
        revision = 0
        try:
            self._authorizer.require(
                principal,
                verb="apply",
                kind=parsed.kind,
                group=message.metadata.group,
                about=message.metadata.name,
            )
            sight = Sight(self._authorizer, principal)
            self._check_references(parsed, sight, made=made)
            self._check_registry(parsed.message)
            check_use(parsed.message, sight, name=principal.name)
            revision = await self._append(parsed, principal, result=result, dry_run=dry_run, receipt=receipt)
        except AlreadyAnswered as error:
            return ApplyResult.FromString(error.answer), error.revision
        except ApiError as error:
            if error.code == grpc.StatusCode.UNAVAILABLE:
                raise
            _refuse(result, error.message, error.code, error.problems)
        except Refusal as error:
            code = grpc.StatusCode.ABORTED if error.conflict else grpc.StatusCode.FAILED_PRECONDITION
            problem = Problem(field="metadata.name", message=str(error), next_step=error.next_step)
            _refuse(result, str(error), code, (problem,))
        except NameInUse as error:
            problem = Problem(
                field="metadata.name",
                message=f"{error}",
                next_step=f"choose another name, or delete the {error.holder_kind} {error.name} first",
            )
            _refuse(result, str(error), grpc.StatusCode.ALREADY_EXISTS, (problem,))
        return result, revision

    def _check_references(self, parsed: Parsed, sight: Sight, *, made: Collection[str]) -> None:
        """What a document names must exist, where starting without it would make no sense."""
        group = parsed.message.metadata.group
        if group and group not in made and self._view.by_name("Group", group) is None:
            seen = (g.metadata.name for g in self._view.all("Group") if sight.of("Group", g) is not None)
            known = ", ".join(sorted(seen)) or "none yet"
            raise ApiError(
                grpc.StatusCode.NOT_FOUND,
                f"there is no group {group}",
                [
                    Problem(
                        field="metadata.group",
                        message=f"there is no group {group}",
                        next_step=f"use one of {known}, or apply a Group named {group} first",
                    )
                ],
            )

    def _check_registry(self, message: object) -> None:
        image = message.spec.image.image if isinstance(message, Workload) else ""
        if image and not is_allowed(image, self._registries):
            said = f"images of {registry_of(image)} may not be used here"
            known = ", ".join(sorted(self._registries))
            problem = Problem(field="spec.image.image", message=said, next_step=f"images may come from {known}")
            raise ApiError(grpc.StatusCode.PERMISSION_DENIED, said, [problem])

    async def _append(
        self,
        parsed: Parsed,
        principal: Principal,
        *,
        result: ApplyResult,
        dry_run: bool,
        receipt: ReceiptWrite | None,
    ) -> int:
        uid = self._clock.new_id()
        held = await self._secrets.held(parsed.message) if isinstance(parsed.message, Secret) else None

        def decide() -> Sequence[Change]:
            metadata = parsed.message.metadata
            state = self._view.by_name(parsed.kind, metadata.name, group=metadata.group)
            wanted: Any = own_kept(kept(parsed.message, state), state)
            sealed = None
            if isinstance(wanted, Secret):
                outcome, payloads, sealed = self._secrets.decide(state, wanted, held, uid=uid)
            elif isinstance(wanted, Workload):
                containers = self._view.containers_of(state.metadata.uid) if state is not None else []
                outcome, payloads = apply_workload(state, wanted, containers)
            else:
                outcome, payloads = apply_resource(state, wanted)
            result.outcome = outcome
            result.uid = state.metadata.uid if state is not None else uid
            return [Change(parsed.kind, result.uid, metadata.name, metadata.group, state, payloads, sealed=sealed)]

        if dry_run:
            decide()
            self._predict(parsed, result, principal)
            return 0
        done = await self._commands.run(decide, actor=principal.actor, receipt=receipt, answer=result.SerializeToString)
        return done.revision

    def _warn_of_credits(self, parsed: Parsed, result: ApplyResult, principal: Principal) -> bool:
        """Say that credits are low or spent. True: nothing of it starts."""
        if not isinstance(parsed.message, Workload):
            return False
        said, denied = self._treasury.remark(self._as_applied(parsed.message, principal))
        if said:
            message = f"it is DENIED: {said}" if denied else f"credits are low: {said}"
            result.warnings.add(message=message, next_step="pwm credits says what is left and what devices cost")
        return denied

    def _warn_in_vain(self, parsed: Parsed, result: ApplyResult, principal: Principal) -> None:
        """Say at once when a workload waits for something that no node has, or that it may not have: a node may join
        and a limit may be raised, but a typo is likelier."""
        if not isinstance(parsed.message, Workload):
            return
        workload = self._as_applied(parsed.message, principal)
        gap = reconcile(workload, self._view.containers_of(workload.metadata.uid), now_ms=self._clock.now_ms())
        if not gap.vacancies:
            return
        explanation = explain(self._cluster, workload)
        code = explanation.reason.code
        field = _ASKED_IN.get(code)
        waits = code in REACHED_CODES
        if field is None or (explanation.possible and not waits) or (waits and result.prediction):
            return
        change = next(iter(explanation.changes), None)
        if change is not None and change.fields:
            field = f"spec.{change.fields[0][0]}"
        if waits:
            said = "it waits"
        else:
            said = "it is DENIED" if code in OVER_CODES else "it cannot start on the nodes there are"
        more = f"pwm why wk {parsed.message.metadata.name} says more"
        result.warnings.add(
            field=field,
            message=f"{said}: {explanation.reason.message}",
            next_step=f"{change.text}; {more}" if change is not None else more,
        )

    def _as_applied(self, wanted: Workload, principal: Principal) -> Workload:
        """The workload as it is after it was applied or, in a dry run, as it would be."""
        metadata = wanted.metadata
        state: Workload | None = self._view.by_name("Workload", metadata.name, group=metadata.group)
        if state is not None and state.spec == wanted.spec:
            return state
        workload = Workload()
        workload.CopyFrom(wanted)
        workload.status.desired = WorkloadStatus.RUN
        if state is None:
            workload.metadata.created_by.CopyFrom(principal.actor)
        else:
            workload.metadata.MergeFrom(state.metadata)
            workload.status.CopyFrom(state.status)
        return workload

    def _predict(self, parsed: Parsed, result: ApplyResult, principal: Principal) -> None:
        if not isinstance(parsed.message, Workload) or result.outcome == ApplyResult.UNCHANGED:
            return
        now_ms = self._clock.now_ms()
        workload = self._as_applied(parsed.message, principal)
        replicas = range(replica_count(workload.spec))
        waiting = [Waiting(workload=workload, replica=replica, attempt=1, since_ms=now_ms) for replica in replicas]
        denied = self._treasury.denial(workload)
        if denied is not None:
            result.prediction = f"would be DENIED: {denied.message}"
            return
        planned = plan(self._cluster, waiting, now_ms=now_ms, seed=0)
        nodes = sorted({placement.node for placement in planned.placements})
        if not waiting:
            result.prediction = "would have no replica"
        elif len(planned.placements) == len(waiting):
            result.prediction = f"would start now on {_few(nodes)}" + self._priced(planned.placements)
        else:
            reason = next(iter(planned.refusals.values())).reason.message
            started = len(planned.placements)
            some = f"{started} of {len(waiting)} would start now on {_few(nodes)}, the others " if started else ""
            result.prediction = f"{some}would wait: {reason}"

    def _priced(self, placements: Sequence[Placement]) -> str:
        """What they cost an hour where they would go; nothing if they cost nothing."""
        hourly_micro = 0
        for placement in placements:
            node: Node | None = self._view.by_name("Node", placement.node)
            if node is not None:
                spec = ContainerSpec(gpu_uuids=placement.gpu_uuids, resources=placement.resources)
                hourly_micro += self._treasury.price_of(devices_of(spec, node.status.inventory))
        return f", for {format_credits(hourly_micro)} credits an hour" if hourly_micro else ""


def _receipt(principal: Principal, key: str, number: int) -> ReceiptWrite | None:
    """Where the answer to one document of a request is kept."""
    return ReceiptWrite(principal.name, f"{key}/{number}", b"") if key else None


def _few(nodes: Sequence[str]) -> str:
    named = ", ".join(nodes[:3])
    return (
        f"node {named}"
        if len(nodes) == 1
        else f"nodes {named}" + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")
    )


def _batches(parsed: Sequence[Parsed | ApplyResult]) -> list[tuple[int, Parsed | ApplyResult]]:
    """Each document with the number of the batch it may be applied in."""
    batches: list[tuple[int, Parsed | ApplyResult]] = []
    number = 0
    seen: set[tuple[str, str]] = set()
    for document in parsed:
        alone = not (isinstance(document, ApplyResult) or document.kind == "Workload")
        name = ("", "") if isinstance(document, ApplyResult) else _name(document)
        if alone or (name in seen and any(name)):
            number += 1
            seen.clear()
        seen.add(name)
        batches.append((number, document))
        if alone:
            number += 1
            seen.clear()
    return batches


def _name(parsed: Parsed) -> tuple[str, str]:
    return parsed.message.metadata.group, parsed.message.metadata.name


def _refuse(result: ApplyResult, message: str, code: grpc.StatusCode, problems: Sequence[Problem]) -> None:
    result.outcome = ApplyResult.REFUSED
    number = code.value[0]
    for problem in problems or (Problem(message=message),):
        added = result.problems.add()
        added.CopyFrom(problem)
        added.code = added.code or number
