"""What is wrong with a document is said all at once, each with field, sentence and next step."""

import tracemalloc
from typing import Any

import pytest

from pwm.api.v1.services_pb2 import Problem
from pwm.controlplane.core.manifest import MAX_DOCUMENT_BYTES, Refused, parse_document

INVALID_ARGUMENT, PERMISSION_DENIED, FAILED_PRECONDITION = 3, 7, 9


def workload(spec: dict[str, Any] | None = None, **rest: Any) -> dict[str, Any]:
    base = {"apiVersion": "v1", "kind": "Workload", "metadata": {"name": "w"}, "spec": {"image": "ubuntu"}}
    return base | {"spec": {"image": "ubuntu", **(spec or {})}} | rest


def problems(document: Any) -> list[Problem]:
    with pytest.raises(Refused) as refused:
        parse_document(document, default_group="users")
    assert refused.value.problems
    return refused.value.problems


def only(document: Any) -> Problem:
    (problem,) = problems(document)
    return problem


def test_all_that_is_wrong_is_said_at_once() -> None:
    found = problems(
        workload({"config": {"memroy": 1, "privileged": True, "memory": "much"}, "replica": {"count": "two"}}, foo=1)
    )
    assert {problem.field for problem in found} == {
        "spec.config.memroy",
        "spec.config.privileged",
        "spec.config.memory",
        "spec.replica.count",
        "foo",
    }
    assert all(problem.message for problem in found)


