"""PWM as a person at a terminal has it: pwm up, run, logs, shell, top, on a real engine and a real etcd."""

import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import ioctl
from pathlib import Path

import docker
import pytest

from tests.docker_engine import DockerEngine
from tests.e2e.local_pwm import LocalPwm, pwm_up, wait_until
from tests.patience import PATIENCE_S

pytestmark = [pytest.mark.docker, pytest.mark.etcd]

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.1
# Other clusters on the same engine may have workloads of ordinary names.
OWN = f"t{os.getpid()}"


@pytest.fixture(scope="module")
def pwm(tmp_path_factory: pytest.TempPathFactory, docker_engine: DockerEngine, etcd_binary: str) -> Iterator[LocalPwm]:
    with pwm_up(tmp_path_factory.mktemp("pwm"), "--rm", docker_host=docker_engine.host) as running:
        yield running
    with_ours = docker_engine_names(docker_engine, f"^/pwm[.]users[.]{OWN}")
    assert with_ours == [], "pwm up --rm left containers"


def docker_engine_names(engine: DockerEngine, pattern: str) -> list[str]:
    client = docker.DockerClient(base_url=engine.host)
    try:
        return [c.name or "" for c in client.containers.list(all=True, ignore_removed=True, filters={"name": pattern})]
    finally:
        client.close()


# --- a person at a pseudo-terminal ------------------------------------------------------------------


