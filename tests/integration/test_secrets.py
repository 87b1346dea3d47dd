"""Planted secrets are found in the container that uses them, and nowhere else.

On a real cluster with real Docker and real processes: what has been given to containers is looked for in everything
that PWM keeps or says, in every form in which it could be there.
"""

import asyncio
import base64
import json
import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import aiohttp
import pytest

from pwm.controlplane.store.etcd import EtcdKV
from tests.integration.registry import Registry
from tests.patience import PATIENCE_S
from tests.pwm_cluster import PwmCluster, eventually, manifest

pytestmark = [pytest.mark.etcd, pytest.mark.docker]

PAGE = (Path(__file__).parents[2] / "docs" / "secrets.md").read_text()
# What is long enough to be nowhere by chance.
TOKEN = f"planted-token-{secrets.token_hex(12)}"
FILE = f"planted-file-{secrets.token_hex(12)}"
BYTES = b"\xff\x00planted-" + secrets.token_bytes(24)
PASSWORD = f"planted-password-{secrets.token_hex(12)}"
USERNAME = f"planted-username-{secrets.token_hex(12)}"
# The container says whether it has what was planted, without saying what that is.
LOOK = (
    f'test "$TOKEN" = "${{EXPECTED_PREFIX}}{TOKEN[-20:]}" && echo token is there;'
    " ls -l /run/secrets/s1/ /keys/; (echo >> /keys/file) 2>&1;"
    " cat /keys/file | wc -c; grep -q planted-file /run/secrets/s1/file && echo file is there;"
    " sleep 1000"
)


def forms(value: bytes) -> list[bytes]:
    """A value as it is, in base64 wherever in a text it begins, in hex, and as JSON has it."""
    found = [value, value.hex().encode()]
    for shift in range(3):
        coded = base64.b64encode(b"x" * shift + value)
        # Without what depends on its neighbours.
        found += [part[4:-4] for part in (coded, coded.replace(b"+", b"-").replace(b"/", b"_"))]
    return found


PLANTED = [form for value in (TOKEN.encode(), FILE.encode(), BYTES, PASSWORD.encode(), USERNAME.encode())
           for form in forms(value)]  # fmt: skip


def assert_clean(where: object, content: bytes) -> None:
    found = [form for form in PLANTED if form in content]
    assert not found, f"{found} in {where}"


def apply_secret(pwm: PwmCluster, name: str, **spec: Any) -> str:
    document = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "spec": spec}
    return pwm.ok("apply", "-f", "-", input=json.dumps(document))


@pytest.fixture(scope="module")
def pwm(cluster: PwmCluster) -> PwmCluster:
    apply_secret(cluster, "s1", data={"token": TOKEN, "file": FILE}, base64={"raw": base64.b64encode(BYTES).decode()})
    env = {"TOKEN": {"secret": "s1", "key": "token"}, "EXPECTED_PREFIX": TOKEN[:-20]}
    mounts = ["s1", {"name": "s1", "target": "/keys"}]
    cluster.apply("docker", LOOK, env=env, secrets=mounts, user={"uid": 1234, "gid": 1234})
    look = 'test "$TOKEN" && grep -q planted-file $PWM_SECRETS/s1/file && echo both; sleep 1000'
    document = json.loads(manifest("process", look, env=env, secrets=["s1"]).rstrip("-\n"))
    document["spec"] |= {"driver": "pwm.process", "image": ""}
    cluster.ok("apply", "-f", "-", input=json.dumps(document))
    for name in ("docker", "process"):
        cluster.until(name, "RUNNING")
    return cluster


def test_a_container_has_its_secrets_as_variables_and_as_read_only_files(pwm: PwmCluster) -> None:
    said = eventually(lambda: (logs := pwm.ok("logs", "wk", "docker")).endswith("file is there\n") and logs, "it looks")
    assert "token is there" in said
    assert f"\n{len(FILE)}\n" in said, "and not one byte more: it cannot be written"
    assert said.count("-r--------    1 1234     1234") == 6, "three keys in two places, for this user alone"
    assert_clean("logs", said.encode())
    assert "both" in eventually(lambda: pwm.ok("logs", "wk", "process"), "the process looked around")
    # What is started beside it has them, too.
    assert pwm.ok("shell", "wk", "docker", "--", "sh", "-c", "echo $TOKEN").strip() == TOKEN
    assert pwm.ok("shell", "wk", "process", "--", "sh", "-c", "echo $TOKEN").strip() == TOKEN


