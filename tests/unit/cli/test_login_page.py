"""What docs/login.md tells people to type is understood, and what it says of settings is so."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from pwm.cli.commands.daemons import CONTROLLER_SETTINGS, OIDC_SETTINGS
from pwm.cli.main import _plain
from pwm.cli.settings import read_settings
from pwm.controlplane.oidc.id_token import ALGORITHMS
from pwm.controlplane.oidc.provider import CALL_LIMIT_S
from pwm.controlplane.oidc.settings import DEFAULT_TOKEN_LIFE_MS
from pwm.controlplane.oidc.wire import ANSWER_LIMIT_S, MAX_ANSWER_BYTES
from pwm.controlplane.services.logins import BEGINNINGS
from pwm.quantity import parse_duration

PAGE = (Path(__file__).parents[3] / "docs/login.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


LINES = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("pwm ")]


@pytest.mark.parametrize("line", LINES)
def test_every_command_of_the_page_is_one(line: str) -> None:
    assert _plain(shlex.split(line, comments=True)[1:]) is not None


def test_the_page_has_every_setting_and_its_config_file_is_one(tmp_path: Path) -> None:
    flags = {setting.option.spellings[0] for setting in OIDC_SETTINGS}
    assert set(re.findall(r"^\| `(--oidc-[a-z-]+)", PAGE, flags=re.MULTILINE)) == flags
    (file,) = [block for block in blocks("yaml") if "oidc_issuer" in block]
    (tmp_path / "controller.yaml").write_text(file)
    values = read_settings(CONTROLLER_SETTINGS, {"config": str(tmp_path / "controller.yaml")})
    assert values["oidc_issuer"] == yaml.safe_load(file)["oidc_issuer"]


def test_the_figures_of_the_page_are_those_of_the_code() -> None:
    assert parse_duration("12h") == DEFAULT_TOKEN_LIFE_MS
    assert "how long the tokens are good for; `12h`" in PAGE
    assert f"each question has six seconds, all of them\ntogether {CALL_LIMIT_S:.0f}." in PAGE
    assert ANSWER_LIMIT_S == 6
    assert f"Answers longer than {MAX_ANSWER_BYTES // 1024} KiB" in PAGE
    assert f"one log-in a second may be begun, {BEGINNINGS.burst} after a\npause" in PAGE
    assert BEGINNINGS.requests_per_s == 1
    kinds = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
    assert "RS/PS256 to 512, ES256 to 512 or EdDSA" in PAGE
    assert kinds == set(ALGORITHMS)