class Terminal:
    def __init__(self, process: "subprocess.Popen[bytes]", master: int) -> None:
        self.process = process
        self.master = master
        self.screen = b""

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def resize(self, *, rows: int, columns: int) -> None:
        ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def wait_for(self, pattern: str) -> None:
        """Reads until the pattern has come behind what was waited for before."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := re.search(pattern.encode(), self.screen)):
            assert time.monotonic() < deadline, f"{pattern} did not come: {self.screen!r}"
            if not select.select([self.master], [], [], POLL_S)[0]:
                continue
            try:
                self.screen += os.read(self.master, 65536)
            except OSError:
                pytest.fail(f"it ended without {pattern}: {self.screen!r}")
        self.screen = self.screen[found.end() :]

    def expect_end(self, code: int) -> None:
        """The program ends by itself with this exit code."""
        ended = self.process.wait(PATIENCE_S)
        os.set_blocking(self.master, False)
        with suppress(OSError):  # nothing more was printed
            self.screen += os.read(self.master, 65536)
        assert ended == code, self.screen.decode(errors="replace")


@contextmanager
def terminal(pwm: LocalPwm, *words: str) -> Iterator[Terminal]:
    """Runs `pwm WORD...` on a terminal, which must be as before at the end."""
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(
        [sys.executable, "-m", "pwm", *words],
        stdin=slave, stdout=slave, stderr=slave, env={**pwm.environment, "TERM": "xterm-256color"},
        preexec_fn=make_terminal_ours, start_new_session=True,
    )  # fmt: skip
    try:
        yield Terminal(process, master)
        process.wait(PATIENCE_S)
        assert termios.tcgetattr(slave) == before, "the terminal did not get its settings back"
    finally:
        process.kill()
        process.wait()
        os.close(slave)
        os.close(master)


def make_terminal_ours() -> None:
    """In the child: Ctrl-C typed on this terminal becomes a signal for it."""
    ioctl(0, termios.TIOCSCTTY, 0)


# --- run ------------------------------------------------------------------------------------------


def test_run_hands_on_output_error_and_exit_code(pwm: LocalPwm, busybox_image: str) -> None:
    result = pwm("run", "--rm", "--name", f"{OWN}-run", "-e", "WHO=you", busybox_image, "--",
                 "sh", "-c", "echo to $WHO; echo oops >&2; exit 7", check=False)  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (7, b"to you\n", b"oops\n")


@pytest.mark.parametrize(("image", "command"), [("pwm-demo/no-such:1", "true"), ("", "no-such-command")])
def test_what_never_ran_ends_with_125(pwm: LocalPwm, busybox_image: str, image: str, command: str) -> None:
    result = pwm("run", "--rm", "--name", f"{OWN}-never", image or busybox_image, "--", command, check=False)
    assert result.returncode == 125
    assert f"{OWN}-never never ran".encode() in result.stderr


def test_ctrl_c_stops_what_was_run(pwm: LocalPwm, busybox_image: str) -> None:
    name = f"{OWN}-ctrlc"
    script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done"
    with terminal(pwm, "run", "--name", name, busybox_image, "--", "sh", "-c", script) as person:
        person.wait_for("up")
        person.type("\x03")
        person.wait_for("bye")
        person.expect_end(130)
    assert pwm.phase(name) == "STOPPED"


def test_run_it_is_a_session_with_the_commands_exit_code(pwm: LocalPwm, busybox_image: str) -> None:
    name = f"{OWN}-it"
    with terminal(pwm, "run", "-it", "--rm", "--name", name, busybox_image, "--", "sh") as person:
        person.wait_for("# ")
        person.type("echo $((6*7)); exit 9\n")
        person.wait_for("\n42")
        person.expect_end(9)
    wait_until(lambda: pwm("get", "wk", name, check=False).returncode == 3, "--rm left the workload")


# --- logs -----------------------------------------------------------------------------------------


def test_every_byte_of_a_large_output_arrives(pwm: LocalPwm, busybox_image: str) -> None:
    name = f"{OWN}-bytes"
    pwm("run", "-d", "--name", name, busybox_image, "--", "sh", "-c", "seq 1 2000000; echo end >&2")
    followed = pwm("logs", "wk", name, "-f")
    expected = b"".join(b"%d\n" % n for n in range(1, 2_000_001))
    assert followed.stdout == expected
    assert followed.stderr.endswith(b"end\n")
    assert pwm("logs", "wk", name).stdout == expected
    assert pwm("logs", "wk", name, "--tail", "2").stdout.splitlines()[-1:] in ([b"2000000"], [b"1999999"])


def test_following_survives_a_killed_controller_without_gap_or_repeat(pwm: LocalPwm, busybox_image: str) -> None:
    name = f"{OWN}-follow"
    pwm("run", "-d", "--name", name, busybox_image, "--",
        "sh", "-c", "i=0; while [ $i -lt 120 ]; do i=$((i+1)); echo $i; sleep 0.05; done")  # fmt: skip
    command = [sys.executable, "-m", "pwm", "logs", "wk", name, "-f"]
    with subprocess.Popen(command, env=pwm.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        lines = [follower.stdout.readline() for _ in range(10)]
        os.kill(pwm.child("controller"), signal.SIGKILL)
        rest, noted = follower.communicate(timeout=PATIENCE_S * 2)
        assert follower.returncode == 0, noted
    assert b"".join(lines) + rest == b"".join(b"%d\n" % n for n in range(1, 121))
    pwm.wait_for_phase(name, "EXITED")


# --- shell ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sleeper(pwm: LocalPwm, busybox_image: str) -> str:
    """A workload that runs for the whole module."""
    name = f"{OWN}-sleeper"
    pwm("run", "-d", "--name", name, busybox_image, "--",
        "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done")  # fmt: skip
    pwm.wait_for_phase(name, "RUNNING")
    return name


def test_a_shell_is_a_real_terminal(pwm: LocalPwm, sleeper: str) -> None:
    with terminal(pwm, "shell", "wk", sleeper) as person:
        person.wait_for("# ")
        person.type("stty size\n")
        person.wait_for("30 100")
        person.resize(rows=41, columns=123)
        person.type("sleep 0.5; stty size\n")
        person.wait_for("41 123")
        # It says so itself: typed a moment earlier, Ctrl-C would be the shell's own.
        person.type("sh -c 'echo be''gun; exec sleep 1000'\n")
        person.wait_for("begun")
        person.type("\x03")
        person.wait_for("# ")
        person.type("exit 3\n")
        person.expect_end(3)


def test_a_shell_takes_a_pipe(pwm: LocalPwm, sleeper: str) -> None:
    data = os.urandom(3_000_000)
    result = pwm("shell", "wk", sleeper, "--", "cat", stdin=data)
    assert result.stdout == data


# --- top ------------------------------------------------------------------------------------------


@pytest.fixture
def tmux(pwm: LocalPwm, tmp_path: Path) -> Iterator[list[str]]:
    """The start of a tmux command line for a server of its own."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    command = ["tmux", "-S", str(tmp_path / "tmux")]
    yield command
    subprocess.run([*command, "kill-server"], check=False, capture_output=True)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 50)])
