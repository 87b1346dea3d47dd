"""`pwm admin init`."""

from pathlib import Path

from tests.unit.cli.conftest import Pwm


def test_it_is_told_which_etcd_cannot_be_reached_and_how_to_name_another(pwm: Pwm, tmp_path: Path) -> None:
    # Nobody may listen at port 1.
    result = pwm("admin", "init", "--etcd", "127.0.0.1:1", "--cluster-key-file", str(tmp_path / "key"))
    assert result.code == 1
    assert "etcd at 127.0.0.1:1 cannot be reached" in result.err
    assert "--etcd HOST:PORT" in result.err
