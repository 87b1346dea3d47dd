"""docs/limits.md, typed as it is by a user who has no rights beside those of its lab; then the limits change."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pwm_cluster import PwmCluster, Result, eventually

pytestmark = [pytest.mark.etcd, pytest.mark.docker]

PAGE = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()
LAB, FIRST = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
CONSOLES = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
# How long something took is different each time.
AGE = re.compile(r" (\d+[smhd])+(?= |$)")


def commands() -> Iterator[tuple[list[str], list[str]]]:
    """What the page says to type, and the lines that it says come back."""
    for console in CONSOLES:
        for block in re.split(r"^\$ pwm ", console, flags=re.MULTILINE)[1:]:
            typed, *shown = block.strip().splitlines()
            yield shlex.split(typed), shown


def job(name: str) -> str:
    text = FIRST.replace("image: busybox", "image: pwm-demo/busybox").replace("name: first", f"name: {name}")
    return text.replace("cpu:", "gpu: {count: 3}, cpu:") if name == "large" else text


def typed_by(token: str, cluster: PwmCluster, *words: str, file: str = "") -> Result:
    environment = {**cluster.cli_environment, "PWM_TOKEN": token}
    done = subprocess.run(
        cluster.command(*words), input=file, capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    return Result(done.returncode, done.stdout, done.stderr)


def reason(cluster: PwmCluster, name: str) -> tuple[str, str]:
    status = json.loads(cluster.ok("get", "wk", name, "-g", "vision", "-o", "json"))["status"]
    return status["phase"], status.get("reason", {}).get("code", "")


def test_the_page_is_what_happens_and_changed_limits_count_at_once(cluster: PwmCluster) -> None:
    cluster.ok("apply", "-f", "-", input=LAB)
    ann = cluster.ok("token", "create", "--user", "ann", "-o", "name").strip()
    page = list(commands())
    assert len(page) >= 9
    for words, shown in page:
        file = next((word for word in words if word.endswith(".yaml")), "")
        words = ["-" if word == file else word for word in words]
        result = typed_by(ann, cluster, *words, file=job(file.removesuffix(".yaml")) if file else "")
        assert result.code == 0, f"{words}: {result.out}{result.err}"
        said = [AGE.sub("", " ".join(line.split())) for line in (result.out + result.err).splitlines()]
        missing = [line for line in shown if not any(line in heard for heard in said)]
        assert not missing, f"pwm {' '.join(words)}\n{result.out}{result.err}"

    for name, told in (
        ("third", "waits: group vision may run 2 workloads"),
        ("large", "denied: user ann may have 2 GPUs"),
    ):
        assert told in cluster.ok("events", "Workload", name, "-g", "vision")

    # A raised limit lets start who waits, and who was denied is looked at again: now it is a GPU that it waits for.
    assert reason(cluster, "large") == ("DENIED", "OVER_GPU_LIMIT")
    cluster.ok("restart", "wk", "first", "-g", "vision")
    assert reason(cluster, "first") == ("QUEUED", "TOO_MANY_WORKLOADS")
    raised = LAB.replace("concurrently: 2", "concurrently: 3").replace("perWorkload: 2", "perWorkload: 3")
    cluster.ok("apply", "-f", "-", input=raised)
    eventually(lambda: reason(cluster, "first")[0] == "RUNNING", "a raised limit lets first start")
    assert reason(cluster, "large") == ("QUEUED", "EMPTY_GPU_SELECTOR")
    # A lowered one ends nothing.
    cluster.ok("apply", "-f", "-", input=raised.replace("concurrently: 3", "concurrently: 0"))
    cluster.ok("delete", "wk", "second", "-g", "vision", "--wait")
    assert [reason(cluster, name)[0] for name in ("first", "third")] == ["RUNNING", "RUNNING"]
    cluster.ok("restart", "wk", "third", "-g", "vision")
    eventually(lambda: reason(cluster, "third") == ("DENIED", "OVER_WORKLOAD_LIMIT"), "nothing starts any more")
    cluster.ok("delete", "wk", "first", "third", "large", "-g", "vision", "--wait")
