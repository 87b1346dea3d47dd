"""What documents of today mean, and what is said of fields that have no effect yet."""

from typing import Any

import pytest
from google.protobuf import json_format

from pwm.api.v1.workload_pb2 import Config, Image, WorkloadSpec
from pwm.controlplane.core.manifest import Parsed, parse_document


def parse(document: dict[str, Any]) -> Parsed:
    return parse_document(document, default_group="vision")


def spec_of(spec: dict[str, Any]) -> WorkloadSpec:
    message = parse({"kind": "Workload", "metadata": {"name": "w"}, "spec": {"image": "ubuntu", **spec}}).message
    assert isinstance(message.spec, WorkloadSpec)
    return message.spec


def test_every_field_of_a_workload_arrives() -> None:
    spec = spec_of(
        {
            "driver": "pwm.docker",
            "replica": {"count": 2.0},
            "selectors": {
                "node": {"name": "n1"},
                "label": {"rack": "r9"},
                "gpu": {"product_name": ["A100"], "count": 4.0, "memory": "40GiB"},
                "cpu": {"count": 8.0, "exclusive": True},
            },
            "image": {"image": "pytorch/pytorch", "pullPolicy": "IfNotPresent"},
            "config": {
                "cmd": ["python", "main.py"],
                "env": {"SEED": "1", "KEY": {"secret": "s", "key": "k"}},
                "workingDir": "/code",
                "memory": "32GiB",
                "shmSize": "8GiB",
                "restartPolicy": "on-failure",
                "maxAttempts": 4,
                "ports": [{"name": "jupyter", "port": 8888}],
                "user": {"uid": 1000, "gid": 100},
                "timeLimit": "24h",
                "stopGrace": "30s",
                "health": {"cmd": "curl -f localhost", "interval": "10s", "retries": 3},
            },
            "priority": 50,
            "gang": True,
            "onNodeLost": "wait",
        }
    )
    assert (spec.replica.count, spec.selectors.gpu.count, spec.selectors.cpu.count) == (2, 4, "8")
    assert spec.image.pull_policy == Image.IfNotPresent
    assert spec.config.restart_policy == Config.OnFailure
    assert dict(spec.config.env) == {"SEED": "1"}
    assert spec.config.secret_env["KEY"].secret == "s"
    assert list(spec.config.health.cmd) == ["curl", "-f", "localhost"]
    assert (spec.config.user.uid, spec.config.user.gid) == (1000, 100)
    assert (spec.priority, spec.gang, spec.on_node_lost) == ("50", True, WorkloadSpec.wait)


def test_a_group_that_is_not_named_is_the_callers() -> None:
    assert (
        parse({"kind": "Workload", "metadata": {"name": "w"}, "spec": {"image": "a"}}).message.metadata.group
        == "vision"
    )
    assert parse({"kind": "Node", "metadata": {"name": "w"}}).message.metadata.group == ""


def test_root_is_told_from_no_user_at_all() -> None:
    assert not spec_of({"config": {"tty": True}}).config.HasField("user")
    root = spec_of({"config": {"user": {"uid": 0, "gid": 0}}}).config
    assert root.HasField("user")
    assert (root.user.uid, root.user.gid) == (0, 0)


@pytest.mark.parametrize(("user", "ids"), [("1000:100", (1000, 100)), (1000, (1000, 1000)), ({"uid": 7}, (7, 7))])
def test_a_user_without_a_group_is_not_in_the_group_of_root(user: Any, ids: tuple[int, int]) -> None:
    read = spec_of({"config": {"user": user}}).config.user
    assert (read.uid, read.gid) == ids


def test_a_count_of_zero_replicas_is_kept() -> None:
    assert spec_of({"replica": {"count": 0}}).replica.HasField("count")
    assert not spec_of({}).HasField("replica")


def test_parts_without_content_are_as_if_not_written() -> None:
    empty = {"selectors": {"gpu": {}, "node": None}, "config": {"env": {}, "ports": []}, "volumes": [], "notify": {}}
    assert spec_of(empty) == spec_of({})


def test_what_the_server_added_may_be_applied_again() -> None:
    document = {
        "apiVersion": "v1",
        "kind": "Workload",
        "metadata": {
            "name": "w",
            "group": "vision",
            "uid": "01J",
            "createdAt": "2030-01-01T00:00:00Z",
            "updatedAt": "2030-01-01T00:00:00Z",
            "version": "7",
            "createdBy": {"type": "USER", "name": "anna"},
        },
        "spec": {"image": {"image": "ubuntu"}, "config": {"user": {"uid": "1000", "gid": "1000"}}},
        "status": {"desired": "RUN", "phase": "RUNNING"},
    }
    result = parse(document)
    assert not result.warnings
    assert json_format.MessageToDict(result.message.metadata) == {"name": "w", "group": "vision"}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"volumes": [{"name": "a", "target": "/a"}]}, "spec.volumes"),
    ],
)
def test_a_field_without_effect_in_this_version_is_kept_with_a_warning(spec: dict[str, Any], field: str) -> None:
    result = parse({"kind": "Workload", "metadata": {"name": "w"}, "spec": {"image": "a", **spec}})
    (warning,) = result.warnings
    assert warning.field == field
    assert "is stored, but this version does not act on it yet" in warning.message


@pytest.mark.parametrize("kind", ["User", "Group"])
def test_credits_of_users_and_groups_are_counted_and_not_warned_of(kind: str) -> None:
    document = {"kind": kind, "metadata": {"name": "a"}, "spec": {"limits": {"credits": {"weekly": 10}}}}
    result = parse(document)
    assert not result.warnings
    assert result.message.spec.limits.credits.weekly == 10


def test_quantities_stay_as_they_were_written() -> None:
    config = spec_of({"config": {"memory": "1.5G", "shmSize": "64m", "timeLimit": "1h30m"}}).config
    assert (config.memory, config.shm_size, config.time_limit) == ("1.5G", "64m", "1h30m")


@pytest.mark.parametrize(
    "image",
    [
        "ubuntu",
        "ubuntu:24.04",
        "pytorch/pytorch:2.3-cuda12",
        "registry.example.org:5000/team/app:v1",
        "localhost/app",
        "ghcr.io/a/b@sha256:" + "0" * 64,
        "a__b/c--d.e:Latest",
    ],
)
def test_image_references_of_docker_are_taken(image: str) -> None:
    assert spec_of({"image": image}).image.image == image


def test_a_workload_of_processes_needs_no_image() -> None:
    document = {
        "kind": "Workload",
        "metadata": {"name": "w"},
        "spec": {"driver": "PWM.process", "config": {"cmd": "sleep 5"}},
    }
    assert parse(document).message.spec.driver == "pwm.process"  # type: ignore[union-attr]


@pytest.mark.parametrize(("gpu", "warned"), [({"count": 1}, []), (None, ["spec.idle"])])
def test_a_rule_for_idle_gpus_is_pointless_without_gpus(gpu: dict[str, int] | None, warned: list[str]) -> None:
    spec = {"image": "a", "idle": {"pauseAfter": "15m"}, "selectors": {"gpu": gpu} if gpu else {}}
    result = parse({"kind": "Workload", "metadata": {"name": "w"}, "spec": spec})
    assert [warning.field for warning in result.warnings] == warned
