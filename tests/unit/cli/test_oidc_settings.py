"""Settings of the provider that people log in at, as `pwm controller` and `pwm up` are given them."""

from pathlib import Path
from typing import Any

import pytest

from pwm.cli.command import parse
from pwm.cli.commands import daemons, up
from pwm.cli.commands.daemons import OIDC_SETTINGS
from pwm.controlplane import app
from pwm.controlplane.config import ControllerConfig
from pwm.controlplane.oidc.settings import BadSettings
from tests.unit.cli.conftest import Pwm

ISSUER = "https://idp.example.org/realms/lab"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ControllerConfig]:
    """Controllers that would have been started."""
    configs: list[ControllerConfig] = []

    def main(config: ControllerConfig) -> int:
        configs.append(config)
        return 0

    monkeypatch.setattr(app, "main", main)
    return configs


def test_all_of_them_reach_the_provider(pwm: Pwm, started: list[ControllerConfig], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hidden\n")
    words = {
        "issuer": ISSUER, "client-id": "pwm", "client-secret-file": secret, "claim": "preferred_username",
        "scope": "openid,profile", "ca": tmp_path / "ca.pem", "token-life": "8h",
    }  # fmt: skip
    flags = [f"--oidc-{name}={value}" for name, value in words.items()]
    assert pwm("controller", f"--cluster-key-file={tmp_path / 'key'}", *flags).code == 0
    found = started[0].oidc
    assert found is not None
    assert (found.issuer, found.client_id, found.client_secret) == (ISSUER, "pwm", "hidden")
    assert (found.claim, found.scope, found.token_life_ms) == ("preferred_username", "openid profile", 8 * 3_600_000)
    assert found.ca == tmp_path / "ca.pem"


def test_without_an_issuer_there_is_no_provider(pwm: Pwm, started: list[ControllerConfig], tmp_path: Path) -> None:
    assert pwm("controller", f"--cluster-key-file={tmp_path / 'key'}").code == 0
    assert started[0].oidc is None


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--oidc-client-id=pwm"], "needs --cluster-key-file"),
        (["--cluster-key-file=k"], "needs --oidc-client-id"),
        (["--cluster-key-file=k", "--oidc-client-id=pwm", "--oidc-issuer=http://idp.example.org"], "is no issuer"),
        (["--cluster-key-file=k", "--oidc-client-id=pwm", "--oidc-client-secret-file=/nonexistent"], "No such file"),
        (["--cluster-key-file=k", "--oidc-client-id=pwm", "--oidc-client-secret-file=/dev/null"], "no secret in"),
        (["--cluster-key-file=k", "--oidc-client-id=pwm", "--oidc-token-life=1ms"], "live for 1 second"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(
    pwm: Pwm, started: list[ControllerConfig], flags: list[str], why: str
) -> None:
    result = pwm("controller", "--plaintext", f"--oidc-issuer={ISSUER}", *flags)
    assert result.code == 2
    assert why in result.err
    assert started == []


def test_up_passes_them_on_as_they_were_typed() -> None:
    given: dict[str, Any] | None = parse(
        up.COMMANDS["up"],
        [f"--oidc-issuer={ISSUER}", "--oidc-client-id", "pwm", "--oidc-scope", "openid", "--oidc-scope", "email",
         "--oidc-token-life", "8h"],
    )  # fmt: skip
    assert given is not None
    flags = up._passed_on(given)
    assert flags == (
        f"--oidc-issuer={ISSUER}", "--oidc-client-id=pwm", "--oidc-scope=openid", "--oidc-scope=email",
        "--oidc-token-life=8h",
    )  # fmt: skip
    assert parse(daemons.COMMANDS["controller"], flags) is not None
    nothing = parse(up.COMMANDS["up"], [])
    assert nothing is not None
    assert up._passed_on(nothing) == ()
    assert parse(up.COMMANDS["up"], ["--oidc-token-life", "soon"]) is None


def test_a_secret_is_no_flag_and_shown_nowhere(tmp_path: Path) -> None:
    assert not [setting for setting in OIDC_SETTINGS if setting.name.endswith("secret")]
    file = tmp_path / "secret"
    file.write_text("hidden")
    config = ControllerConfig(
        oidc_issuer=ISSUER, oidc_client_id="pwm", oidc_client_secret_file=file, cluster_key_file=tmp_path / "key"
    )
    assert "hidden" not in f"{config!r} {config.oidc!r}"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(BadSettings, match="it is no text"):
        _ = config.oidc
