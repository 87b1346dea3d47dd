"""Which registries images may come from: an admin's list, and how the name of an image says where it is.

Docker's rule: what comes before the first slash is a host if it has a dot or a port in it, or is `localhost`; anything
else is of Docker Hub. With a list of them nobody can make a node connect to where he likes, inside the machine room or
outside, by the name of an image.
"""

from collections.abc import Collection

DOCKER_HUB = "docker.io"
_HUB_NAMES = frozenset({"index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})


def registry_of(image: str) -> str:
    """Host of an image's registry, with its port if it has one."""
    first, slash, _ = image.partition("/")
    if not slash or not (first == "localhost" or "." in first or ":" in first):
        return DOCKER_HUB
    return canonical(first)


def canonical(registry: str) -> str:
    """As images are compared: hosts have no capitals, and Docker Hub has several names."""
    host = registry.lower()
    return DOCKER_HUB if host in _HUB_NAMES else host


def is_allowed(image: str, allowed: Collection[str]) -> bool:
    """Whether an image may be pulled. `allowed`: canonical hosts; none: all are."""
    return not allowed or registry_of(image) in allowed
