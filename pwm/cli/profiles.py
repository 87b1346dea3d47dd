# pathlib costs 7 ms to import, and every command reads this file.
# ruff: noqa: PTH103, PTH105, PTH108, PTH110, PTH111, PTH120, PTH123
"""Profiles: which servers to ask, and with what token. Kept in ~/.pwm/config as PWM 1.x wrote it.

    profile: lab
    api:
      lab:
        server: [https://a:4700, https://b:4700]
        auth: {token: pwm_...}
        ca: /home/ann/.pwm/authorities/ca-0123456789abcdef.pem
        pinned: ca-0123456789abcdef

With `ca` only the authorities in that file are believed; with `pinned` they are a PWM's own (`pins`). PWM 2 (Dora)
wrote the same to ~/.dora/config; it is read when there is no ~/.pwm/config. Environment: PWM_CONFIG names another file,
PWM_PROFILE a profile; PWM_SERVER (comma-separated), PWM_TOKEN and PWM_CA replace what the profile says, so that a
script needs no file at all. The file holds tokens: it is written with mode 0600, whole or not at all.

Reading it is part of every command, and importing a YAML parser costs more than all the rest of one,
so the shape that we write ourselves is read by `_read_plain`; whatever else is valid YAML goes to PyYAML.
"""

from __future__ import annotations

import os

from pwm.cli.errors import CliError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

DEFAULT_SERVER = "https://127.0.0.1:4700"
DEFAULT_PROFILE = "default"


class Profile:
    """Where to go and as whom."""

    __slots__ = ("ca_file", "name", "pinned", "servers", "token")

    def __init__(
        self, name: str, *, servers: Sequence[str], token: str = "", ca_file: str = "", pinned: str = ""
    ) -> None:
        self.name = name
        self.servers = list(servers)
        self.token = token
        # Authorities to believe, instead of the system's; if they are a PWM's own, the name of the set.
        self.ca_file = ca_file
        self.pinned = pinned


def config_path() -> str:
    """The file that is written; and read, unless only Dora's is there."""
    return os.environ.get("PWM_CONFIG") or os.path.expanduser("~/.pwm/config")


def current_profile(name: str, servers: Sequence[str], *, warn: Callable[[str], None]) -> Profile:
    """The profile to use: options over environment over file."""
    config = read_config(warn)
    wanted = name or current_name(config)
    profiles = config.get("api") or {}
    if wanted and wanted not in profiles and (name or not os.environ.get("PWM_SERVER")):
        known = ", ".join(profiles) or "none yet"
        raise UsageError(f"there is no profile {wanted!r}", next_step=f"Profiles are: {known}. See `pwm profile add`.")
    entry = profiles.get(wanted) or {}
    from_environment = [url.strip() for url in os.environ.get("PWM_SERVER", "").split(",") if url.strip()]
    return Profile(
        wanted or DEFAULT_PROFILE,
        servers=list(servers) or from_environment or servers_of(entry) or [DEFAULT_SERVER],
        token=os.environ.get("PWM_TOKEN") or str((entry.get("auth") or {}).get("token") or ""),
        ca_file=os.environ.get("PWM_CA") or str(entry.get("ca") or ""),
        pinned="" if os.environ.get("PWM_CA") else str(entry.get("pinned") or ""),
    )


def current_name(config: dict[str, Any]) -> str:
    """The profile that is used unless an option says otherwise."""
    return os.environ.get("PWM_PROFILE") or str(config.get("profile") or "")


def servers_of(entry: dict[str, Any]) -> list[str]:
    """The servers of a profile's entry in the file."""
    servers = entry.get("server") or []
    return [servers] if isinstance(servers, str) else [str(server) for server in servers]


def read_config(warn: Callable[[str], None]) -> dict[str, Any]:
    """The whole file as a dict, {} when there is none; a broken one is a `CliError`."""
    for path in (config_path(), os.path.expanduser("~/.dora/config")):
        try:
            with open(path, encoding="utf-8") as file:
                mode = os.fstat(file.fileno()).st_mode
                text = file.read()
        except FileNotFoundError:
            if "PWM_CONFIG" in os.environ:
                break
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(
                f"{path} cannot be read: {error}", next_step="`pwm profile add` writes a new one."
            ) from error
        if mode & 0o077:
            warn(f"others may read the tokens in {path}; `chmod 600 {path}` keeps them yours")
        return _checked(_read_plain(text) or _read_yaml(text, path), path)
    return {}


