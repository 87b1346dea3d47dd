"""The container that a placement becomes."""

import pytest

from pwm.api.v1.workload_pb2 import ContainerSpec, Image, Workload
from pwm.controlplane.core.scheduling.plan import plan
from pwm.controlplane.core.scheduling.queue import Waiting
from pwm.controlplane.core.scheduling.spec import STOP_GRACE_MS, container_spec, default_hostname, image_reference
from tests.unit.scheduling.machines import GIB, cluster_of, node, planned, workload


def placed(wanted: Workload) -> ContainerSpec:
    cluster = cluster_of(node("n1", gpus=2))
    return container_spec(wanted, planned(cluster, wanted).placements[0], revision=42)


def test_everything_that_an_agent_needs_is_in_the_spec() -> None:
    wanted = workload(
        "train",
        gpus=1,
        cpu="2",
        exclusive=True,
        memory="4GiB",
        image={"image": "pytorch/pytorch", "pullPolicy": "Always"},
        config={
            "cmd": ["python", "main.py"],
            "entrypoint": ["/init"],
            "env": {"SEED": "1"},
            "secretEnv": {"TOKEN": {"secret": "hub", "key": "token"}},
            "workingDir": "/code",
            "shmSize": "8GiB",
            "ports": [{"name": "web", "port": 8888}],
            "user": {"uid": 1000, "gid": 100},
            "timeLimit": "24h",
            "stopGrace": "30s",
            "health": {"cmd": ["true"], "interval": "10s", "retries": 3},
            "labels": {"team": "x"},
            "tty": True,
        },
    )
    wanted.status.generation = 3
    spec = placed(wanted)
    assert (spec.workload_uid, spec.workload, spec.replica, spec.attempt, spec.generation) == (
        "train",
        "train",
        0,
        1,
        3,
    )
    assert (spec.node, spec.driver, spec.image, spec.pull_policy) == (
        "n1",
        "pwm.docker",
        "pytorch/pytorch:latest",
        Image.Always,
    )
    assert list(spec.cmd) == ["python", "main.py"]
    assert list(spec.entrypoint) == ["/init"]
    assert dict(spec.env) == {"SEED": "1"}
    assert spec.secret_env["TOKEN"].key == "token"
    assert (spec.working_dir, spec.user.uid, spec.tty, dict(spec.labels)) == ("/code", 1000, True, {"team": "x"})
    assert (spec.ports[0].port, spec.health.retries) == (8888, 3)
    assert (spec.resources.cpu_millis, spec.resources.memory_bytes, spec.resources.gpus) == (2000, 4 * GIB, 1)
    assert (list(spec.gpu_uuids), list(spec.cpu_ids)) == (["n1/0"], [0, 1])
    assert (spec.shm_bytes, spec.stop_grace_ms, spec.time_limit_ms) == (8 * GIB, 30_000, 86_400_000)
    assert spec.decided_at_revision == 42
    assert spec.policy_version > 0


def test_what_is_not_told_has_a_default() -> None:
    spec = placed(workload("hello", image={"image": "busybox"}))
    assert (spec.driver, spec.pull_policy, spec.hostname) == ("pwm.docker", Image.IfNotPresent, "hello")
    assert (spec.stop_grace_ms, spec.time_limit_ms, spec.shm_bytes) == (STOP_GRACE_MS, 0, 0)
    assert not spec.HasField("user")
    assert not spec.HasField("health")


def test_absurd_sizes_and_times_become_the_largest_there_are() -> None:
    spec = placed(workload("x", config={"shmSize": "999999999999999TiB", "timeLimit": "999999999999w"}))
    assert spec.shm_bytes == spec.time_limit_ms == 1 << 60


def test_the_failures_so_far_go_with_the_container() -> None:
    wanted = workload("retry")
    made = plan(cluster_of(node("n1")), [Waiting(wanted, 2, 5, since_ms=0, failures=3)], now_ms=0, seed=0)
    spec = container_spec(wanted, made.placements[0], revision=1)
    assert (spec.replica, spec.attempt, spec.failures_before) == (2, 5, 3)


def test_the_spec_shares_nothing_with_the_workload() -> None:
    wanted = workload("train", config={"env": {"SEED": "1"}, "user": {"uid": 1}})
    before = wanted.SerializeToString(deterministic=True)
    spec = placed(wanted)
    spec.env["SEED"], spec.user.uid = "2", 2
    assert wanted.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        (Image(image="busybox"), "busybox:latest"),
        (Image(image="busybox:1.36"), "busybox:1.36"),
        (Image(image="a/b", registry="registry:5000"), "registry:5000/a/b:latest"),
        (Image(image="b:2", registry="r.example.org/", repository="/team/x"), "r.example.org/team/x/b:2"),
        (Image(image="b", registry="pwm.all", repository="pwm.all"), "b:latest"),
        (Image(image="b@sha256:12"), "b@sha256:12"),
        (Image(), ""),
    ],
)
def test_an_image_is_named_as_docker_wants_it(image: Image, reference: str) -> None:
    assert image_reference(image) == reference


@pytest.mark.parametrize(
    ("name", "hostname"),
    [
        ("train", "train"),
        ("a.b-c", "a.b-c"),
        ("my_job", ""),
        ("-x", ""),
        ("a..b", ""),
        ("x" * 63, "x" * 63),
        ("x" * 64, ""),
    ],
)
def test_a_workloads_name_is_the_host_name_where_it_can_be(name: str, hostname: str) -> None:
    assert default_hostname(name) == hostname


def test_a_host_name_that_was_told_stands() -> None:
    assert placed(workload("my_job", config={"hostname": "box"})).hostname == "box"
