# pathlib costs 7 ms to import, and this is part of every command that uses TLS.
# ruff: noqa: PTH100, PTH103, PTH105, PTH116, PTH118, PTH120
"""Pins: a PWM's own certificate authorities, kept beside the profiles. See `pwm.trust` for how the first one is found.

Each set of authorities is a file that is named after what is in it, so that a profile which names it means these and
no others. An authority is replaced now and then; who has the old one is told of the new one over a connection that
the old one vouches for, as long as that is trusted. So the set is asked for twice a day, by whatever command comes by.
"""

from __future__ import annotations

import os
import time

from pwm.cli.profiles import config_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pwm.cli.client import Client
    from pwm.cli.profiles import Profile

REFRESH_AFTER_S = 12 * 3600


def keep(pem: str) -> tuple[str, str]:
    """Write a set of authorities down; its name, and its file."""
    from pwm.trust import bundle_id

    name = bundle_id(pem)
    folder = os.path.join(os.path.dirname(os.path.abspath(config_path())), "authorities")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    file = os.path.join(folder, f"{name}.pem")
    partial = f"{file}.{os.getpid()}.partial"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(pem)
    os.replace(partial, file)
    return name, file


def is_due(profile: Profile) -> bool:
    """Whether the profile's authorities were not asked for in a while."""
    try:
        return bool(profile.pinned) and time.time() - os.stat(profile.ca_file).st_mtime > REFRESH_AFTER_S
    except OSError:
        return False


def refresh(client: Client, profile: Profile) -> None:
    """Ask a server that is believed whom to believe from now on. What goes wrong is for next time."""
    from pwm.cli.errors import CliError
    from pwm.cli.profiles import read_config, write_config

    try:
        # So that commands that run at the same time do not all ask.
        os.utime(profile.ca_file)
        pem = str(client.call("GET", "/v1/authorities").get("certificates", ""))
        name, file = keep(pem)
        if name == profile.pinned:
            return
        config = read_config(lambda text: None)
        for entry in (config.get("api") or {}).values():
            if entry.get("pinned") == profile.pinned:
                entry.update(ca=file, pinned=name)
        write_config(config)
    except (CliError, OSError, ValueError):
        return
