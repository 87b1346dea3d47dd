"""Bad input through the real command line and server: one clear sentence, where, what next, and nothing changed.

Each document that is wrong goes in one call together with two that are right, one before and one after it.
"""

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S
from tests.pwm_cluster import PwmCluster, Result, eventually, manifest

pytestmark = [pytest.mark.etcd, pytest.mark.docker]

DONE, FAILED, USAGE, NOT_FOUND, CONFLICT, REFUSED, NO_SERVER, TIMED_OUT = range(8)
# Long: nobody should wait for an answer to nonsense; short enough that a hang fails the test.


@dataclass(frozen=True)
class Bad:
    """A document, the exit code, the place (line:column of the file) and words of sentence and next step."""

    text: str
    code: int
    place: str
    sentence: str
    next_step: str


def workload(*spec: str, name: str = "bad") -> str:
    return "\n".join(["apiVersion: v1", "kind: Workload", f"metadata: {{name: {name}}}", "spec:", *spec, ""])


def bomb() -> str:
    """Nine levels of nine aliases each: 387 million words in 500 characters."""
    levels = ["a0: &a0 [" + ", ".join(["lol"] * 9) + "]"]
    levels += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, 9)]
    return "\n".join(levels) + "\n"


IMAGE = "  image: pwm-demo/busybox"
BAD = {
    "an unknown field": Bad(
        workload(IMAGE, "  config: {cmdd: [ls]}"),
        FAILED,
        "6:12",
        "spec.config has no field 'cmdd'",
        "did you mean cmd?",
    ),
    "a wrong type": Bad(
        workload(IMAGE, "  replica: {count: many}"),
        FAILED,
        "6:20",
        "spec.replica.count must be a whole number, not 'many'",
        "write 1",
    ),
    "a mapping where a list belongs": Bad(
        workload(IMAGE, "  volumes: {name: a}"), FAILED, "6:3", "spec.volumes must be a list", "write [{"
    ),
    "a key that is there twice": Bad(
        workload(IMAGE, IMAGE), FAILED, "6:3", "'image' is there twice; the first is in line 5", "Remove one of them"
    ),
    "a bracket left open": Bad(
        workload("  image: [x"), FAILED, "5:10", "a bracket or brace is opened here and not closed", "Close it"
    ),
    "a tab": Bad(workload("\timage: x"), FAILED, "5:1", "a tab", "Replace the tabs"),
    "a missing name": Bad(
        "apiVersion: v1\nkind: Workload\nmetadata: {labels: {a: b}}\nspec: {image: x}\n",
        FAILED,
        "3:1",
        "the Workload has no name",
        "write metadata",
    ),
    "an unknown kind": Bad(
        "apiVersion: v1\nkind: Workloda\nmetadata: {name: bad}\n",
        FAILED,
        "2:7",
        "there is no kind 'Workloda'",
        "did you mean Workload?",
    ),
    "a name with bad characters": Bad(
        workload(IMAGE, name="'a b'"), FAILED, "3:18", "metadata.name is 'a b'", "choose a name"
    ),
    "a group that does not exist": Bad(
        workload(IMAGE, name="bad, group: nowhere"), NOT_FOUND, "3:30", "there is no group nowhere", "use one of"
    ),
    "a privileged container": Bad(
        workload(IMAGE, "  config:", "    privileged: true"),
        REFUSED,
        "7:17",
        "spec.config.privileged is not allowed",
        "no more",
    ),
    "the host's network": Bad(
        workload(IMAGE, "  config: {NetworkMode: host}"),
        REFUSED,
        "6:25",
        "spec.config.NetworkMode is not allowed",
        "own",
    ),
    "a path of the host": Bad(
        workload(IMAGE, "  volumes:", "    - {name: /etc, target: /data}"),
        REFUSED,
        "7:14",
        "spec.volumes[0].name is not allowed",
        "name a volume instead",
    ),
    "a variable that steers the loader": Bad(
        workload(IMAGE, "  config: {env: {LD_PRELOAD: x}}"),
        REFUSED,
        "6:30",
        "the variable LD_PRELOAD is not allowed",
        "remove it",
    ),
    "a document of 300 KiB": Bad(
        workload(IMAGE, "  config:", f"    cmd: [{'x' * 300 * 1024}]"),
        FAILED,
        "1:1",
        "this document has 300 KiB, and 48 KiB is the most",
        "split the document",
    ),
    "a bomb of aliases": Bad(bomb(), FAILED, "5:10", "aliases unfold to more than 48 KiB", "Write fewer aliases"),
    "a list of nothing known": Bad("[1, 2, 3]\n", FAILED, "1:1", "this is a list", "begins with"),
    "a text that is no mapping": Bad("hello\n", FAILED, "1:1", "this is plain text", "begins with"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_document_is_refused_in_a_sentence_and_the_others_go_on(
    cluster: PwmCluster, tmp_path: Path, what: str
) -> None:
    bad, label = BAD[what], f"n{list(BAD).index(what)}"
    files = [tmp_path / name for name in ("1-good.yaml", "2-bad.yaml", "3-good.yaml")]
    files[0].write_text(volume("before", label))
    files[1].write_text(bad.text)
    files[2].write_text(volume("after", label))
    before = versions(cluster)
    result = cluster.pwm("apply", "-f", str(tmp_path), timeout_s=PATIENCE_S)
    said = refusal(result, code=bad.code)
    assert f"error: {files[1]}:{bad.place}: " in said, said
    assert bad.sentence in said, said
    assert bad.next_step in said, said
    assert len(outcomes(result)) == 3, result.out
    assert outcomes(result)[1] == "refused"
    assert set(outcomes(result)[::2]) <= {"created", "configured"}
    changed = {name for name, version in versions(cluster).items() if before.get(name) != version}
    assert changed == {"Volume/before", "Volume/after"}


def test_a_bad_document_of_a_stream_is_placed_in_it_and_the_others_go_on(cluster: PwmCluster) -> None:
    stream = f"---\n{volume('before', 'stream')}---\n{workload(IMAGE, '  imagee: x')}---\n{volume('after', 'stream')}"
    result = cluster.pwm("apply", "-f", "-", input=stream)
    assert "error: stdin:12:11: spec has no field 'imagee'" in refusal(result, code=FAILED)
    assert outcomes(result)[1] == "refused"
    assert set(outcomes(result)[::2]) <= {"created", "configured"}
    assert "Workload/bad" not in versions(cluster)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("binary.yaml", bytes(range(256)) * 64, "this is a binary file, not YAML"),
        ("program.yaml", Path("/bin/true").read_bytes(), "this is a binary file, not YAML"),
        ("latin.yaml", "name: \xe9\n".encode("latin-1"), "UTF-8"),
        ("wide.yaml", "kind: Workload\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_file_that_is_no_text_is_refused_and_the_others_go_on(
    cluster: PwmCluster, tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / "a.yaml").write_text(volume("before", name))
    (tmp_path / name).write_bytes(content)
    result = cluster.pwm("apply", "-f", str(tmp_path))
    said = refusal(result, code=FAILED)
    assert f"error: {tmp_path / name}" in said
    assert sentence in said
    assert sorted(outcomes(result))[0] in ("created", "configured")
    assert sorted(outcomes(result))[1:] == ["refused"]


def test_a_name_belongs_to_one_kind_of_a_group(cluster: PwmCluster, tmp_path: Path) -> None:
    cluster.ok("apply", "-f", "-", input=volume("taken"))
    file = tmp_path / "clash.yaml"
    file.write_text(workload(IMAGE, name="taken") + "---\n" + volume("other"))
    try:
        result = cluster.pwm("apply", "-f", str(file))
        said = refusal(result, code=CONFLICT)
        assert f"error: {file}:3:18: the name taken is taken by a Volume\n  choose another name" in said, said
        assert "Volume/other created" in result.out
        assert "Workload/taken" not in versions(cluster)
    finally:
        cluster.pwm("delete", "volume", "taken", "other")


@pytest.mark.parametrize(
    ("spec", "place", "code", "sentence", "next_step"),
    [
        ("  selectors: {label: {rack: nope}}", "6:29", "EMPTY_LABEL_SELECTOR", "label rack=nope", "leave the label"),
        ("  selectors: {node: {name: nope}}", "6:28", "EMPTY_NODE_SELECTOR", "no node is called nope", "any node"),
        ("  selectors: {cpu: {count: 4000}}", "6:28", "EMPTY_CPU_SELECTOR", "the largest has", "ask for"),
        ("  selectors: {gpu: {count: 999}}", "6:15", "EMPTY_GPU_SELECTOR", "n1 has no GPU", "pwm why wk vain"),
        ("  config: {memory: 4000TiB}", "6:20", "NO_MEMORY_FREE", "no node has 4000TiB of memory", "ask for"),
    ],
)
def test_what_no_node_has_is_said_at_once_and_by_why(
    cluster: PwmCluster, tmp_path: Path, spec: str, place: str, code: str, sentence: str, next_step: str
) -> None:
    """A node may join that has it, so the workload waits; but whoever mistyped learns of it at once."""
    file = tmp_path / "vain.yaml"
    file.write_text(workload(IMAGE, spec, name="vain"))
    try:
        result = cluster.pwm("apply", "-f", str(file))
        assert (result.code, result.out) == (DONE, "Workload/vain created\n")
        assert f"warning: {file}:{place}: it cannot start on the nodes there are: " in result.err, result.err
        assert sentence in result.err
        assert next_step in result.err
        why = cluster.ok("why", "wk", "vain")
        assert f"vain is QUEUED: {sentence}" in why or f"({code})" in why.splitlines()[0], why
        assert code in cluster.ok("get", "wk", "vain")
        assert next_step in why or next_step.startswith("pwm why")
    finally:
        cluster.pwm("delete", "wk", "vain", "--wait")


def test_an_image_that_does_not_exist_ends_the_workload_with_the_reason(cluster: PwmCluster) -> None:
    image = "127.0.0.1:9/not/there:1"
    result = cluster.pwm("apply", "-f", "-", "--wait", input=manifest("noimage", "true", image=image))
    try:
        assert result.code == FAILED, result
        assert "Traceback" not in result.err
        cluster.until("noimage", "CRASHED")
        why = cluster.ok("why", "wk", "noimage")
        assert image in why
        assert any(code in why for code in ("REGISTRY_UNREACHABLE", "IMAGE_NOT_PRESENT", "PULL_FAILED")), why
        # It never printed: nothing to show is no error, and following ends.
        for arguments in ((), ("-f",)):
            logs = cluster.pwm("logs", "wk", "noimage", *arguments, timeout_s=PATIENCE_S)
            assert logs.out == ""
            assert "not kept any more" not in logs.err, logs.err
            assert logs.code == DONE, logs.err
            assert image in logs.err, "it says why there is nothing"
    finally:
        cluster.pwm("delete", "wk", "noimage", "--wait")


def test_a_workload_that_is_being_deleted_cannot_be_applied(cluster: PwmCluster) -> None:
    text = manifest("going", "echo up; trap 'sleep 3; exit' TERM; while :; do sleep 0.1; done", stopGrace="20s")
    cluster.ok("apply", "-f", "-", input=text)
    cluster.until("going", "RUNNING")
    # Only then does it handle the signal.
    eventually(lambda: "up" in cluster.pwm("logs", "wk", "going").out, "it printed")
    cluster.ok("delete", "wk", "going")
    said = refusal(cluster.pwm("apply", "-f", "-", input=text), code=CONFLICT)
    assert "error: stdin:1:" in said
    assert "workload going is being deleted\n  wait until it is gone" in said, said
    eventually(lambda: cluster.phase("going") == "GONE", "it is gone")
    cluster.ok("apply", "-f", "-", input=text)
    cluster.ok("delete", "wk", "going", "--wait")


@pytest.mark.parametrize("content", ["", "\n\n", "# nothing\n---\n# here\n"])
def test_files_without_documents_are_no_success(cluster: PwmCluster, tmp_path: Path, content: str) -> None:
    (tmp_path / "empty.yaml").write_text(content)
    for arguments, given in ((("-f", str(tmp_path / "empty.yaml")), None), (("-f", "-"), content)):
        said = refusal(cluster.pwm("apply", *arguments, input=given), code=FAILED)
        assert "no documents there\n  A document begins with" in said


def test_a_file_and_a_directory_without_manifests_are_named(cluster: PwmCluster, tmp_path: Path) -> None:
    said = refusal(cluster.pwm("apply", "-f", str(tmp_path / "nowhere.yaml")), code=FAILED)
    assert f"error: {tmp_path}/nowhere.yaml: there is no such file\n" in said
    said = refusal(cluster.pwm("apply", "-f", str(tmp_path)), code=FAILED)
    assert f"error: {tmp_path}: no .yaml, .yml, .json files in this directory\n" in said


# --- not about documents --------------------------------------------------------------------------


def test_a_wrong_token_is_refused(cluster: PwmCluster) -> None:
    for token in ("pwm_wrong", "é", " "):
        said = refusal(with_environment(cluster, "get", "wk", PWM_TOKEN=token), code=REFUSED)
        assert "pwm login" in said


def test_without_a_server_the_address_is_named(cluster: PwmCluster) -> None:
    for server, why in (("http://127.0.0.1:1", "nothing listens there"), ("http://no-such-host.invalid", "host")):
        said = refusal(with_environment(cluster, "get", "wk", PWM_SERVER=server), code=NO_SERVER)
        assert server in said
        assert why in said
        assert "Is the controller running?" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("get", "wk", "nosuch"),
        ("describe", "wk", "nosuch"),
        ("why", "wk", "nosuch"),
        ("logs", "wk", "nosuch"),
        ("logs", "wk", "nosuch", "-f"),
        ("stop", "wk", "nosuch"),
        ("restart", "wk", "nosuch"),
        ("delete", "wk", "nosuch"),
        ("scale", "wk", "nosuch", "2"),
        ("inspect", "wk", "nosuch"),
    ],
)
def test_a_workload_that_does_not_exist_is_not_found(cluster: PwmCluster, arguments: tuple[str, ...]) -> None:
    said = refusal(cluster.pwm(*arguments, timeout_s=PATIENCE_S), code=NOT_FOUND)
    assert "there is no" in said
    assert "nosuch" in said
    assert "what there is" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("apply",), "say what to apply"),
        (("aply", "-f", "x"), "Did you mean apply?"),
        (("apply", "--bogus"), "No such option"),
        (("get", "nonsense"), "there is no kind 'nonsense'"),
        (("get", "wk", "-o", "bogus"), "is not one of"),
        (("scale", "wk", "x", "many"), "'many' is not a whole number"),
        (("logs", "wk", "x", "-f", "--previous"), "prints nothing more"),
        (("logs", "wk", "x", "--since", "soon"), "soon"),
        (("stop",), "say what to stop"),
    ],
)
def test_wrong_usage_is_told_from_failure(cluster: PwmCluster, arguments: tuple[str, ...], sentence: str) -> None:
    assert sentence in refusal(cluster.pwm(*arguments), code=USAGE)


