"""docs/security.md on a real cluster: its commands are run, wrong tokens are sent, and what happened is read again."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.pwm_cluster import PwmCluster, eventually

pytestmark = [pytest.mark.etcd, pytest.mark.docker]

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
REFUSED = 5


def as_token(cluster: PwmCluster, token: str, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        cluster.command(*words), env={**cluster.cli_environment, "PWM_TOKEN": token}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def audit(cluster: PwmCluster, *words: str) -> list[dict[str, Any]]:
    return json.loads(cluster.ok("events", "--audit", "-o", "json", *words))  # type: ignore[no-any-return]


def test_what_people_do_is_written_down(cluster: PwmCluster) -> None:
    cluster.apply("talk", "sleep 1000")
    user = {"kind": "User", "metadata": {"name": "ann"}, "spec": {"groups": [{"name": "users", "policy": {}}]}}
    cluster.ok("apply", "-f", "-", input=json.dumps(user))
    token = cluster.ok("token", "create", "hers", "--user", "ann", "-o", "name").strip()
    assert as_token(cluster, token, "delete", "wk", "talk").returncode == REFUSED
    cluster.until("talk", "RUNNING")
    assert cluster.ok("shell", "wk", "talk", "--", "echo", "inside").strip() == "inside"
    eventually(lambda: audit(cluster, "--action", "shell_ended"), "the end of the shell is written down")

    changed = [(e["user"], e["what"], e.get("name")) for e in audit(cluster, "--action", "change")]
    assert ("admin", "workload_applied", "talk") in changed
    assert ("admin", "user_applied", "ann") in changed
    assert ("admin", "token_issued", "hers of ann") in changed
    (denied,) = audit(cluster, "--action", "denied", "--user", "ann")
    assert (denied["what"], denied["kind"], denied["name"], denied["address"]) == (
        "delete",
        "Workload",
        "talk",
        "127.0.0.1",
    )
    (entry,) = [t for t in json.loads(cluster.ok("token", "ls", "-A", "-o", "json")) if t["name"] == "hers"]
    assert denied["token"] == entry["id"]
    assert [e["name"] for e in audit(cluster, "--action", "shell_began")] == ["talk.0.1"]
    own = as_token(cluster, token, "events", "--audit")
    assert own.returncode == 0, own.stderr
    assert " ann " in own.stdout
    assert " admin " not in own.stdout
    everything = cluster.ok("events", "--audit", "-o", "json") + cluster.log("controller")
    assert token not in everything


def test_wrong_tokens_are_banned_and_counted_and_valid_ones_go_on(cluster: PwmCluster) -> None:
    said = [as_token(cluster, f"pwm_guess{number}", "get", "wk").stderr for number in range(5)]
    assert "this token is not valid" in said[0]
    assert "too many wrong tokens came from 127.0.0.1" in said[-1]
    assert "wait " in said[-1]
    cluster.ok("get", "wk")
    eventually(lambda: audit(cluster, "--action", "banned"), "the ban is written down")
    assert audit(cluster, "--action", "login_failed")[0]["what"] == "wrong token"


def assert_new_ones_are_heard_of(cluster: PwmCluster, *words: str) -> None:
    following = subprocess.Popen(
        cluster.command(*words),
        env=cluster.cli_environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert following.stdout is not None
        assert " login " in following.stdout.readline()
        group = {"kind": "Group", "metadata": {"name": "newcomers"}}
        cluster.ok("apply", "-f", "-", input=json.dumps(group))
        assert any("Group newcomers: group applied" in line for line in following.stdout)
    finally:
        following.kill()
        following.communicate()


def test_the_commands_of_the_page_do_what_it_says(cluster: PwmCluster) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    commands = [line.partition("#")[0].split() for block in blocks for line in block.splitlines()]
    assert len(commands) == 6
    for program, *words in commands:
        assert program == "pwm"
        if "-f" in words:
            assert_new_ones_are_heard_of(cluster, *words)
        else:
            cluster.ok(*words)
    assert " entries of the audit followed" in cluster.ok("admin", "verify")


def test_the_settings_of_the_page_are_those_of_the_controller(cluster: PwmCluster) -> None:
    told = dict(re.findall(r"^\| .*? \| `--([a-z-]+)` \| (\S+) \|$", PAGE, re.MULTILINE))
    text = cluster.ok("controller", "--help")
    assert len(told) == 8
    assert [name for name in [*told, "audit-keep"] if f"--{name}" not in text] == []


def test_an_audit_whose_controller_was_killed_is_still_whole(cluster: PwmCluster) -> None:
    cluster.kill("controller")
    cluster.start_controller()
    cluster.ok("scale", "wk", "talk", "2")
    eventually(
        lambda: any(e["what"] == "workload_scaled" for e in audit(cluster, "--action", "change")), "it is written down"
    )
    assert "all as they should be" in cluster.ok("admin", "verify")
