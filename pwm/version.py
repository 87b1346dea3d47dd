"""The version, readable without importlib.metadata (which costs every command 20 ms)."""

VERSION = "3.0.0"
API_VERSION = "v1"
# Oldest client that this server's API fits.
OLDEST_CLIENT = "3.0.0"


def numbers(version: str) -> tuple[int, ...]:
    """`3.1.0-rc1+local` as (3, 1, 0), to compare."""
    return tuple(int(part) for part in version.split("+")[0].split("-")[0].split(".") if part.isdecimal())
