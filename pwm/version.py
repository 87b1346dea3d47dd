"""The version, readable without importlib.metadata (which costs every command 20 ms)."""

VERSION = "3.0.0"
API_VERSION = "v1"
# Oldest client that this server's API fits.
OLDEST_CLIENT = "3.0.0"