@pytest.mark.parametrize(
    ("spec", "field", "suggestion"),
    [
        ({"config": {"memroy": 1}}, "spec.config.memroy", "memory"),
        ({"selectors": {"gpus": {"count": 1}}}, "spec.selectors.gpus", "gpu"),
        ({"replicas": 2}, "spec.replicas", "replica"),
        ({"image": {"image": "ubuntu", "pullpolicy": "Always"}}, "spec.image.pullpolicy", "pullPolicy"),
        ({"volumes": [{"name": "a", "target": "/a", "subpath": "x"}]}, "spec.volumes[0].subpath", "subPath"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_known_one(
    spec: dict[str, Any], field: str, suggestion: str
) -> None:
    problem = only(workload(spec))
    assert problem.field == field
    assert problem.next_step == f"did you mean {suggestion}?"
    assert problem.code == INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"replica": {"count": "two"}}, "spec.replica.count", "must be a whole number, not 'two'"),
        ({"replica": {"count": -1}}, "spec.replica.count", "must not be negative"),
        ({"replica": {"count": 10_001}}, "spec.replica.count", "at most 10,000"),
        ({"replica": {"count": 1.5}}, "spec.replica.count", "whole number"),
        ({"replica": {"count": True}}, "spec.replica.count", "whole number, not true"),
        ({"replica": [1]}, "spec.replica", "must be a mapping, not a list"),
        ({"selectors": {"gpu": {"count": -2}}}, "spec.selectors.gpu.count", "must not be negative"),
        ({"selectors": {"cpu": {"count": "many"}}}, "spec.selectors.cpu.count", "not a number of CPUs"),
        ({"config": {"memory": "32 apples"}}, "spec.config.memory", "is not a size"),
        ({"config": {"memory": -1}}, "spec.config.memory", "is not a size"),
        ({"config": {"memory": []}}, "spec.config.memory", "must be a size"),
        ({"config": {"timeLimit": 24}}, "spec.config.timeLimit", "without a unit"),
        ({"config": {"timeLimit": "soon"}}, "spec.config.timeLimit", "not a duration"),
        ({"config": {"stopGrace": "2d"}}, "spec.config.stopGrace", "between 1s and 1h"),
        ({"config": {"workingDir": "code"}}, "spec.config.workingDir", "path from /"),
        ({"config": {"cmd": {"a": 1}}}, "spec.config.cmd", "must be a list"),
        ({"config": {"cmd": "echo 'x"}}, "spec.config.cmd", "without its end"),
        ({"config": {"cmd": ["a\0b"]}}, "spec.config.cmd[0]", "NUL"),
        ({"config": {"env": 5}}, "spec.config.env", "must be a mapping"),
        ({"config": {"env": {"A B": "1"}}}, "spec.config.env.A B", "no name of a variable"),
        ({"config": {"env": {"A": [1]}}}, "spec.config.env.A", "must be text, not a list"),
        ({"config": {"env": {"A": 2**60}}}, "spec.config.env.A", "lose digits"),
        ({"config": {"ports": [{"port": 0}]}}, "spec.config.ports[0].port", "at least 1"),
        ({"config": {"ports": [{"port": 80}, {"port": 80}]}}, "spec.config.ports[1]", "twice"),
        ({"config": {"ports": [{"name": "a"}]}}, "spec.config.ports[0].port", "no port"),
        ({"config": {"restartPolicy": "Sometimes"}}, "spec.config.restartPolicy", "'Sometimes'"),
        ({"config": {"tty": "maybe"}}, "spec.config.tty", "must be true or false"),
        ({"config": {"user": "root"}}, "spec.config.user", "whole number"),
        ({"config": {"user": {"gid": 5}}}, "spec.config.user.uid", "has no uid"),
        ({"config": {"hostname": "-x"}}, "spec.config.hostname", "host name"),
        ({"priority": "urgent"}, "spec.priority", "no priority"),
        ({"priority": 100_000}, "spec.priority", "at most 1,000"),
        ({"gang": "all"}, "spec.gang", "true or false"),
        ({"onNodeLost": "panic"}, "spec.onNodeLost", "'panic'"),
        ({"driver": "podman"}, "spec.driver", "'podman'"),
        ({"image": "Not An Image"}, "spec.image", "no image reference"),
        ({"image": {"image": "a", "registry": "no registry"}}, "spec.image.registry", "host name"),
        ({"image": 5}, "spec.image", "must be a mapping"),
        ({"image": ""}, "spec.image.image", "no image"),
        ({"driver": "pwm.process"}, "spec.config.cmd", "needs a command"),
        ({"volumes": [{"name": "a", "target": "/d"}, {"name": "b", "target": "/d/"}]}, "spec.volumes[1].target", "two"),
        ({"volumes": [{"name": "a"}]}, "spec.volumes[0].target", "no target"),
        ({"volumes": [{"target": "/a"}]}, "spec.volumes[0].name", "names no volume"),
        ({"volumes": [{"name": "a", "target": "/"}]}, "spec.volumes[0].target", "belongs to the system"),
        ({"volumes": [{"name": "a", "target": "/proc/1"}]}, "spec.volumes[0].target", "belongs to the system"),
        ({"volumes": [{"name": "a", "target": "/a", "subPath": "../b"}]}, "spec.volumes[0].subPath", "inside"),
        ({"volumes": "home"}, "spec.volumes", "must be a list"),
        ({"volumes": [5]}, "spec.volumes[0]", "must be a mapping"),
        ({"idle": {"warnBefore": "5m"}}, "spec.idle.warnBefore", "needs spec.idle.pauseAfter"),
        ({"notify": {"on": ["lunch"]}}, "spec.notify.on[0]", "'lunch'"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_was_expected(spec: dict[str, Any], field: str, words: str) -> None:
    problem = problems(workload(spec))[0]
    assert problem.field == field
    assert words in problem.message
    assert problem.code == INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"config": {"privileged": True}}, "spec.config.privileged"),
        ({"config": {"hostConfig": {"Binds": ["/:/x"]}}}, "spec.config.hostConfig"),
        ({"config": {"HostConfig": {}}}, "spec.config.HostConfig"),
        ({"config": {"network_mode": "host"}}, "spec.config.network_mode"),
        ({"config": {"pid": "host"}}, "spec.config.pid"),
        ({"config": {"ipc": "host"}}, "spec.config.ipc"),
        ({"config": {"runtime": "runc"}}, "spec.config.runtime"),
        ({"config": {"deviceRequests": []}}, "spec.config.deviceRequests"),
        ({"privileged": True}, "spec.privileged"),
        ({"config": {"env": {"LD_PRELOAD": "/x.so"}}}, "spec.config.env.LD_PRELOAD"),
        ({"config": {"env": {"ld_library_path": "/x"}}}, "spec.config.env.ld_library_path"),
        ({"config": {"env": ["NVIDIA_VISIBLE_DEVICES=all"]}}, "spec.config.env[0]"),
        ({"config": {"env": {"LD_AUDIT": {"secret": "a", "key": "b"}}}}, "spec.config.env.LD_AUDIT"),
        ({"volumes": [{"name": "/etc", "target": "/data"}]}, "spec.volumes[0].name"),
        ({"volumes": [{"name": "../etc", "target": "/data"}]}, "spec.volumes[0].name"),
        ({"volumes": [{"name": "a", "hostPath": "/etc", "target": "/data"}]}, "spec.volumes[0].hostPath"),
        ({"volumes": [{"name": "a", "target": "/var/run/docker.sock"}]}, "spec.volumes[0].target"),
    ],
)
def test_what_no_container_gets_is_refused_by_name(spec: dict[str, Any], field: str) -> None:
    problem = only(workload(spec))
    assert problem.field == field
    assert problem.code == PERMISSION_DENIED
    assert problem.next_step


