"""Where an image comes from, and whether it may."""

import pytest

from pwm.controlplane.core.registries import canonical, is_allowed, registry_of


@pytest.mark.parametrize(
    ("image", "registry"),
    [
        ("ubuntu", "docker.io"),
        ("ubuntu:24.04", "docker.io"),
        ("pytorch/pytorch:2.5", "docker.io"),
        ("docker.io/library/ubuntu", "docker.io"),
        ("index.docker.io/library/ubuntu", "docker.io"),
        ("localhost/x", "localhost"),
        ("localhost:5000/x", "localhost:5000"),
        ("Registry.Lab/team/x:1", "registry.lab"),
        ("registry.lab:5000/team/x@sha256:" + "0" * 64, "registry.lab:5000"),
        ("169.254.169.254/latest", "169.254.169.254"),
        ("team/registry.lab/x", "docker.io"),
    ],
)
def test_an_images_name_says_which_registry_it_is_of(image: str, registry: str) -> None:
    assert registry_of(image) == registry


def test_with_a_list_only_these_are_allowed_and_without_one_all() -> None:
    allowed = frozenset(map(canonical, ("Registry.Lab", "index.docker.io")))
    images = ("registry.lab/x", "ubuntu", "registry.lab:5000/x", "ghcr.io/x")
    assert [is_allowed(image, allowed) for image in images] == [True, True, False, False]
    assert is_allowed("ghcr.io/x", ())
