"""Applying a Secret: its values go beside the log, and nothing but their names into it."""

from dataclasses import dataclass

from pwm.api.v1.common_pb2 import Metadata
from pwm.api.v1.identity_pb2 import Secret, SecretValues
from pwm.api.v1.services_pb2 import ApplyResult
from pwm.api.v1.workload_pb2 import Workload
from pwm.controlplane.core.decide import Payload, Refusal
from pwm.controlplane.core.secrets import apply_secret, missing
from pwm.controlplane.errors import unavailable
from pwm.controlplane.secrets import KIND, Secrets, SecretsClosed
from pwm.controlplane.store.errors import KVError
from pwm.controlplane.view import View


@dataclass(frozen=True, slots=True, repr=False)
class Held:
    """What a Secret holds, and the version that this came with."""

    version: int
    values: SecretValues


class SecretApplier:
    def __init__(self, *, view: View, secrets: Secrets) -> None:
        self._view = view
        self._secrets = secrets

    async def held(self, wanted: Secret) -> Held | None:
        """What there is of it now. Values that cannot be opened any more can only be replaced. Raises ApiError."""
        state: Secret | None = self._view.by_name(KIND, wanted.metadata.name, group=wanted.metadata.group)
        try:
            return Held(*await self._secrets.values(state)) if state is not None else None
        except SecretsClosed:
            return None
        except KVError as error:
            step = "try again in a moment; `pwm admin status` shows the state of etcd"
            raise unavailable(f"the secret cannot be read now: {error}", next_step=step) from error

    def decide(
        self, state: Secret | None, wanted: Secret, held: Held | None, *, uid: str
    ) -> tuple[ApplyResult.Outcome.ValueType, tuple[Payload, ...], bytes | None]:
        """What to append, and what to keep beside it. `uid`: of a new one. Raises Refusal."""
        if state is not None and held is not None and held.version != state.metadata.version:
            raise Refusal("somebody has just changed the secret", next_step="apply it again", conflict=True)
        outcome, payloads, values = apply_secret(state, wanted, held.values if held is not None else None)
        if not payloads:
            return outcome, payloads, None
        metadata = state.metadata if state is not None else Metadata(uid=uid)
        try:
            return outcome, payloads, self._secrets.seal(values, uid=metadata.uid, version=metadata.version + 1)
        except SecretsClosed as error:
            raise Refusal(f"nothing is kept that cannot be encrypted: {error}") from error

    def warn_absent(self, workload: Workload, result: ApplyResult) -> None:
        """Say at once when a workload waits for a secret."""
        absent = missing(workload, lambda group, name: self._view.by_name(KIND, name, group=group))
        if absent is not None:
            step = "it starts by itself as soon as the secret is applied"
            result.warnings.add(field=absent.field, message=f"it waits: {absent.reason.message}", next_step=step)