def test_cuda_devices_are_handed_out_by_the_process_driver_alone() -> None:
    spec = {"config": {"cmd": ["x"], "env": {"CUDA_VISIBLE_DEVICES": "0"}}}
    assert only(workload(spec | {"driver": "pwm.process"})).code == PERMISSION_DENIED
    assert parse_document(workload(spec), default_group="users")


@pytest.mark.parametrize("place", ["metadata", "config"])
def test_labels_of_pwm_are_reserved(place: str) -> None:
    labels = {"pwm.uid": "x"}
    document = workload({"config": {"labels": labels}} if place == "config" else None)
    if place == "metadata":
        document["metadata"]["labels"] = labels
    assert "reserved" in only(document).message


@pytest.mark.parametrize(
    ("document", "field", "words"),
    [
        ({}, "kind", "no kind"),
        ({"kind": "Workload"}, "metadata.name", "no name"),
        ({"kind": "Workload", "metadata": {"name": ""}}, "metadata.name", "no name"),
        ({"kind": "Workloat"}, "kind", "no kind 'Workloat'"),
        ({"kind": 5}, "kind", "must be text"),
        ({"kind": "GPU", "metadata": {"name": "x"}}, "kind", "is observed, it cannot be applied"),
        ({"kind": "Token", "metadata": {"name": "x"}}, "kind", "cannot be applied"),
        ({"kind": "Group", "metadata": {"name": "x"}, "apiVersion": "v2"}, "apiVersion", "'v2'"),
        ({"kind": "Group", "metadata": {"name": "a.b"}}, "metadata.name", "name of a group"),
        ({"kind": "Group", "metadata": {"name": "pwm.all"}}, "metadata.name", "name of a group"),
        ({"kind": "Node", "metadata": {"name": "pwm.all"}}, "metadata.name", "reserved"),
        ({"kind": "Node", "metadata": {"name": "x" * 64}}, "metadata.name", "at most 63"),
        ({"kind": "Node", "metadata": {"name": 5}}, "metadata.name", "must be text, not 5"),
        ({"kind": "Node", "metadata": "x"}, "metadata", "must be a mapping"),
        ({"kind": "Storage", "metadata": {"name": "x"}}, "spec.kind", "does not say what it is"),
        ({"kind": "Storage", "metadata": {"name": "x"}, "spec": {"kind": "nfs"}}, "spec.nfs.server", "is not there"),
        ({"kind": "Volume", "metadata": {"name": "x"}}, "spec.storage", "names no storage"),
        ({"kind": "User", "metadata": {"name": "x"}, "spec": {"groups": [{}]}}, "spec.groups[0].name", "no group"),
        ([], "", "must be a mapping, not a list"),
        (None, "", "must be a mapping"),
        ("text", "", "must be a mapping"),
    ],
)  # fmt: skip
def test_a_document_that_says_too_little_is_refused(document: Any, field: str, words: str) -> None:
    problem = problems(document)[0]
    assert problem.field == field
    assert words in problem.message


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ("tell-nobody", "spec", "must be a mapping"),
        ({"data": "tell-nobody"}, "spec.data", "must be a mapping"),
        ({"data": ["tell-nobody"]}, "spec.data", "must be a mapping"),
        ({"data": {"a": ["tell-nobody"]}}, "spec.data.a", "must be text"),
        ({"data": {"a": {"tell-nobody": "tell-nobody"}}}, "spec.data.a", "must be text"),
        ({"data": {"a": 7331}}, "spec.data.a", "must be text"),
        ({"data": {"a": 7331.5}}, "spec.data.a", "must be text"),
        ({"data": {"a": "tell\0nobody"}}, "spec.data.a", "NUL"),
        ({"data": {"../a": "tell-nobody"}}, "spec.data.../a", "no name of a key"),
        ({"data": {".a": "tell-nobody"}}, "spec.data..a", "no name of a key"),
        ({"base64": {"a": "tell-nobody"}}, "spec.base64.a", "is not in base64"),
        ({"data": {"a": "tell-nobody"}, "base64": {"a": "dGVsbA=="}}, "spec.base64.a", "is there twice"),
        ({"stringData": {"a": "tell-nobody"}}, "spec.stringData", "has no field"),
        ({"registry": "tell-nobody"}, "spec.registry", "must be a mapping"),
        ({"registry": {"username": "a", "password": "tell-nobody"}}, "spec.registry.server", "names no registry"),
        ({"registry": {"server": "https://a:tell-nobody@b"}}, "spec.registry.server", "must be a host name"),
        ({"registry": {"server": "a", "username": "a", "password": 7331}}, "spec.registry.password", "must be text"),
        ({"registry": {"server": "a", "username": ["tell-nobody"]}}, "spec.registry.username", "must be text"),
        ({}, "spec", "holds nothing"),
        ({"data": {f"k{n}": "tell-nobody" for n in range(257)}}, "spec.data", "257 keys"),
    ],
)
def test_a_secret_with_a_mistake_is_refused_without_its_values(spec: Any, field: str, words: str) -> None:
    found = problems({"kind": "Secret", "metadata": {"name": "x"}, "spec": spec})
    assert (found[0].field, words in found[0].message) == (field, True), found
    assert "nobody" not in str(found)
    assert "7331" not in str(found)


