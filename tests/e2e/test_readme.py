"""What the README tells people to type works, and its YAML is accepted."""

import re
import shlex
from pathlib import Path

import pytest

from tests.docker_engine import IsolatedDockerdFactory
from tests.e2e.local_pwm import pwm_up
from tests.pwm_cluster import PwmCluster

pytestmark = [pytest.mark.etcd, pytest.mark.docker]

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    """The `pwm` lines of the first screen, without their comments."""
    first_screen = next(block for block in blocks("sh") if "pwm apply" in block)
    return [shlex.split(line, comments=True)[1:] for line in first_screen.splitlines() if line.startswith("pwm ")]


def test_the_first_screen_can_be_typed_as_it_is(
    isolated_dockerd: IsolatedDockerdFactory, etcd_binary: str, tmp_path: Path
) -> None:
    """On a machine whose engine has no image yet."""
    typed = commands()
    assert [words[0] for words in typed] == ["apply", "logs", "get", "run", "top"]
    with pwm_up(tmp_path, "--rm", docker_host=isolated_dockerd().host) as pwm:
        # Only this profile is in the file, but --rm does not make it the one to use.
        pwm.environment["PWM_PROFILE"] = "local"
        for words in typed:
            result = pwm(*(str(ROOT / word) if word.startswith("examples/") else word for word in words))
            assert result.stdout, f"pwm {' '.join(words)} printed nothing"


@pytest.mark.parametrize("text", blocks("yaml"))
def test_the_yaml_is_accepted(cluster: PwmCluster, text: str) -> None:
    out = cluster.ok("apply", "-f", "-", "--dry-run", input=text)
    assert "created" in out


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda file: file.name)
def test_every_example_is_accepted(cluster: PwmCluster, file: Path) -> None:
    out = cluster.ok("apply", "-f", str(file), "--dry-run", "-g", "admin")
    assert "created" in out


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"\bmake ([a-z]+)\b", README))
    assert named >= {"demo", "test", "up"}
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in named)
