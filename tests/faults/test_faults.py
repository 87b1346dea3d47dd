"""A share of all faults on real processes; `make faults` runs them in full."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pwm.etcd_process import EtcdProcessError, find_etcd
from tests.docker_engine import why_no_dockerd

ROOT = Path(__file__).parents[2]
# Of the counts of a full run.
SHARE = os.environ.get("PWM_FAULTS_SHARE", "0.1")
LIMIT_S = 2400
STOP_LIMIT_S = 60


def why_not() -> str | None:
    if os.geteuid():
        return "faults need root, for network namespaces"
    missing = [program for program in ("ip", "iptables", "nsenter") if shutil.which(program) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        return "network namespaces cannot be made here"
    try:
        find_etcd()
    except EtcdProcessError as error:
        return str(error)
    return why_no_dockerd()


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 60)
def test_nothing_is_lost_doubled_or_touched_whatever_breaks(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    command = [sys.executable, "-m", "tests.faults", "--scale", SHARE, "--keep-logs", str(tmp_path)]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = running.communicate(timeout=LIMIT_S)
    finally:
        # It ends what it has started.
        running.terminate()
        running.wait(STOP_LIMIT_S)
    assert running.returncode == 0, f"{said[-8000:]}\nlogs in {tmp_path}"
