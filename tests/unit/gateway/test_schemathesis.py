"""A foreign tool reads the OpenAPI document, makes requests from it, and holds the gateway to what is written there."""

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.patience import PATIENCE_S

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

# What the fakes leave out on purpose answers 501, and a WebSocket is no request.
LEFT_OUT = ["/v1/exec", "/v1/workloads/{name}/inspect", "/v1/workloads/{name}/processes"]


async def test_what_the_document_allows_is_answered_as_it_says(gateway: Any) -> None:
    def check() -> int:
        schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{gateway.port}/openapi.json").exclude(path=LEFT_OUT)
        count = 0
        for result in schema.get_all_operations():
            ask(result.ok())
            count += 1
        return count

    def ask(operation: Any) -> None:
        @given(case=operation.as_strategy())
        @settings(
            max_examples=8,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        def call(case: Any) -> None:
            answer = case.call(headers={"Authorization": "Bearer pwm_ann"}, timeout=PATIENCE_S)
            if answer.status_code == 400 and b"out of range" in answer.content:
                return  # no pattern says where 64 bits end
            assert answer.status_code == 200, answer.content
            case.validate_response(answer)

        call()

    assert await asyncio.to_thread(check) >= 17
