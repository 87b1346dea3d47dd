"""What docs/people.md tells people to type is understood."""

import re
import shlex
from pathlib import Path

import pytest

from pwm.cli.main import _plain

PAGE = (Path(__file__).parents[3] / "docs/people.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
LINES = [line for block in BLOCKS for line in block.splitlines() if line.startswith("pwm ")]


@pytest.mark.parametrize("line", LINES)
def test_every_command_of_the_page_is_one(line: str) -> None:
    words = shlex.split(line.partition(" <")[0], comments=True)
    assert _plain(words[1:]) is not None, "the quick reader hands over what is wrong"


def test_the_page_has_the_commands_for_tokens() -> None:
    said = {" ".join(shlex.split(line, comments=True)[:3]) for line in LINES}
    assert {"pwm token create", "pwm token ls", "pwm token revoke", "pwm login --server"} <= said
