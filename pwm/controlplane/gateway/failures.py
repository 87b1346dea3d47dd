"""Errors as HTTP shows them: grpc-gateway's JSON and its table of statuses.

A service raises `ApiError` and knows nothing of HTTP. What only HTTP can get wrong (an unknown route, a body too
long) is an `HttpError`, an ApiError with an HTTP status and headers of its own, so that both take the same way out.
Anything else that is raised is a fault of ours: the caller gets a sentence with the request id to tell us,
the log gets the traceback.
"""

from collections.abc import Mapping
from typing import Any

import grpc
import orjson

from pwm.api.v1.services_pb2 import Problem
from pwm.controlplane.errors import ApiError
from pwm.controlplane.gateway.scalars import BadInput

Code = grpc.StatusCode

# https://github.com/grpc-ecosystem/grpc-gateway, runtime.HTTPStatusFromCode
HTTP_STATUS: dict[grpc.StatusCode, int] = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.UNAUTHENTICATED: 401,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
}


class HttpError(ApiError):
    """An error with an HTTP status that its code alone would not give."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        status: int,
        headers: Mapping[str, str] | None = None,
        next_step: str = "",
    ) -> None:
        super().__init__(code, message, next_step=next_step)
        self.status = status
        self.headers = dict(headers or {})


def http_status(error: ApiError) -> int:
    return error.status if isinstance(error, HttpError) else HTTP_STATUS[error.code]


def http_headers(error: ApiError) -> dict[str, str]:
    if isinstance(error, HttpError):
        return error.headers
    return {"WWW-Authenticate": "Bearer"} if error.code is Code.UNAUTHENTICATED else {}


def error_value(error: ApiError) -> dict[str, Any]:
    """`{"code": …, "message": …, "details": […]}`, as grpc-gateway writes it."""
    return {
        "code": error.code.value[0],
        # A path may hold bytes that are no text; what quotes it has to be.
        "message": error.message.encode(errors="replace").decode(),
        "details": [_problem(problem) for problem in error.problems],
    }


def error_body(error: ApiError) -> bytes:
    return orjson.dumps(error_value(error))


def _problem(problem: Problem) -> dict[str, Any]:
    out: dict[str, Any] = {"@type": "pwm.v1.Problem"}
    if problem.field:
        out["field"] = problem.field
    out["message"] = problem.message
    if problem.next_step:
        out["nextStep"] = problem.next_step
    if problem.code:
        out["code"] = problem.code
    return out


def from_bad_input(error: BadInput) -> ApiError:
    problems = [Problem(field=error.path, message=error.message)] if error.path else []
    return ApiError(Code.INVALID_ARGUMENT, str(error), problems)


def internal(request_id: str) -> ApiError:
    return ApiError(
        Code.INTERNAL, f"PWM failed at this request; the server's log says why under request id {request_id}"
    )


def deadline_exceeded() -> ApiError:
    return ApiError(Code.DEADLINE_EXCEEDED, "the answer took longer than the client wanted to wait")


def shutting_down() -> ApiError:
    return ApiError(
        Code.UNAVAILABLE, "this controller is stopping", next_step="connect again, to this or another controller"
    )


def no_token() -> ApiError:
    return ApiError(
        Code.UNAUTHENTICATED,
        "no token was sent",
        next_step="send the header Authorization: Bearer TOKEN; for the command line: pwm login",
    )


def no_route(path: str) -> ApiError:
    return HttpError(Code.NOT_FOUND, f"there is nothing at {path[:200]}; /openapi.json lists what there is", status=404)


def wrong_method(method: str, path: str, allowed: list[str]) -> ApiError:
    listed = ", ".join(allowed)
    return HttpError(
        Code.UNIMPLEMENTED, f"{method} is not possible at {path[:200]}, but {listed} is", status=405,
        headers={"Allow": listed},
    )  # fmt: skip