def test_top_shows_the_machine_and_the_workload(
    pwm: LocalPwm, sleeper: str, tmux: list[str], size: tuple[int, int]
) -> None:
    columns, rows = map(str, size)
    variables = [f"-e{name}={pwm.environment[name]}" for name in ("PWM_CONFIG", "DOCKER_HOST")]
    program = f"{sys.executable} -m pwm top; echo left=$?; cat"
    subprocess.run([*tmux, "new-session", "-d", "-x", columns, "-y", rows, *variables, program], check=True)

    def screen() -> str:
        return subprocess.run([*tmux, "capture-pane", "-p"], check=True, capture_output=True, text=True).stdout

    expected = ("pwm top", "1 of 1 nodes ready", "Nodes 1", "Workloads", "READY", "RUNNING", "CPU", "MEM", sleeper)
    wait_until(lambda: all(word in screen() for word in expected), "top does not show everything", limit_s=PATIENCE_S)
    text = screen()
    assert max(map(len, text.splitlines())) <= size[0]

    def press(*keys: str, then: str) -> None:
        """Presses keys; what comes next waits for the screen, as a person does."""
        subprocess.run([*tmux, "send-keys", *keys], check=True)
        wait_until(lambda: then in screen(), f"{keys} did not lead to {then!r}", limit_s=PATIENCE_S)

    press("/", then="only rows with this text")
    press(*sleeper, then=f"· /{sleeper}")
    press("Enter", then="q quit")
    press("Enter", then="sleep 1")
    press("q", then="left=0")


# --- up -------------------------------------------------------------------------------------------


def test_containers_outlive_pwm_and_are_found_again(
    tmp_path: Path, docker_engine: DockerEngine, busybox_image: str, etcd_binary: str
) -> None:
    name, state = f"{OWN}-stays", ["--state-dir", str(tmp_path / "state")]
    with pwm_up(tmp_path / "first", *state, docker_host=docker_engine.host) as first:
        first(
            "run",
            "-d",
            "--name",
            name,
            busybox_image,
            "--",
            "sh",
            "-c",
            "trap 'exit 0' TERM; while :; do sleep 1; done",
        )
        first.wait_for_phase(name, "RUNNING")
        started = first("inspect", "wk", name).stdout
        second = first("up", *state, check=False)
        assert second.returncode == 1
        assert f"process {first.process.pid}".encode() in second.stderr
    assert docker_engine_names(docker_engine, f"^/pwm[.]users[.]{name}[.]") != []
    with pwm_up(tmp_path / "again", *state, docker_host=docker_engine.host) as again:
        again.wait_for_phase(name, "RUNNING")
        pid = re.search(rb'"Pid": (\d+)', started)
        assert pid is not None
        assert pid[0] in again("inspect", "wk", name).stdout
        again("delete", "wk", name)
        wait_until(
            lambda: docker_engine_names(docker_engine, f"^/pwm[.]users[.]{name}[.]") == [], "the container stays"
        )


def test_a_killed_etcd_is_started_again_and_nothing_is_lost(pwm: LocalPwm, sleeper: str) -> None:
    before = pwm.child("etcd")
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: "etcd ended by itself" in pwm.log.read_text(), "the supervisor says nothing")
    wait_until(lambda: pwm("get", "wk", sleeper, check=False).returncode == 0, "reads do not come back")
    stopped = f"{OWN}-after"
    document = (
        f"apiVersion: v1\nkind: Workload\nmetadata: {{name: {stopped}}}\nspec: {{image: none, replica: {{count: 0}}}}\n"
    )
    wait_until(lambda: pwm("apply", "-f", "-", stdin=document.encode(), check=False).returncode == 0, "no writes")
    assert pwm.phase(sleeper) == "RUNNING"


@pytest.mark.slow
def test_the_demo_runs_to_its_end_and_leaves_nothing(
    docker_engine: DockerEngine, hello_image: str, etcd_binary: str, tmp_path: Path
) -> None:
    bin_dir = Path(sys.executable).parent
    if bin_dir != ROOT / ".venv/bin":
        pytest.skip(f"the demo uses .venv of the checkout, and these tests run in {bin_dir}")
    environment = {**os.environ, "DOCKER_HOST": docker_engine.host, "TMPDIR": str(tmp_path), "NO_COLOR": "1"}
    result = subprocess.run(
        [str(ROOT / "scripts/demo.sh")], env=environment, capture_output=True, text=True, timeout=100, cwd=ROOT
    )
    assert result.returncode == 0, result
    for expected in ("Hello, World!", "step 5 of 5", "EXITED", "READY", "created by user admin"):
        assert expected in result.stdout
    assert "Done." in result.stderr
    assert list(tmp_path.iterdir()) == []
