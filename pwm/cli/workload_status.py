"""A workload's status as it changes, for the commands that wait for something: run, logs -f.

The server's watch sends the workload as it is, then each change. A watch that breaks is begun anew: it
starts with the present state again, so nothing is missed that still matters.
"""

from __future__ import annotations

import time

from pwm.cli.client import BackOff, Client
from pwm.cli.errors import UNAVAILABLE, NoServerError, NotFoundError, ServerError
from pwm.cli.http1 import TransportError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from pwm.cli.invocation import Invocation
    from pwm.cli.target import Target

# Nothing of this run has begun.
WAITING = frozenset({"INSERTED", "QUEUED", "ASSIGNED", "PULLING", "LAUNCHING", "STUCK"})
# Nothing more will happen unless somebody asks for it.
OVER = frozenset({"DENIED", "STOPPED", "EXITED", "CRASHED", "DELETED"})
# Reasons for which a container never came to run.
NEVER_RAN = frozenset(
    {
        "REGISTRY_UNREACHABLE",
        "PULL_FAILED",
        "IMAGE_NOT_PRESENT",
        "ERROR_CREATING_CONTAINER",
        "ERROR_STARTING_CONTAINER",
        "CONFIG_NOT_ALLOWED",
        "COMMAND_NOT_FOUND",
    }
)
# How long all servers may be away while we wait. One that says that it cannot answer now is there.
AWAY_LIMIT_S = 60.0


def phase_of(workload: dict[str, Any]) -> str:
    return str(workload.get("status", {}).get("phase", ""))


def reason_code(workload: dict[str, Any]) -> str:
    return str(workload.get("status", {}).get("reason", {}).get("code", ""))


def in_words(workload: dict[str, Any]) -> str:
    """`QUEUED: no GPU is free`."""
    message = str(workload.get("status", {}).get("reason", {}).get("message", ""))
    return f"{phase_of(workload)}: {message}" if message else phase_of(workload)


def statuses(invocation: Invocation, target: Target) -> Iterator[dict[str, Any]]:
    """The workload now and after each change, without end; a deleted one comes as phase DELETED, last.

    A workload that was never there is a `NotFoundError`.
    """
    seen = False
    away_since: float | None = None
    pauses = BackOff()
    while True:
        client = Client(invocation.profile, warn=invocation.warn)
        query = {"names": [target.name], "group": target.group, "minRevision": invocation.client.revision or None}
        try:
            for message in client.stream("/v1/watch/Workload", query=query):
                away_since = None
                pauses.reset()
                kind = message.get("type")
                if kind == "SYNCED" and not seen:
                    raise NotFoundError(
                        f"there is no workload {target.name!r}", next_step="`pwm get wk` shows what there is."
                    )
                if kind == "DELETED":
                    yield {**message.get("resource", {}), "status": {"phase": "DELETED"}}
                    return
                if kind in ("ADDED", "MODIFIED"):
                    seen = True
                    yield message["resource"]
            trouble: Exception = NoServerError("the server ended the watch")
        except (TransportError, NoServerError) as error:
            trouble = error
        except ServerError as error:
            if error.status != UNAVAILABLE:
                raise
            trouble, away_since = error, None
        finally:
            client.close()
        away_since = away_since or time.monotonic()
        if time.monotonic() - away_since > AWAY_LIMIT_S:
            raise trouble if isinstance(trouble, ServerError) else NoServerError(str(trouble))
        time.sleep(pauses.next_s())
