"""What a GPU costs, through the whole of PWM: a fake NVML below the agent, a real Docker engine, real events."""

import json
import re
import shlex
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pwm.images import ensure_busybox
from tests.docker_engine import IsolatedDockerdFactory
from tests.etcd_server import require_etcd
from tests.fake_gpus import FakeGpus
from tests.integration.test_gpu_line import gpu_workload
from tests.pwm_cluster import PwmCluster, eventually

pytestmark = [pytest.mark.etcd, pytest.mark.docker]
A100 = "NVIDIA A100-SXM4-80GB"
# A credit a second.
HOURLY = 3600


@pytest.fixture
def lab(isolated_dockerd: IsolatedDockerdFactory, fake_gpus: FakeGpus, tmp_path: Path) -> Iterator[PwmCluster]:
    require_etcd()
    engine = isolated_dockerd(gpu_hook=True)
    ensure_busybox(engine.host)
    fake_gpus.set("count 4", f"name {A100}")
    settings = {**fake_gpus.environment, "PWM_CREDITS_STOP_GRACE": "1s"}
    made = PwmCluster(tmp_path / "pwm", engine.host, environment=settings)
    made.directory.mkdir()
    try:
        yield made.start()
    finally:
        made.close()


def document(kind: str, name: str, spec: dict[str, Any]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "spec": spec})


def turns(pwm: PwmCluster, container: str) -> dict[str, tuple[datetime, int]]:
    """When and by which version a container reached each phase, as its events say."""
    events = json.loads(pwm.ok("get", "events", "-A", "-o", "json"))
    return {
        event["containerReported"]["phase"]: (datetime.fromisoformat(event["time"]), int(event["version"]))
        for event in events
        if event["kind"] == "Container" and event["name"] == container and "phase" in event.get("containerReported", {})
    }


def test_a_container_costs_what_its_events_say_and_who_has_spent_all_is_denied_and_stopped(lab: PwmCluster) -> None:
    pwm = lab
    pwm.ok("apply", "-f", "-", input=document("ResourceCredit", "A100", {"credit": {"per": {"hour": HOURLY}}}))
    pwm.ok("apply", "-f", "-", input=gpu_workload("two", {"count": 2}))
    pwm.until("two", "RUNNING")
    eventually(lambda: "user admin" in pwm.ok("credits") and _spent(pwm) > 2_000_000, "something is spent")
    pwm.ok("stop", "wk", "two", "--wait")

    seen = turns(pwm, "two.0.1")
    begun, ended = seen["RUNNING"], seen["EXITED"]
    device_us = round((ended[0] - begun[0]).total_seconds() * 1000) * 1000 * 2
    (row,) = [r for r in _report(pwm, "--by", "user,group,device")["rows"] if r["product_name"] == A100]
    assert row == {
        "user": "admin", "group": "users", "product_name": A100, "deviceUs": str(device_us),
        "spentMicro": str(device_us * HOURLY * 1_000_000 // 3_600_000_000),
    }  # fmt: skip
    explained = json.loads(pwm.ok("report", "--explain", "-o", "json"))
    (use,) = [u for u in explained["uses"] if u["product_name"] == A100]
    assert (use["container"], use["millis"], use["begunBy"], use["endedBy"], use["deviceUs"]) == (
        "two.0.1", "2000", str(begun[1]), str(ended[1]), str(device_us)
    )  # fmt: skip
    assert explained["spentMicro"] == explained["ledgerMicro"] == row["spentMicro"]
    assert f"{A100},{device_us / 3_600_000_000:.6f}" in pwm.ok("report", "--by", "device", "-o", "csv")

    pwm.ok("apply", "-f", "-", input=gpu_workload("long", {"count": 1}))
    pwm.until("long", "RUNNING")
    pwm.ok("apply", "-f", "-", input=document("Group", "users", {"limits": {"credits": {"weekly": 1}}}))
    eventually(lambda: pwm.phase("long") == "STOPPED", lambda: pwm.ok("describe", "wk", "long"))
    assert pwm.workload("long")["status"]["reason"]["code"] == "OUT_OF_CREDITS"
    told = pwm.pwm("apply", "-f", "-", input=gpu_workload("more", {"count": 1}))
    assert "it is DENIED: group users has spent" in told.out + told.err
    assert pwm.phase("more") == "DENIED"
    assert "of 1 credits this week" in pwm.ok("why", "wk", "more")
    assert "Credits of group users are spent: nothing new starts" in pwm.ok("credits", "-g", "users")
    pwm.ok("apply", "-f", "-", input=document("Group", "users", {"limits": {"credits": {"weekly": 100_000}}}))
    pwm.until("more", "RUNNING", limit_s=90)


def _report(pwm: PwmCluster, *words: str) -> Any:
    return json.loads(pwm.ok("report", *words, "-o", "json"))


def _spent(pwm: PwmCluster) -> int:
    return int(json.loads(pwm.ok("credits", "-o", "json"))["accounts"][0].get("spentMicro", 0))


PAGE = Path(__file__).parents[2] / "docs" / "credits.md"


def test_the_page_on_credits_does_what_it_says(cluster: PwmCluster) -> None:
    page = PAGE.read_text()
    (manifest,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (shell,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    cluster.ok("apply", "-f", "-", input="kind: Group\nmetadata: {name: vision}\n")
    cluster.ok("apply", "-f", "-", input=manifest)
    commands = [shlex.split(line, comments=True)[1:] for line in shell.splitlines()]
    assert len(commands) > 6
    said = {" ".join(words): cluster.ok(*words) for words in commands}
    assert "A100" in said["credits"]
    assert said["credits --user ann"].splitlines()[1].split() == ["user", "ann", "0", "100", "100", "0"]
    assert said["credits -g vision"].splitlines()[1].split() == ["group", "vision", "0", "400", "400", "0"]
    assert "together 0 credits, as the ledger says" in said["report --explain"]


def test_prices_are_listed_described_changed_and_deleted(cluster: PwmCluster) -> None:
    price = {"credit": {"per": {"hour": 0.25}}}
    cluster.ok("apply", "-f", "-", input=document("ResourceCredit", "RTX 4090", price))
    assert "RTX 4090" in cluster.ok("get", "rc")
    assert "0.25" in cluster.ok("describe", "rc", "RTX 4090")
    price["credit"]["per"]["hour"] = 0.5
    assert "configured" in cluster.ok("apply", "-f", "-", input=document("ResourceCredit", "RTX 4090", price))
    assert ["RTX", "4090", "0.5"] in [line.split() for line in cluster.ok("credits").splitlines()]
    cluster.ok("delete", "rc", "RTX 4090")
    assert "RTX 4090" not in cluster.ok("credits")
