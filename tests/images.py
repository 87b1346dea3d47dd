"""Images for tests, made on this machine without a registry (see pwm/images.py)."""

import pytest

from pwm.images import ensure_busybox, ensure_hello
from tests.docker_engine import DockerEngine


@pytest.fixture(scope="session")
def busybox_image(docker_engine: DockerEngine) -> str:
    """Reference of a busybox image that the engine has."""
    return ensure_busybox(docker_engine.host)


@pytest.fixture(scope="session")
def hello_image(docker_engine: DockerEngine) -> str:
    """Reference of the demo image that the engine has."""
    return ensure_hello(docker_engine.host)
