"""A daemon's settings: flag over variable over file over default."""

from pathlib import Path

import pytest

from pwm.cli.commands.daemons import AGENT_SETTINGS, CONTROLLER_SETTINGS, agent
from pwm.cli.errors import CliError, UsageError
from pwm.cli.invocation import Invocation
from pwm.cli.settings import Setting, host_and_port, read_settings
from pwm.nodeagent.config import AgentConfig

SETTINGS = (
    Setting("etcd", "", multiple=True, convert=host_and_port),
    Setting("prefix", ""),
    Setting("allow_process", "", flag=True),
    Setting("log_level", "", choices=("debug", "info")),
)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in (*SETTINGS, *AGENT_SETTINGS, *CONTROLLER_SETTINGS):
        monkeypatch.delenv(setting.variable, raising=False)


def test_what_is_set_nowhere_is_left_to_the_default() -> None:
    assert read_settings(SETTINGS, {"etcd": (), "prefix": None, "allow_process": False}) == {}


def test_flag_over_variable_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "controller.yaml"
    config.write_text("etcd: [a:1, b:2]\nprefix: /file/\nallow-process: true\nlog_level: debug\n")
    given = {"config": str(config)}
    assert read_settings(SETTINGS, given) == {
        "etcd": ("a:1", "b:2"), "prefix": "/file/", "allow_process": True, "log_level": "debug",
    }  # fmt: skip
    monkeypatch.setenv("PWM_PREFIX", "/variable/")
    monkeypatch.setenv("PWM_ETCD", "c:3, d:4")
    monkeypatch.setenv("PWM_ALLOW_PROCESS", "no")
    values = read_settings(SETTINGS, given)
    assert (values["prefix"], values["etcd"], values["allow_process"]) == ("/variable/", ("c:3", "d:4"), False)
    assert read_settings(SETTINGS, {**given, "prefix": "/flag/"})["prefix"] == "/flag/"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prefxi: /a/\n", "Did you mean prefix?"),
        ("etcd: nonsense\n", "etcd: 'nonsense' is not HOST:PORT"),
        ("prefix: [a, b]\n", "one value is expected"),
        ("log_level: loud\n", "'loud' is none of debug, info"),
        ("allow_process: perhaps\n", "neither true nor false"),
        ("a: [\n", "not valid YAML"),
        ("", "holds 0 documents"),
    ],
)
def test_a_wrong_file_is_said_with_its_name(tmp_path: Path, text: str, says: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(text)
    with pytest.raises((CliError, UsageError)) as error:
        read_settings(SETTINGS, {"config": str(config)})
    assert says in str(error.value)
    assert str(config) in str(error.value)


def test_a_wrong_variable_is_said_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWM_ETCD", "a:b")
    with pytest.raises(UsageError, match="PWM_ETCD: 'a:b' is not HOST:PORT"):
        read_settings(SETTINGS, {})


def test_names_and_variables_of_settings_are_told_apart() -> None:
    for settings in (AGENT_SETTINGS, CONTROLLER_SETTINGS):
        assert len({setting.name for setting in settings}) == len(settings)
        assert len({setting.variable for setting in settings}) == len(settings)


def test_an_agents_share_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from pwm.nodeagent import app

    seen: list[AgentConfig] = []
    monkeypatch.setattr(app, "main", lambda config: seen.append(config) or 0)
    monkeypatch.setenv("PWM_NODE_TOKEN", "t")
    with Invocation({}) as invocation:
        agent(invocation, cpus=2, memory=8 << 30, gpus=("GPU-a", "GPU-b"))
        agent(invocation, gpus=("none",))
        agent(invocation)
    assert [(c.cpus, c.memory_bytes, c.gpus) for c in seen] == [
        (2, 8 << 30, {"GPU-a", "GPU-b"}), (0, 0, frozenset()), (0, 0, None),
    ]  # fmt: skip


def test_several_values_of_an_option_may_be_written_as_one() -> None:
    given = {"etcd": ("a:2379,b:2379", "c:2379")}
    assert read_settings(SETTINGS, given) == {"etcd": ("a:2379", "b:2379", "c:2379")}
    with pytest.raises(UsageError, match=r"--etcd: .*HOST:PORT"):
        read_settings(SETTINGS, {"etcd": ("a:2379,b",)})
