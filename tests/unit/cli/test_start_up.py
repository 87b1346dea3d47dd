"""What the program loads before it does something: the price of every call.

Times depend on the machine, so what is checked is what they come from: modules that cost more than the command.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.conftest import FakeServer

# What each costs is said in milliseconds, beside an interpreter's start of about 10.
DEAR = {
    "typing": 4, "dataclasses": 12, "click": 18, "argparse": 8, "http.client": 22, "urllib.request": 30,
    "urllib.parse": 8,
    "ssl": 15, "yaml": 18, "asyncio": 40, "aiohttp": 196, "grpc": 65, "google.protobuf": 25, "rich": 41, "textual": 185,
    "importlib.metadata": 20, "email": 15, "logging": 9, "structlog": 134, "datetime": 2, "subprocess": 8, "uuid": 5,
    "difflib": 4, "inspect": 10,
}  # fmt: skip
_PROBE = """
import sys
before = set(sys.modules)
from pwm.cli import main
code = main.run(sys.argv[1:])
sys.stdout.flush()
import json
print(json.dumps(sorted(set(sys.modules) - before)), file=sys.stderr)
sys.exit(code)
"""


def _loaded(tmp_path: Path, *words: str, url: str = "http://127.0.0.1:1") -> set[str]:
    config = tmp_path / "config"
    config.write_text(f"profile: a\napi:\n  a:\n    server:\n    - {url}\n    auth:\n      token: pwm_x\n")
    config.chmod(0o600)
    # -S: without `site`, which loads some of these for an editable installation.
    done = subprocess.run(
        [sys.executable, "-S", "-c", _PROBE, *words],
        env={"PATH": os.environ["PATH"], "PWM_CONFIG": str(config), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def _dear(modules: set[str], *, but: tuple[str, ...] = ()) -> set[str]:
    return {name for name in modules if name in DEAR and name not in but}


def test_version_loads_nothing_dear(tmp_path: Path, server: FakeServer) -> None:
    server.on("GET", "/v1/version", {"version": "3.0.0"})
    assert _dear(_loaded(tmp_path, "version", url=server.url)) == set()


@pytest.mark.parametrize("words", [("get", "c"), ("get", "wk", "-o", "name"), ("get", "wk", "-A", "-l", "a=b")])
def test_get_loads_nothing_dear(tmp_path: Path, server: FakeServer, words: tuple[str, ...]) -> None:
    for kind in ("Container", "Workload"):
        server.on("GET", f"/v1/resources/{kind}", {"text": "NAME\na\n", "count": 1})
    assert _dear(_loaded(tmp_path, *words, url=server.url)) == set()


def test_stop_and_scale_load_nothing_dear(tmp_path: Path, server: FakeServer) -> None:
    server.on("POST", "/v1/workloads/a/stop", {"changed": True})
    server.on("POST", "/v1/workloads/a/scale", {"changed": True})
    assert _dear(_loaded(tmp_path, "stop", "wk", "a", url=server.url)) == set()
    assert _dear(_loaded(tmp_path, "scale", "wk", "a", "3", url=server.url)) == set()


@pytest.mark.parametrize("options", [(), ("--dry-run",), ("-o", "name"), ("-g", "lab")])
def test_apply_loads_nothing_dear_and_no_yaml(tmp_path: Path, server: FakeServer, options: tuple[str, ...]) -> None:
    results = [
        {"outcome": "CREATED", "kind": "Workload", "name": "a", "warnings": [{"message": "mind", "line": 2}]},
        {"outcome": "UNCHANGED", "kind": "Workload", "name": "b", "manifest": 1},
    ]
    server.on("POST", "/v1/apply", {"results": results})
    path = tmp_path / "a.yaml"
    path.write_text("kind: Workload\nmetadata: {name: a}\n--- # another\nkind: Workload\nmetadata: {name: b}\n")
    loaded = _loaded(tmp_path, "apply", "-f", str(path), *options, url=server.url)
    assert _dear(loaded) == set()
    assert {"pwm.cli.commands.apply", "pwm.manifest.cutting"} <= loaded, "it is apply that was called"


def test_the_check_itself_notices(tmp_path: Path) -> None:
    assert "click" in _dear(_loaded(tmp_path, "version", "--help"))