def _checked(config: object, path: str) -> dict[str, Any]:
    api = config.get("api") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(api or {}, dict):
        raise CliError(
            f"{path} is not a profile file", next_step="It has `profile: NAME` and `api: {NAME: {server: [URL]}}`."
        )
    for name, entry in (api or {}).items():
        auth = entry.get("auth") or {} if isinstance(entry, dict) else None
        if not isinstance(auth, dict):
            raise CliError(
                f"{path}: profile {name!r} is not a mapping with server and auth",
                next_step="`pwm profile add` writes one.",
            )
    return config


def _read_yaml(text: str, path: str) -> object:
    import yaml

    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        place = f"{path}:{where.line + 1}:{where.column + 1}" if where else path
        raise CliError(
            f"{place}: not valid YAML", next_step="Mend it, or move it away and run `pwm profile add`."
        ) from error


# Characters a plain value may begin with and consist of, so that YAML surely reads it as the same text.
_PLAIN_START = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ/_")
_PLAIN = _PLAIN_START | frozenset("0123456789.-:@+=")
_NOT_TEXT = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def _read_plain(text: str) -> dict[str, Any] | None:
    """Reads block mappings and lists of plain words; None when the text holds anything else."""
    root: dict[str, Any] = {}
    # Open mappings and their indentation; a list belongs to the key before it.
    stack: list[tuple[int, Any]] = [(0, root)]
    pending: tuple[Any, str, int] | None = None
    for line in text.split("\n"):
        body = line.lstrip(" ")
        if not body:
            continue
        indent = len(line) - len(body)
        if body.startswith("- "):
            if pending is not None:
                holder, key, at = pending
                if indent < at:
                    return None
                holder[key], pending = [], None
                stack.append((indent, holder[key]))
            target = stack[-1][1]
            if not isinstance(target, list) or stack[-1][0] != indent or not _is_plain(body[2:]):
                return None
            target.append(body[2:])
            continue
        key, colon, value = body.partition(":")
        if not colon or not _is_plain(key) or ":" in key:
            return None
        if pending is not None:
            holder, name, at = pending
            if indent <= at:
                return None
            holder[name], pending = {}, None
            stack.append((indent, holder[name]))
        while len(stack) > 1 and (stack[-1][0] > indent or isinstance(stack[-1][1], list)):
            stack.pop()
        target = stack[-1][1]
        if stack[-1][0] != indent or not isinstance(target, dict) or key in target:
            return None
        if not value:
            pending = (target, key, indent)
            target[key] = None
        elif value[0] == " " and _is_plain(value[1:]):
            target[key] = value[1:]
        else:
            return None
    return None if pending is not None else root


def _is_plain(text: str) -> bool:
    return (
        bool(text)
        and text[0] in _PLAIN_START
        and _PLAIN.issuperset(text)
        and not text.endswith(":")
        and text.lower() not in _NOT_TEXT
    )


def write_config(config: dict[str, Any]) -> None:
    """Writes the file whole or not at all, readable by its owner only."""
    import yaml

    path = config_path()
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, mode=0o700, exist_ok=True)
    ordered = {name: config[name] for name in ("profile", "api") if name in config} | config
    text = yaml.safe_dump(ordered, sort_keys=False, default_flow_style=False, width=10_000)
    partial = f"{path}.{os.getpid()}.partial"
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise CliError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        if os.path.exists(partial):
            os.unlink(partial)


def add_profile(
    name: str, *, servers: Sequence[str], token: str, use: bool = True, ca_file: str = "", pinned: str = ""
) -> None:
    """Adds or replaces a profile; what else is in the file stays. Also called by `pwm up`."""
    config = read_config(lambda text: None)
    profiles = config["api"] = config.get("api") or {}
    entry: dict[str, Any] = {"server": list(servers), "auth": {"token": token}}
    if ca_file:
        entry["ca"] = ca_file
    if pinned:
        entry["pinned"] = pinned
    profiles[name] = entry
    if use or not config.get("profile"):
        config["profile"] = name
    write_config(config)
