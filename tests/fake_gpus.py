"""GPUs on a machine without one: a fake NVML, built from C once per test session, steered by a text file.

def test_something(fake_gpus):
    fake_gpus.set("count 4", "name NVIDIA H100 PCIe", "2.lost 1")
"""

import ctypes
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pynvml
import pytest

from pwm.nodeagent.gpu.nvml import LIBRARY_VARIABLE

_SOURCE = Path(__file__).parent / "fakenvml" / "fakenvml.c"
_SETTINGS_VARIABLE = "FAKE_NVML"


@dataclass(frozen=True)
class FakeGpus:
    library: Path
    settings: Path

    def set(self, *lines: str) -> None:
        """Replaces all settings; see fakenvml.c for what there is."""
        new = self.settings.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in lines))
        new.rename(self.settings)

    def uuid(self, index: int) -> str:
        """Of a GPU whose uuid was not set."""
        return f"GPU-00000000-0000-4000-8000-{index:012x}"

    @property
    def environment(self) -> dict[str, str]:
        """For an agent in another process."""
        return {LIBRARY_VARIABLE: str(self.library), _SETTINGS_VARIABLE: str(self.settings)}


def _header() -> Path | None:
    """Of the nvidia-nvml-dev package; which of its folders it lies in differs between versions."""
    spec = importlib.util.find_spec("nvidia")
    for location in (spec.submodule_search_locations or []) if spec else []:
        found = next(Path(location).rglob("nvml.h"), None)
        if found:
            return found
    return None


@pytest.fixture(scope="session")
def fake_nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler, header = shutil.which("gcc") or shutil.which("cc"), _header()
    if compiler is None:
        pytest.skip("a fake NVML needs a C compiler (apt install gcc)")
    if header is None:
        pytest.skip("a fake NVML needs nvml.h (pip install nvidia-nvml-dev)")
    library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run(
        [compiler, *options, f"-I{header.parent}", "-o", str(library), str(_SOURCE)],
        check=True,
        capture_output=True,
        text=True,
    )
    return library


@pytest.fixture
def fake_gpus(fake_nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpus]:
    """Two GPUs to begin with, in this process and in those that inherit its environment."""
    gpus = FakeGpus(fake_nvml_library, tmp_path / "gpus")
    gpus.set("count 2")
    for name, value in gpus.environment.items():
        monkeypatch.setenv(name, value)
    # pynvml loads one library per process; a real one that another test loaded must not answer here.
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(fake_nvml_library)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    yield gpus
    gpus.set()
    assert os.environ[_SETTINGS_VARIABLE] == str(gpus.settings)
