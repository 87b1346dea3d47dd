"""Lists are rendered by the server: aligned, harmless on a terminal, and fast."""

from typing import Any

import pytest

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1 import identity_pb2 as identity
from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.common_pb2 import Actor, Reason
from pwm.api.v1.node_pb2 import CPU, GPU, DriverInfo, GPUDevice, Node, NodeStatus
from pwm.api.v1.resource_pb2 import Bind, Resource
from pwm.api.v1.volume_pb2 import Storage, Volume
from pwm.api.v1.workload_pb2 import Container, ContainerStatus, Workload, WorkloadStatus
from pwm.controlplane.services.columns import LAYOUTS
from pwm.controlplane.services.tables import Table, render

NOW_MS = 1_800_000_000_000
NOW_S = NOW_MS // 1000


def named(message: Any, name: str, *, group: str = "", age_s: int = 90) -> Any:
    message.metadata.name = name
    message.metadata.group = group
    message.metadata.created_at.FromSeconds(NOW_S - age_s)
    message.metadata.created_by.CopyFrom(Actor(type=Actor.USER, name="anna"))
    return message


def workload(name: str = "train") -> Workload:
    made = Workload()
    made.spec.image.image, made.spec.image.registry = "app:v1", "reg.example.org"
    made.spec.config.memory, made.spec.selectors.cpu.count = "32GiB", "500m"
    made.spec.selectors.gpu.count = 2
    made.status.phase = WorkloadStatus.QUEUED
    made.status.replicas, made.status.restarts = 2, 1
    made.status.reason.CopyFrom(Reason(code=Reason.NO_GPU_FREE, message="no GPU is free"))
    return named(made, name, group="vision")


def container(name: str = "train.0.1", **fields: Any) -> Container:
    made = Container()
    made.spec.node, made.spec.image = "n1", "app:v1"
    made.spec.resources.cpu_millis, made.spec.resources.memory_bytes = 500, 2 * 1024**3
    made.spec.gpu_uuids.append("GPU-1")
    made.status.phase = ContainerStatus.RUNNING
    made.status.runtime_id = "0123456789abcdef"
    return named(made, name, group="vision", **fields)


def node() -> Node:
    made = Node()
    made.status.phase = NodeStatus.READY
    made.spec.labels["rack"] = "r9"
    inventory = made.status.inventory
    inventory.cpu_count, inventory.memory_bytes, inventory.address = 64, 512 * 1024**3, "10.0.0.5"
    inventory.gpus.add(product_name="A100")
    inventory.drivers.append(DriverInfo(name="pwm.docker", ready=True))
    made.status.used.cpu_millis, made.status.used.gpus = 4500, 1
    return named(made, "n1")


def event() -> ev.Event:
    made = ev.Event(kind="Workload", uid="u1", version=3, name="train", group="vision", revision=77)
    made.time.FromSeconds(NOW_S - 5)
    made.actor.CopyFrom(Actor(type=Actor.USER, name="anna"))
    made.workload_scaled.count = 4
    return made


def user() -> identity.User:
    made = identity.User()
    made.spec.contact.email = "anna@example.org"
    membership = made.spec.groups.add(name="vision", role="member")
    membership.policy["Workload"].verbs.append("get")
    return named(made, "anna")


def role() -> identity.Role:
    made = identity.Role()
    made.spec.permission["Workload"].verbs.extend(["get", "apply"])
    return named(made, "member")


def token() -> identity.Token:
    made = identity.Token()
    made.spec.user = "anna"
    made.spec.expires_at.FromSeconds(NOW_S + 3600)
    return named(made, "0123456789abcdef")


def storage() -> Storage:
    made = Storage()
    made.spec.kind, made.spec.nfs.server, made.spec.nfs.path = "nfs", "10.0.0.9", "/export"
    return named(made, "nfs01")


def resource_credit() -> identity.ResourceCredit:
    made = identity.ResourceCredit()
    made.spec.credit.per.hour = 2.5
    return named(made, "A100")


def gpu() -> GPU:
    device = GPUDevice(uuid="GPU-1", product_name="A100", memory_bytes=40 * 1024**3)
    return named(GPU(node="n1", phase="BOOKED", device=device, container="vision/train.0.1"), "n1-0")


def bind() -> Bind:
    return named(Bind(parent_kind="Node", parent="n1", child_kind="Container", child="train.0.1"), "x", group="vision")


