"""Fixtures for everybody: etcd, Docker engines and images. Each skips by name where it cannot run."""

pytest_plugins = ["tests.etcd_server", "tests.docker_engine", "tests.fake_gpus", "tests.images", "tests.pwm_cluster"]
