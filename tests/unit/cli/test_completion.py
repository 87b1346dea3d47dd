"""The shells' scripts are valid and complete commands, kinds, options and names."""

import shutil
import subprocess

import pytest

from pwm.cli import main as cli
from tests.unit.cli.conftest import FakeServer, Pwm


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_valid_for_its_shell(pwm: Pwm, shell: str) -> None:
    result = pwm("completion", shell)
    assert result.code == 0
    assert "_PWM_COMPLETE" in result.out
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    flag = "--no-execute" if shell == "fish" else "-n"
    subprocess.run([shell, flag], input=result.out, text=True, check=True, timeout=30)


def test_another_shell_is_refused(pwm: Pwm) -> None:
    assert pwm("completion", "powershell").code == 2


def _complete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str) -> list[str]:
    words = line.split(" ")
    monkeypatch.setenv("_PWM_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    capsys.readouterr()
    cli.run([])
    return [answer.split(",")[-1] for answer in capsys.readouterr().out.split()]


def test_words_are_completed(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.on("GET", "/v1/resources/Workload", {"text": "workload/train\nworkload/test\n", "count": 2})
    server.on("GET", "/v1/resources/Node", {"text": "node/n1\n", "count": 1})
    assert _complete(monkeypatch, capsys, "pwm ve") == ["version"]
    assert "wk" in _complete(monkeypatch, capsys, "pwm get w")
    assert "--watch" in _complete(monkeypatch, capsys, "pwm get wk --w")
    assert _complete(monkeypatch, capsys, "pwm get wk t") == ["train", "test"]
    assert _complete(monkeypatch, capsys, "pwm describe node ") == ["n1"]
    assert _complete(monkeypatch, capsys, "pwm stop te") == ["test"]
    assert _complete(monkeypatch, capsys, "pwm get wk -o j") == ["json"]


def test_without_a_server_nothing_is_completed_and_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PWM_SERVER", "http://127.0.0.1:1")
    assert _complete(monkeypatch, capsys, "pwm get wk t") == []
    assert capsys.readouterr().err == ""
