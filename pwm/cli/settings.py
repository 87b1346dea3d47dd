"""Settings of a daemon: a flag, else a variable PWM_..., else a key of its config file, else the default.

A daemon's command is a table of `Setting`; each becomes an option of the command, a variable and a key, all of
one name. What is not set anywhere is left to the daemon's own config class, which knows the defaults.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pwm.cli.command import Option
from pwm.cli.errors import CliError, UsageError

CONFIG_OPTION = Option("config", "--config", help="YAML file with settings.", metavar="FILE", completes="file")


class Setting:
    """One setting; `--log-level`, `PWM_LOG_LEVEL` and `log_level:` are the same."""

    def __init__(
        self,
        name: str,
        help: str,
        *,
        metavar: str = "",
        variable: str = "",
        convert: Callable[[str], object] = str,
        multiple: bool = False,
        flag: bool = False,
        choices: Sequence[str] = (),
    ) -> None:
        self.name = name
        # Two daemons may run with one environment; where that would mean two things, the variable is named apart.
        self.variable = variable or f"PWM_{name.upper()}"
        self.convert = convert
        self.multiple = multiple
        self.flag = flag
        self.choices = tuple(choices)
        self.option = Option(
            name,
            "--" + name.replace("_", "-"),
            help=f"{help}  [{self.variable}]",
            metavar=metavar,
            multiple=multiple,
            flag=flag,
            choices=choices,
            convert=None if flag or choices or multiple else convert,
        )

    def from_text(self, text: str, where: str) -> object:
        """The value of a variable; several are separated by commas."""
        try:
            if self.flag:
                return _truth(text)
            if self.choices and text not in self.choices:
                raise ValueError(f"{text!r} is none of {', '.join(self.choices)}")
            if self.multiple:
                return tuple(self.convert(part.strip()) for part in text.split(",") if part.strip())
            return self.convert(text)
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from error

    def from_file(self, value: object, where: str) -> object:
        """The value of a key: as a variable's text, or a YAML list, mapping or truth value."""
        if self.flag and isinstance(value, bool):
            return value
        if isinstance(value, dict):
            value = [f"{key}={inner}" for key, inner in value.items()]
        if isinstance(value, list):
            if not self.multiple:
                raise UsageError(f"{where}: one value is expected, not a list")
            return self.from_text(",".join(str(item) for item in value), where)
        return self.from_text("" if value is None else str(value), where)


def read_settings(settings: Sequence[Setting], given: dict[str, Any]) -> dict[str, Any]:
    """Values of all settings that are set anywhere; `given` are the command's options."""
    config = str(given.get("config") or "")
    by_name = {setting.name: setting for setting in settings}
    values: dict[str, Any] = {}
    for key, value in (_file(config) if config else {}).items():
        setting = by_name.get(str(key).replace("-", "_"))
        if setting is None:
            near = difflib.get_close_matches(str(key), by_name, n=1)
            hint = f"Did you mean {near[0]}?" if near else "Settings are: " + ", ".join(sorted(by_name))
            raise UsageError(f"{config}: there is no setting {key!r}", next_step=hint)
        values[setting.name] = setting.from_file(value, f"{config}: {key}")
    for setting in settings:
        if text := os.environ.get(setting.variable):
            values[setting.name] = setting.from_text(text, setting.variable)
        option = given.get(setting.name)
        if setting.multiple and option:
            # Several may also be written as one, `--etcd a:2379,b:2379`, as in variables.
            values[setting.name] = setting.from_text(",".join(option), setting.option.spellings[0])
        elif option is not None and option is not False and option != ():  # 0 is a value
            values[setting.name] = option
    return values


def _file(path: str) -> dict[str, Any]:
    from pwm.cli.sources import read_documents
    from pwm.manifest.cutting import ManifestError

    found = list(read_documents([path]))
    if len(found) != 1:
        raise CliError(f"{path} holds {len(found)} documents, not one")
    document = found[0]
    if isinstance(document, ManifestError):
        raise CliError(f"{document.place}: {document.message}", next_step=document.next_step)
    return document.content


def _truth(text: str) -> bool:
    word = text.lower()
    if word not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError(f"{text!r} is neither true nor false")
    return word in ("1", "true", "yes", "on")


# --- conversions ----------------------------------------------------------------------------------


def host_and_port(text: str) -> str:
    """`HOST:PORT`, `[::1]:4700`."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 <= int(port) < 65536:
        raise ValueError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:4700")
    return text


def split_address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def path(text: str) -> Path:
    """A path that could be written."""
    return Path(text).expanduser()


def label(text: str) -> tuple[str, str]:
    """`k=v`."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"{text!r} is not KEY=VALUE")
    return key, value


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or not 0 < int(text) < 10**6:
        raise ValueError(f"{text!r} is not a whole number from 1")
    return int(text)


def whole(text: str) -> int:
    """A whole number from 0."""
    return 0 if text == "0" else positive(text)


def network(text: str) -> str:
    """An address, or a network such as 10.0.0.0/8."""
    from ipaddress import ip_network

    return str(ip_network(text))


def duration(text: str) -> int:
    """Milliseconds: `15s`."""
    from pwm.quantity import parse_duration

    return parse_duration(text)


def duration_or_never(text: str) -> int:
    """Milliseconds; 0: never."""
    return 0 if text.lower() == "never" else duration(text)


def size(text: str) -> int:
    """Bytes: `1GiB`."""
    from pwm.quantity import parse_bytes

    return parse_bytes(text)
