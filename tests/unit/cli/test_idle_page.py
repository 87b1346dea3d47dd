"""What docs/idle-gpus.md tells people to type is understood, and its settings are there with these defaults."""

import re
import shlex
from pathlib import Path

import pytest

from pwm.cli.commands.daemons import CONTROLLER_SETTINGS
from pwm.cli.main import _plain
from pwm.controlplane.config import ControllerConfig
from pwm.quantity import format_duration

PAGE = (Path(__file__).parents[3] / "docs/idle-gpus.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
LINES = [line for block in BLOCKS for line in block.splitlines() if line.startswith("pwm ")]
SETTINGS = dict(re.findall(r"^\| `--([a-z-]+)` \| (\w+) \|", PAGE, flags=re.MULTILINE))


@pytest.mark.parametrize("line", LINES)
def test_every_command_of_the_page_is_one(line: str) -> None:
    words = shlex.split(line, comments=True)
    assert _plain(words[1:]) is not None, "the quick reader hands over what is wrong"


def test_every_setting_of_the_page_is_one_with_the_default_it_says() -> None:
    assert {name.replace("-", "_") for name in SETTINGS} <= {setting.name for setting in CONTROLLER_SETTINGS}
    config = ControllerConfig()
    defaults = {
        "idle-pause-after": format_duration(config.idle.pause_after_ms),
        "idle-warn-before": "5m",
        "idle-after-start": format_duration(config.idle.spared_ms),
        "gpu-used-from": str(config.idle.used_from_percent),
    }
    assert defaults == SETTINGS