ONE_OF_EACH: dict[str, Any] = {
    "Workload": workload(),
    "Container": container(),
    "Node": node(),
    "GPU": gpu(),
    "CPU": named(CPU(node="n1", product_name="EPYC", count=64, used_millis=1500), "n1"),
    "Zone": named(identity.Zone(spec=identity.ZoneSpec(endpoints=["https://a", "https://b"])), "rome"),
    "Group": named(identity.Group(spec=identity.GroupSpec(description="Vision lab")), "vision"),
    "User": user(),
    "Role": role(),
    "Token": token(),
    "Secret": named(identity.Secret(spec=identity.SecretSpec(data={"key": ""})), "s3", group="vision"),
    "ResourceCredit": resource_credit(),
    "Storage": storage(),
    "Volume": named(Volume(), "home", group="vision"),
    "Bind": bind(),
    "Event": event(),
}
TEXT_FORMATS = [api.TABLE, api.WIDE]


def table(kind: str, *items: Any, format: api.Format.ValueType = api.TABLE, with_group: bool = False) -> list[str]:
    return render(kind, items, format=format, now_ms=NOW_MS, with_group=with_group).splitlines()


def test_every_kind_that_is_listed_has_a_table() -> None:
    listed = {field.message_type.name for field in Resource.DESCRIPTOR.fields}
    assert set(LAYOUTS) == listed | {"Token"}
    assert set(ONE_OF_EACH) == set(LAYOUTS)


@pytest.mark.parametrize("format", TEXT_FORMATS)
@pytest.mark.parametrize("with_group", [False, True])
@pytest.mark.parametrize("kind", sorted(LAYOUTS))
def test_every_row_has_a_cell_for_each_title(kind: str, format: api.Format.ValueType, with_group: bool) -> None:
    made = Table(kind, format, with_group)
    bare = type(ONE_OF_EACH[kind])()
    bare = event() if kind == "Event" else named(bare, "x", group="vision")
    for row in made.cells([ONE_OF_EACH[kind], bare], now_ms=NOW_MS):
        assert len(row) == len(made.titles)
        assert all(isinstance(cell, str) for cell in row)
        assert all(row[:-1]), "only the last cell of a row may be empty"


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        (
            "Workload",
            ["NAME   STATUS  READY  NODE  GPUS  AGE    REASON", "train  QUEUED  0/2    -     0/4   1m30s  NO_GPU_FREE"],
        ),
        (
            "Container",
            ["NAME       STATUS   EXIT  NODE  GPUS  AGE    REASON", "train.0.1  running  -     n1    1     1m30s"],
        ),
        (
            "Node",
            [
                "NAME  STATUS  GPUS  CPUS    MEMORY    CONTAINERS  ZONE  AGE    REASON",
                "n1    READY   1/1   4.5/64  0/512GiB  0           -     1m30s",
            ],
        ),
        ("CPU", ["NODE  COUNT  USED  FREE  PRODUCT", "n1    64     1.5   62.5  EPYC"]),
        (
            "GPU",
            [
                "NAME  STATUS  NODE  PRODUCT  MEMORY  CONTAINER",
                "n1-0  BOOKED  n1    A100     40GiB   vision/train.0.1",
            ],
        ),
        ("User", ["NAME  ACTIVE  GROUPS  AGE    EMAIL", "anna  yes     vision  1m30s  anna@example.org"]),
        ("Role", ["NAME    AGE    KINDS", "member  1m30s  Workload"]),
        ("Token", ["NAME          FOR        EXPIRES  AGE    DESCRIPTION", "0123456789ab  user/anna  in 1h    1m30s"]),
        ("ResourceCredit", ["PRODUCT  PER HOUR  AGE", "A100     2.5       1m30s"]),
        ("Storage", ["NAME   KIND  WHERE             CAPACITY  AGE", "nfs01  nfs   10.0.0.9:/export  -         1m30s"]),
        ("Bind", ["PARENT   CHILD                SINCE", "node/n1  container/train.0.1  -"]),
        ("Event", ["AGE  KIND      NAME   EVENT        BY", "5s   Workload  train  scaled to 4  anna"]),
    ],
)
def test_tables_show_what_people_look_for(kind: str, lines: list[str]) -> None:
    assert table(kind, ONE_OF_EACH[kind]) == lines


