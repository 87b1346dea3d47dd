"""Using what is there is a verb of its own: a node to run on, a volume to mount, a secret, a storage of a volume.

It is asked when something is about to be used: when a workload is applied, scaled or started again, and when a volume
is applied. Which node it will be is decided later, for all of them alike.
"""

import grpc

from pwm.api.v1.services_pb2 import Problem
from pwm.api.v1.volume_pb2 import Volume
from pwm.api.v1.workload_pb2 import Workload
from pwm.controlplane.core.kinds import Applied
from pwm.controlplane.core.secrets import references_of
from pwm.controlplane.errors import ApiError
from pwm.controlplane.sight import Sight


def check_use(message: Applied, sight: Sight, *, name: str) -> None:
    """Raises ApiError PERMISSION_DENIED, with a problem for each thing that the caller, called `name`, may not use."""
    needed: list[tuple[str, str, str]] = []
    if isinstance(message, Workload):
        needed = [
            (f"spec.volumes[{number}]", "Volume", mount.group or message.metadata.group)
            for number, mount in enumerate(message.spec.volumes)
        ]
        # Who may use one secret of a group may use all of them.
        secrets = {group: field for field, (group, _, _) in reversed(references_of(message))}
        needed += [(field, "Secret", group) for group, field in sorted(secrets.items())]
        needed.append(("spec", "Node", ""))
    elif isinstance(message, Volume):
        needed = [("spec.storage", "Storage", "")]
    problems = [
        Problem(
            field=field,
            message=f"{name} may not use {kind}" + (f" in group {group}" if group else ""),
            next_step="ask an admin for the verb `use`; pwm whoami shows what you may",
        )
        for field, kind, group in needed
        if not sight.may(kind, group=group, verb="use")
    ]
    if problems:
        raise ApiError(grpc.StatusCode.PERMISSION_DENIED, problems[0].message, problems)
