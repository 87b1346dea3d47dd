"""Gives an agent what the secrets of a container hold, when it is about to pull its image or to create it.

The values go to the session of the node that the container was placed on, and to no other. They are in no assignment:
those are sent again with every new session and noted on the node's disk. What an agent asks for while the store is
out of reach is answered when it is back; an agent whose session broke meanwhile asks again in the next.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from pwm import lifecycle
from pwm.api.v1.agent_pb2 import ContainerSecrets
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.workload_pb2 import Container
from pwm.controlplane.dispatcher.session import Session
from pwm.controlplane.secrets import SecretsClosed
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.view import View

log = structlog.get_logger(__name__)

RETRY_S = 0.5

Give = Callable[[Container], Awaitable[ContainerSecrets]]


async def give_secrets(session: Session, *, view: View, give: Give) -> None:
    """Answers what the session's agent asks for, one after the other, until cancelled."""
    while True:
        uid = await session.secrets_wanted.get()
        container: Container | None = view.get("Container", uid)
        if container is None or container.spec.node != session.node or container.status.phase in lifecycle.ENDED:
            log.warning("secrets refused: no such container is to run there", node=session.node, container=uid)
            session.give(_refused(uid, "the container is not to run on this node"))
            continue
        session.give(await _given(container, give))


async def _given(container: Container, give: Give) -> ContainerSecrets:
    while True:
        try:
            return await give(container)
        except SecretsClosed as error:
            log.error("secrets cannot be given", container=container.metadata.name, why=str(error))
            return _refused(container.metadata.uid, str(error))
        except store_errors.StoreError as error:
            log.info("secrets are given later", container=container.metadata.name, why=str(error))
            await asyncio.sleep(RETRY_S)


def _refused(uid: str, message: str) -> ContainerSecrets:
    reason = Reason(code=Reason.SECRET_NOT_EXIST, message=message)
    return ContainerSecrets(container_uid=uid, refused=reason)