def test_a_document_over_the_limit_is_refused_as_a_whole() -> None:
    problem = only(workload({"config": {"env": {"A": "x" * MAX_DOCUMENT_BYTES}}}))
    assert problem.field == ""
    assert "at most 48 KiB" in problem.message


def test_a_document_nested_without_end_is_refused() -> None:
    deep: Any = 1
    for _ in range(5_000):
        deep = {"a": deep}
    assert "too deeply" in only({"kind": "Workload", "spec": deep}).message


def test_long_keys_above_a_long_list_take_no_memory() -> None:
    """A document of 40 KiB would have 100 MB of paths if each value had its own."""
    deep: Any = ["x"] * 8_000
    for _ in range(12):
        deep = {"k" * 1_000: deep}
    tracemalloc.start()
    try:
        problem = only(workload({"config": deep}))
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert problem.field == "spec.config"
    assert used < 20 * 2**20


def test_a_document_of_nothing_but_mistakes_gets_a_short_answer() -> None:
    found = problems(workload({f"field{index}": 1 for index in range(2_000)}))
    assert len(found) == 30
    assert sum(problem.ByteSize() for problem in found) < 20_000


def test_sentences_hold_no_control_characters() -> None:
    found = problems(workload({"\x1b[31mred": 1, "priority": "\x1b[2J", "config": {"env": {"\x07": "x"}}}))
    assert len(found) == 3
    for problem in found:
        assert (problem.field + problem.message + problem.next_step).isprintable()
