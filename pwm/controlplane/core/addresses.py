"""Addresses of callers: how they are written, and which of them count as one."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

# Whoever has one IPv6 address has all of its network.
IPV6_NEIGHBOURHOOD_BITS = 64
# Addresses taken apart; more than come at one time.
MOST_ADDRESSES = 20_000


@lru_cache(MOST_ADDRESSES)
def parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


@lru_cache(MOST_ADDRESSES)
def plain(text: str) -> str:
    """An address as everybody writes it: `::ffff:10.0.0.1` is 10.0.0.1; "" for what is none."""
    ip = parsed(text.partition("%")[0])
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ip) if ip is not None else ""


@lru_cache(MOST_ADDRESSES)
def neighbourhood(address: str) -> str:
    """What counts as one address."""
    ip = parsed(address)
    if isinstance(ip, IPv6Address):
        return str(ip_network((ip, IPV6_NEIGHBOURHOOD_BITS), strict=False))
    return address