def test_planted_secrets_are_found_nowhere(pwm: PwmCluster) -> None:
    pwm.pwm("apply", "-f", "-", input=json.dumps({"kind": "Secret", "metadata": {"name": "bad"},
            "spec": {"data": TOKEN}}))  # fmt: skip
    said = b""
    document = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s1"}, "spec": {"data": {"token": TOKEN}}}
    bad = document | {"spec": {"data": {"token": [TOKEN]}, "registry": f"{USERNAME}:{PASSWORD}"}}
    commands: list[tuple[tuple[str, ...], str | None]] = [
        *(((*what, "-o", how), None) for what in SHOWN for how in ("table", "wide", "json", "yaml", "name")),
        *((what, None) for what in SAID),
        (("apply", "--diff", "-f", "-"), json.dumps(document)),
        (("apply", "--dry-run", "-f", "-", "-o", "json"), json.dumps(document)),
        (("apply", "-f", "-"), json.dumps(bad)),
        (("apply", "-f", "-"), f"kind: Secret\nspec: {{data: {{a: '{TOKEN}'\n"),
    ]
    for words, given in commands:
        result = pwm.pwm(*words, input=given)
        content = (result.out + result.err).encode()
        assert_clean(words, content)
        said += content
    for path in ASKED:
        said += (answer := asyncio.run(ask(pwm, path)))
        assert_clean(path, answer)
    assert said.count(b"s1") > 20
    assert b"TOKEN=(secret)" in said, "inspect says which variable it is"
    for path in (path for path in pwm.directory.rglob("*") if path.is_file()):
        assert_clean(path, path.read_bytes())
    for key, value in asyncio.run(everything_in_etcd(pwm)):
        assert_clean(key, key + value)


SHOWN = [
    ("get", "secret"), ("get", "secret", "s1"), ("get", "secret", "-A"), ("get", "wk"), ("get", "c"), ("get", "events"),
    ("get", "wk", "docker"), ("get", "bind"),
]  # fmt: skip
SAID = [
    *(("describe", kind, name) for kind, name in (("secret", "s1"), ("wk", "docker"), ("c", "docker.0.1"))),
    ("events", "-A"), ("events", "-A", "-o", "json"), ("events", "--audit", "-o", "json"),
    ("why", "wk", "docker"), ("why", "wk", "docker", "-o", "json"),
    ("inspect", "wk", "docker"), ("inspect", "wk", "process"), ("top", "wk", "docker"), ("top", "wk", "process"),
]  # fmt: skip


ASKED = [
    "/v1/resources/Secret/s1", "/v1/resources/Secret?group=users", "/v1/workloads/docker/inspect", "/metrics",
    "/v1/resources/Event?allGroups=true", "/v1/resources/Workload/docker",
]  # fmt: skip


async def ask(pwm: PwmCluster, path: str) -> bytes:
    headers = {"Authorization": f"Bearer {pwm.cli_environment['PWM_TOKEN']}"}
    url = f"http://{pwm.replicas[0].http}{path}"
    async with aiohttp.ClientSession(headers=headers) as session, session.get(url) as answer:
        content = await answer.read()
    assert answer.status == 200, (path, content)
    return content


async def everything_in_etcd(pwm: PwmCluster) -> list[tuple[bytes, bytes]]:
    """Each key that there is, and each value that it ever had since the last compaction is in etcd's own files."""
    async with EtcdKV([pwm.etcd.address]) as kv:
        found = [(kv_.key, kv_.value) async for page in kv.pages(b"/pwm/v1/") for kv_ in page.kvs]
    assert any(b"/sealed/Secret/" in key for key, _ in found)
    return found


def test_a_secret_that_is_shown_can_be_applied_again_and_another_agent_gets_the_new_value(pwm: PwmCluster) -> None:
    shown = pwm.ok("get", "secret", "s1", "-o", "yaml")
    assert pwm.ok("apply", "-f", "-", input=shown).strip() == "Secret/s1 unchanged"
    changed = json.loads(pwm.ok("get", "secret", "s1", "-o", "json"))
    changed["spec"]["data"]["extra"] = "something new"
    assert pwm.ok("apply", "-f", "-", input=json.dumps(changed)).strip() == "Secret/s1 configured"
    pwm.kill("agent")
    pwm.start_agent()
    pwm.ok("scale", "wk", "docker", "2")
    look = ("shell", "wk", "docker", "--replica", "1", "--", "cat", "/keys/extra", "/keys/file")
    said = eventually(lambda: (seen := pwm.pwm(*look)).code == 0 and seen.out, "the new container runs")
    assert said == f"something new{FILE}"
    assert pwm.pwm("shell", "wk", "docker", "--replica", "0", "--", "cat", "/keys/extra").code != 0, (
        "it has what it had"
    )