def test_a_wide_table_says_more_and_gives_reasons_in_full() -> None:
    header, row = table("Workload", workload(), format=api.WIDE)
    assert header.split() == "GROUP NAME STATUS READY NODE GPUS CPU MEMORY RESTARTS AGE IMAGE BY REASON".split()  # noqa: SIM905
    assert row.split(maxsplit=12)[0] == "vision"
    assert row.endswith("reg.example.org/app:v1  anna  NO_GPU_FREE: no GPU is free")


def test_the_group_comes_first_where_several_are_listed() -> None:
    header, row = table("Workload", workload(), with_group=True)
    assert header.startswith("GROUP   NAME")
    assert row.startswith("vision  train")
    assert table("Node", node(), with_group=True)[0].startswith("NAME")


def test_names_are_as_commands_take_them() -> None:
    assert table("Workload", workload("a"), workload("b"), format=api.NAME) == ["workload/a", "workload/b"]
    assert table("ResourceCredit", resource_credit(), format=api.NAME) == ["resourcecredit/A100"]
    assert table("Event", event(), format=api.NAME) == ["event/Workload/train/3"]


def test_a_list_of_nothing_is_no_text() -> None:
    for format in (api.TABLE, api.WIDE, api.NAME):
        assert render("Workload", [], format=format, now_ms=NOW_MS, with_group=False) == ""


def test_gpus_that_are_missing_show() -> None:
    made = workload()
    assert table("Workload", made)[1].split()[4] == "0/4"
    made.status.gpus = 4
    assert table("Workload", made)[1].split()[4] == "4"
    made.spec.selectors.ClearField("gpu")
    made.status.gpus = 0
    assert table("Workload", made)[1].split()[4] == "-"


def test_many_nodes_are_counted() -> None:
    made = workload()
    made.status.nodes.extend(["n1", "n2", "n3"])
    assert "n1,n2,n3" in table("Workload", made)[1]
    made.status.nodes.extend(["n4", "n5"])
    assert "n1,n2,+3" in table("Workload", made)[1]


@pytest.mark.parametrize("format", [api.TABLE, api.WIDE, api.NAME])
def test_text_of_users_cannot_steer_a_terminal(format: api.Format.ValueType) -> None:
    hostile = workload("x\x1b[2J\u202ey\n")
    hostile.status.reason.message = "bell\x07\r"
    found = render("Workload", [hostile, workload()], format=format, now_ms=NOW_MS, with_group=False)
    assert all(line.isprintable() for line in found.splitlines())
    assert len(found.splitlines()) == (2 if format == api.NAME else 3)
    assert "\\x1b" in found


def test_lines_of_a_watch_stay_aligned() -> None:
    watch = Table("Container", api.TABLE, False)
    watch.measure([container("a.0.1"), container("a-long-name.0.1")], now_ms=NOW_MS)
    header, first = watch.row(container("a.0.1"), now_ms=NOW_MS).splitlines()
    second = watch.row(container("a-long-name.0.1"), now_ms=NOW_MS)
    assert header.index("STATUS") == first.index("running") == second.index("running")
    wider = watch.row(container("an-even-longer-name.0.1"), now_ms=NOW_MS)
    after = watch.row(container("a.0.1"), now_ms=NOW_MS)
    assert wider.index("running") == after.index("running") > header.index("STATUS")


def test_a_watch_says_what_went() -> None:
    watch = Table("Workload", api.TABLE, False)
    watch.row(workload(), now_ms=NOW_MS)
    assert watch.row(workload(), now_ms=NOW_MS, gone=True).split()[:2] == ["train", "DELETED"]
    assert Table("Group", api.TABLE, False).row(ONE_OF_EACH["Group"], now_ms=NOW_MS, gone=True).endswith("DELETED")
    names = Table("Workload", api.NAME, False)
    assert names.row(workload(), now_ms=NOW_MS) == "workload/train"
    assert names.row(workload(), now_ms=NOW_MS, gone=True) == "workload/train deleted"


def test_a_list_and_a_watch_show_the_same_rows() -> None:
    items = [container("a.0.1"), container("a.10.1", age_s=4000)]
    watch = Table("Container", api.WIDE, False)
    watch.measure(items, now_ms=NOW_MS)
    lines = "\n".join(watch.row(item, now_ms=NOW_MS) for item in items)
    assert lines + "\n" == render("Container", items, format=api.WIDE, now_ms=NOW_MS, with_group=False)
