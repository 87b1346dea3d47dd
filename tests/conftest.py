"""Fixtures for everybody: etcd, Docker engines and images. Each skips by name where it cannot run."""

import signal

pytest_plugins = [
    "tests.etcd_server",
    "tests.docker_engine",
    "tests.fake_gpus",
    "tests.images",
    "tests.pwm_cluster",
    "tests.oidc_provider",
]


def pytest_configure() -> None:
    """Who ends the run with SIGTERM leaves nothing behind either; and what is started can be interrupted.

    A shell lets its background jobs ignore SIGINT, and so would all their children.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
