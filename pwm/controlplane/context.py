"""What a service knows of the call it answers.

The generated servicers expect gRPC's own context, which is made for network calls. The gateway calls
services in process, and they need five things only, so this is all they get. Cancellation is asyncio's: when
the client goes away or the deadline passes, the call's task is cancelled.

Which call it is that something is done for is known to all that runs for it (`CALL`): what is written down about
changes and denials must not depend on every service passing it on.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class CallContext:
    """
    principal:       who calls, as the authenticator said
    peer:            the caller's IP address
    idempotency_key: the caller's name for this change, so that a retry is answered and not done twice; "" = none
    request_id:      names this call in logs and in the answer's X-Request-Id
    deadline:        asyncio loop time at which the caller stops waiting; None = never
    """

    principal: Any = None
    peer: str = ""
    idempotency_key: str = ""
    request_id: str = ""
    deadline: float | None = None


# None: this is done for nobody's call, as by a controller's loop.
CALL: ContextVar[CallContext | None] = ContextVar("call", default=None)
