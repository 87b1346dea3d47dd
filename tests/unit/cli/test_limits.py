"""`pwm limits`."""

import json

from tests.unit.cli.conftest import FakeServer, Pwm

GROUP = {"kind": "Group", "name": "vision", "limits": {"gpus": {"total": 4}}, "workloads": 1, "used": {"gpus": 2}}
BOB = {
    "kind": "User", "name": "bob", "workloads": 1,
    "limits": {
        "gpus": {"perWorkload": 1, "total": 2}, "cpus": {"perWorkload": 8}, "workloads": {"concurrently": 2},
        "nodes": {"deny": ["n7"]},
    },
    "used": {"gpus": 2, "cpuMillis": "1500", "memoryBytes": "1073741824"},
}  # fmt: skip


def test_limits_are_shown_with_what_is_in_use_of_them(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/limits/groups/vision", {"accounts": [GROUP, BOB]})
    lines = [" ".join(line.split()) for line in pwm("limits", "-g", "vision").lines]
    assert lines == [
        "WHO WORKLOADS GPUS CPUS MEMORY PER WORKLOAD NODES",
        "group vision 1 2 of 4 0 0B - all",
        "user bob 1 of 2 2 of 2 1.5 1GiB 1 GPU, 8 CPUs all not n7",
    ]
    assert json.loads(pwm("limits", "-g", "vision", "-o", "json").out) == [GROUP, BOB]


def test_whose_limits_is_asked_as_with_credits(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/limits", {})
    for words, query in ((("--user", "bob"), {"user": ["bob"]}), (("-A",), {"everybody": ["true"]}), ((), {})):
        result = pwm("limits", *words)
        assert result.code == 0
        assert "nobody has limits" in result.err
        assert server.requests[-1].query == query
    assert pwm("limits", "--user", "bob", "-A").code == 2
