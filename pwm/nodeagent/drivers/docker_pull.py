"""Pulling images: each only once at a time, with progress for everyone who waits for it.

Fifty containers of one image ask for it at the same moment. The first pulls; the others wait, see its
progress, and take its result too, good or bad, if that pull began after they asked; else they try once more,
which is quick for an image that has just arrived. Credentials are those of the workload's secret, else of the node's
own Docker log-in (`docker login` as the agent's user).
"""

import asyncio
import base64
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pwm.api.v1.agent_pb2 import PullProgress
from pwm.api.v1.identity_pb2 import RegistryLogin
from pwm.nodeagent.drivers.docker_api import ApiError, DockerApi
from pwm.nodeagent.drivers.docker_errors import pull_error
from pwm.nodeagent.drivers.driver import DriverError

Progress = Callable[[PullProgress], None]

_DIGEST = re.compile(r"@[A-Za-z0-9+._-]+:[0-9a-fA-F]{32,}$")


@dataclass
class _Image:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    watchers: list[Progress] = field(default_factory=list)
    users: int = 0
    last_began: float = float("-inf")
    last_error: DriverError | None = None


class Pulls:
    def __init__(self, api: DockerApi) -> None:
        self._api = api
        self._images: dict[tuple[str, bytes], _Image] = {}

    async def pull(self, image: str, progress: Progress, *, login: RegistryLogin | None = None) -> None:
        """Returns when the image is here; raises `DriverError` with a sentence for the user.

        Who has another login gets a pull of his own: nobody waits for the failure of somebody else's.
        """
        asked = time.monotonic()
        key = (image, login.SerializeToString(deterministic=True) if login is not None else b"")
        state = self._images.setdefault(key, _Image())
        state.users += 1
        state.watchers.append(progress)
        try:
            async with state.lock:
                if state.last_began < asked:
                    state.last_began = time.monotonic()
                    state.last_error = None
                    try:
                        await self._pull(image, state, login)
                    except DriverError as error:
                        state.last_error = error
                if state.last_error is not None:
                    raise state.last_error
        finally:
            state.watchers.remove(progress)
            state.users -= 1
            if not state.users:
                del self._images[key]

    async def _pull(self, image: str, state: _Image, login: RegistryLogin | None) -> None:
        name, tag = split_reference(image)
        headers = _header(login) if login is not None else await asyncio.to_thread(_credentials, image)
        layers = _Layers()
        try:
            async with self._api.stream(
                "POST", "/images/create", {"fromImage": name, "tag": tag}, headers=headers
            ) as messages:
                async for message in messages:
                    if error := message.get("error"):
                        raise pull_error(image, _without(login, str(error)))
                    now = layers.take(message)
                    for watcher in state.watchers:
                        watcher(now)
        except ApiError as error:
            raise pull_error(image, _without(login, error.message)) from error


class _Layers:
    """Sums the progress of an image's layers."""

    def __init__(self) -> None:
        self._current: dict[str, int] = {}
        self._total: dict[str, int] = {}

    def take(self, message: dict[str, Any]) -> PullProgress:
        layer, status = str(message.get("id", "")), str(message.get("status", ""))
        detail = message.get("progressDetail") or {}
        if status == "Downloading" and "current" in detail:
            self._current[layer] = detail["current"]
            self._total[layer] = detail.get("total", detail["current"])
        elif layer in self._total and status in ("Download complete", "Pull complete", "Extracting"):
            self._current[layer] = self._total[layer]
        return PullProgress(
            current_bytes=sum(self._current.values()), total_bytes=sum(self._total.values()), message=status
        )


def split_reference(image: str) -> tuple[str, str]:
    """Name and tag (or digest) for the pull; without a tag Docker would fetch all of them."""
    if match := _DIGEST.search(image):
        return image[: match.start()], match[0][1:]
    name, colon, tag = image.rpartition(":")
    if not colon or "/" in tag:
        return image, "latest"
    return name, tag


def _without(login: RegistryLogin | None, message: str) -> str:
    """What a registry says, without the password should it repeat that."""
    return message.replace(login.password, "(secret)") if login is not None and login.password else message


def _header(login: RegistryLogin) -> dict[str, str]:
    said = {"username": login.username, "password": login.password, "serveraddress": login.server}
    return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(said).encode()).decode()}


def _credentials(image: str) -> dict[str, str]:
    # Reads files and runs credential helpers; imported here, since it brings the whole SDK along.
    from docker import auth, errors

    try:
        registry, _ = auth.resolve_repository_name(image)
        found = auth.resolve_authconfig(auth.load_config(), registry)
        return {"X-Registry-Auth": auth.encode_header(found).decode()} if found else {}
    except errors.DockerException:
        # A broken helper or an odd name: the registry says whether it matters.
        return {}
