"""Errors that reach a caller of the API: a status code, a sentence, and what to do next."""

from collections.abc import Sequence

import grpc

from pwm.api.v1.services_pb2 import Problem


class ApiError(Exception):
    """A call that is answered with an error.

    code:     gRPC status code, which the gateway maps to an HTTP status
    message:  one sentence for the user
    problems: findings with field and next step, shown below the sentence
    """

    def __init__(
        self, code: grpc.StatusCode, message: str, problems: Sequence[Problem] = (), next_step: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.problems = tuple(problems) or ((Problem(message=message, next_step=next_step),) if next_step else ())


class LoginFailed(ApiError):
    """A token that lets nobody in: one that has ended, or one that nobody has ever had.

    user, name: whose it was, and what it is called; empty for one that is nobody's
    what:       was wrong, in a few words, for the audit
    is_guess:   whether it counts against whoever tries; if not said, what is nobody's does
    """

    def __init__(
        self,
        message: str,
        *,
        next_step: str,
        user: str = "",
        name: str = "",
        what: str = "",
        is_guess: bool | None = None,
    ) -> None:
        super().__init__(grpc.StatusCode.UNAUTHENTICATED, message, next_step=next_step)
        self.user = user
        self.name = name
        self.what = what
        self.is_guess = not user if is_guess is None else is_guess


def not_found(what: str, *, next_step: str = "") -> ApiError:
    return ApiError(grpc.StatusCode.NOT_FOUND, what, next_step=next_step)


def conflict(what: str, *, next_step: str = "") -> ApiError:
    return ApiError(grpc.StatusCode.ABORTED, what, next_step=next_step)


def invalid(what: str, *, next_step: str = "") -> ApiError:
    return ApiError(grpc.StatusCode.INVALID_ARGUMENT, what, next_step=next_step)


def refused(what: str, *, next_step: str = "") -> ApiError:
    return ApiError(grpc.StatusCode.PERMISSION_DENIED, what, next_step=next_step)


def unavailable(what: str, *, next_step: str = "") -> ApiError:
    return ApiError(grpc.StatusCode.UNAVAILABLE, what, next_step=next_step)
