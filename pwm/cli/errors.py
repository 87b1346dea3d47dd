"""Errors of the command line: each says what was wrong, where, and what to do next.

Whatever goes wrong becomes a `CliError` before it reaches the user: errors of the server are read
from the gateway's JSON (`server_error`), those of the network come from `http1.py`. `main.py` prints
them and ends with their exit code; nothing else prints an error and exits.
"""

from __future__ import annotations

from pwm.cli import exit_codes

TYPE_CHECKING = False  # typing costs 4 ms; type checkers know this name
if TYPE_CHECKING:
    from typing import Any

# gRPC status codes, by number, as the gateway writes them.
UNKNOWN = 2
INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED = 3, 4, 5, 6, 7
RESOURCE_EXHAUSTED, FAILED_PRECONDITION, ABORTED, OUT_OF_RANGE, UNIMPLEMENTED = 8, 9, 10, 11, 12
UNAVAILABLE, UNAUTHENTICATED = 14, 16

_EXIT_OF_STATUS = {
    NOT_FOUND: exit_codes.NOT_FOUND,
    ALREADY_EXISTS: exit_codes.CONFLICT,
    ABORTED: exit_codes.CONFLICT,
    PERMISSION_DENIED: exit_codes.REFUSED,
    UNAUTHENTICATED: exit_codes.REFUSED,
    RESOURCE_EXHAUSTED: exit_codes.REFUSED,
    UNAVAILABLE: exit_codes.NO_SERVER,
}
_STATUS_OF_HTTP = {
    400: INVALID_ARGUMENT,
    401: UNAUTHENTICATED,
    403: PERMISSION_DENIED,
    404: NOT_FOUND,
    409: ALREADY_EXISTS,
    429: RESOURCE_EXHAUSTED,
    501: UNIMPLEMENTED,
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: UNAVAILABLE,
}


class CliError(Exception):
    """One sentence for the user, the next step, and the code the program ends with."""

    exit_code = exit_codes.FAILED

    def __init__(self, message: str, *, next_step: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step
        if exit_code is not None:
            self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}\n  {self.next_step}" if self.next_step else self.message


class UsageError(CliError):
    exit_code = exit_codes.USAGE


class NotFoundError(CliError):
    exit_code = exit_codes.NOT_FOUND


class NoServerError(CliError):
    exit_code = exit_codes.NO_SERVER


class TimedOutError(CliError):
    exit_code = exit_codes.TIMED_OUT


class ServerError(CliError):
    """What the server answered instead of a result; `status` is the gRPC code number."""

    def __init__(
        self, message: str, *, status: int, next_step: str = "", problems: list[dict[str, Any]] | None = None
    ) -> None:
        super().__init__(message, next_step=next_step, exit_code=exit_of_status(status))
        self.status = status
        self.problems = problems or []

    @property
    def unsure(self) -> bool:
        """Whether the request may have been done all the same: only the very same request once more tells."""
        return any(problem.get("code") == UNKNOWN for problem in self.problems)


def exit_of_status(status: int) -> int:
    """Exit code for a gRPC status code."""
    return _EXIT_OF_STATUS.get(status, exit_codes.FAILED)


def server_error(document: object, *, http_status: int = 500) -> ServerError:
    """The error in a gateway's answer `{code, message, details}`; whatever else came is quoted."""
    if not isinstance(document, dict):
        document = {"message": str(document)[:200]}
    status = document.get("code")
    if not isinstance(status, int):
        status = _STATUS_OF_HTTP.get(http_status, 2)
    details = document.get("details")
    problems = [
        detail
        for detail in (details if isinstance(details, list) else [])
        if isinstance(detail, dict) and str(detail.get("@type", "")).endswith("pwm.v1.Problem")
    ]
    next_steps = [str(problem["nextStep"]) for problem in problems if problem.get("nextStep")]
    if status == UNAUTHENTICATED and not next_steps:
        next_steps = ["pwm login takes a live token; PWM_TOKEN, where it is set, replaces the profile's"]
    message = str(document.get("message") or f"the server answered {http_status} without saying why")
    return ServerError(message, status=status, next_step="\n  ".join(next_steps), problems=problems)
