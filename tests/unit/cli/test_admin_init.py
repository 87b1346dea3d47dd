"""`pwm admin init`, in a process of its own: it sets up the logs of a whole process."""

import subprocess
import sys
from pathlib import Path


def test_it_is_told_which_etcd_cannot_be_reached_and_how_to_name_another(tmp_path: Path) -> None:
    # Nobody may listen at port 1.
    words = ["admin", "init", "--etcd", "127.0.0.1:1", "--cluster-key-file", str(tmp_path / "key")]
    result = subprocess.run([sys.executable, "-m", "pwm", *words], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "etcd at 127.0.0.1:1 cannot be reached" in result.stderr
    assert "--etcd HOST:PORT" in result.stderr
    assert "Traceback" not in result.stderr