def test_a_shell_that_never_started_has_the_code_of_that(cluster: PwmCluster) -> None:
    """The codes below are those of the command in the container."""
    assert "there is no workload nosuch" in refusal(cluster.pwm("shell", "wk", "nosuch"), code=125)


def test_waiting_ends_at_its_time_limit(cluster: PwmCluster) -> None:
    begun = time.monotonic()
    text = workload(IMAGE, "  selectors: {label: {rack: nope}}", name="waits")
    try:
        said = refusal(cluster.pwm("apply", "-f", "-", "--wait", "--timeout", "1s", input=text), code=TIMED_OUT)
        assert "not running within 1 s: waits" in said
        assert 1.0 <= time.monotonic() - begun < PATIENCE_S
    finally:
        cluster.pwm("delete", "wk", "waits", "--wait")


def test_after_all_that_the_log_is_whole(cluster: PwmCluster) -> None:
    cluster.ok("admin", "verify")
    assert "Traceback" not in cluster.log("controller"), cluster.log("controller")
    assert "Traceback" not in cluster.log("agent"), cluster.log("agent")


# --- what they share ------------------------------------------------------------------------------


def volume(name: str, label: str = "") -> str:
    """A small document that is right and starts nothing; another label is a change."""
    metadata = f"{{name: {name}, labels: {{test: '{label}'}}}}"
    return f"apiVersion: v1\nkind: Volume\nmetadata: {metadata}\nspec: {{storage: somewhere}}\n"


def versions(cluster: PwmCluster) -> dict[str, str]:
    """Everything of the kinds that these tests apply: kind and name, and its version."""
    found = {}
    for kind in ("Workload", "Volume"):
        for resource in json.loads(cluster.ok("get", kind, "-o", "json")):
            metadata = resource["metadata"]
            found[f"{kind}/{metadata['name']}"] = metadata["uid"] + metadata["version"]
    return found


def outcomes(result: Result) -> list[str]:
    """The word for each document."""
    return [line.rpartition(" ")[2] for line in result.out.splitlines()]


def refusal(result: Result, *, code: int) -> str:
    """What it said on standard error; it must be sentences and the right exit code."""
    assert result.code == code, result
    for trace in ("Traceback", "Exception", 'File "'):
        assert trace not in result.err, result.err
    assert result.err.strip(), "it said nothing"
    assert len(result.err) < 3000, "that is no sentence"
    return result.err


def with_environment(cluster: PwmCluster, *arguments: str, **variables: str) -> Result:
    done = subprocess.run(
        cluster.command(*arguments),
        capture_output=True, env={**cluster.cli_environment, **variables}, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())