def test_what_refers_to_a_missing_secret_waits_and_says_so(pwm: PwmCluster) -> None:
    env = {"A": {"secret": "later", "key": "a"}}
    warned = pwm.pwm("apply", "-f", "-", input=manifest("waits", "test $A = 1", env=env))
    assert "it waits: there is no secret later in group users" in warned.err
    assert "there is no secret later in group users" in pwm.ok("why", "wk", "waits")
    apply_secret(pwm, "later", data={"b": "1"})
    eventually(lambda: "the secret later has no key a" in pwm.ok("why", "wk", "waits"), "it still waits")
    apply_secret(pwm, "later", data={"b": "", "a": "1"})
    pwm.until("waits", "EXITED")


def test_a_private_image_is_pulled_with_the_login_of_a_secret(pwm: PwmCluster) -> None:
    with registry() as address:
        apply_secret(pwm, "login", registry={"server": address, "username": USERNAME, "password": PASSWORD})
        document = json.loads(manifest("pulls", "exit 0", image=f"{address}/private").rstrip("-\n"))
        document["spec"]["config"]["restartPolicy"] = "Never"
        document["spec"]["config"]["cmd"] = ["/bin/busybox", "true"]
        document["spec"]["image"] = {"image": f"{address}/private", "pullPolicy": "Always"}
        pwm.ok("apply", "-f", "-", input=json.dumps(document | {"metadata": {"name": "barred"}}))
        pwm.until("barred", "CRASHED")
        assert "registrySecret" in pwm.ok("why", "wk", "barred")
        document["spec"]["image"]["registrySecret"] = "login"
        pwm.ok("apply", "-f", "-", input=json.dumps(document))
        pwm.until("pulls", "EXITED")
    shown = pwm.ok("get", "secret", "login", "-o", "yaml")
    assert address in shown
    assert_clean("the login", shown.encode())
    assert f"login at {address}" in pwm.ok("get", "secret", "login")


@contextmanager
def registry() -> Iterator[str]:
    """A registry in a thread of its own, since the tests here are none of asyncio's."""
    served, done = Event(), Event()
    made = Registry(username=USERNAME, password=PASSWORD)

    async def serve() -> None:
        async with made.serving():
            served.set()
            await asyncio.to_thread(done.wait)

    thread = Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert served.wait(PATIENCE_S)
        yield made.address
    finally:
        done.set()
        thread.join()


def test_a_secret_that_is_deleted_is_gone_with_its_values(pwm: PwmCluster) -> None:
    apply_secret(pwm, "gone", data={"a": "b"})
    uid = json.loads(pwm.ok("get", "secret", "gone", "-o", "json"))["metadata"]["uid"]
    assert any(uid.encode() in key for key, _ in asyncio.run(sealed(pwm)))
    pwm.ok("delete", "secret", "gone")
    assert not any(uid.encode() in key for key, _ in asyncio.run(sealed(pwm)))


async def sealed(pwm: PwmCluster) -> list[tuple[bytes, bytes]]:
    return [(key, value) for key, value in await everything_in_etcd(pwm) if b"/sealed/" in key]


def test_the_page_about_secrets_is_true(pwm: PwmCluster, tmp_path: Path) -> None:
    """Its files are written, and what stands behind each $ is done and says what stands below it."""
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        name = re.match(r"# (\S+)\n", block)
        assert name is not None, block
        (tmp_path / name[1]).write_text(block.replace("image: busybox", "image: pwm-demo/busybox"))
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL):
        for command in block.removeprefix("$ pwm ").split("\n$ pwm "):
            words, *lines = command.strip().split("\n")
            said = pwm.ok(*(str(tmp_path / word) if word.endswith(".yaml") else word for word in words.split()))
            assert all(line in said for line in lines), (words, said)
        # With the value of the first block it sleeps, with the one of the second it ends at once.
        pwm.until("train", "RUNNING" if "restart" not in block else "CRASHED")
    pwm.ok("apply", "--dry-run", "-f", str(tmp_path / "login.yaml"))


def test_a_controller_with_another_key_does_not_start(pwm: PwmCluster, tmp_path: Path) -> None:
    tried = subprocess.run(
        pwm.command("controller", f"--etcd={pwm.etcd.address}", "--http=127.0.0.1:0", "--agents=127.0.0.1:0",
                    f"--cluster-key-file={tmp_path}/other-key"),
        capture_output=True, text=True, env=pwm.cli_environment, timeout=30, check=False,
    )  # fmt: skip
    assert tried.returncode == 1
    assert "another key" in tried.stderr
