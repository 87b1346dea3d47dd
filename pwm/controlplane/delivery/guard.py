"""Keeps the process that sends from whatever users could make it do besides sending.

Users write where their notices go, and apprise has a hundred ways to go there. It is not known beforehand what each
connects to, what a name resolves to when it does, or which options of a URL read a file. So this is not checked at the
door but where it happens: an audit hook of the interpreter sees every connection with the very address that is
connected to, every file and every program, and refuses. A hook cannot be removed, which is why it is only ever set in
a process that does nothing else.

A thread may be `trusted` for a while: when it connects to the mail server that the admin has named.
"""

import ipaddress
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

# Networks by which an IPv6 address stands for one of IPv4, besides those that Python knows.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_CONNECTING = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
_RUNNING = frozenset(
    {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn"}
)
_WRITING = frozenset("wax+")
# Where the interpreter, its packages and the certificates of authorities are.
_READABLE = (sys.prefix, sys.base_prefix, "/usr/lib", "/usr/share", "/etc/ssl", "/etc/mime.types", "/dev/null")

_thread = threading.local()


class NotAllowed(PermissionError):
    """What sends tried what it may not. The message is a sentence."""


def may_connect(address: str, networks: Iterable[str]) -> bool:
    """Whether an IP address may be connected to. Anything that is none may not."""
    try:
        # A zone (fe80::1%eth0) is one of a link.
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    forms = [ip, *_meant_by(ip)]
    known = [ipaddress.ip_network(network, strict=False) for network in networks]
    if any(form in network for form in forms for network in known):
        return True
    return all(form.is_global and not form.is_multicast for form in forms)


def _meant_by(ip: Any) -> list[Any]:
    """The IPv4 addresses that an IPv6 address stands for."""
    if ip.version == 4:
        return []
    found = [ip.ipv4_mapped, ip.sixtofour]
    if ip in _NAT64:
        found.append(ipaddress.ip_address(ip.packed[-4:]))
    return [form for form in found if form is not None]


@contextmanager
def trusted() -> Iterator[None]:
    """For this thread, nothing is refused."""
    _thread.trusted = True
    try:
        yield
    finally:
        _thread.trusted = False


def guard_this_process(networks: Iterable[str]) -> None:
    """From now on, and for good. `networks`: those besides public addresses that may be connected to."""
    allowed = tuple(networks)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CONNECTING:
            if not getattr(_thread, "trusted", False):
                _check_connection(arguments[1], allowed)
        elif event in _RUNNING:
            raise NotAllowed("a notice runs no programs")
        elif event == "open":
            _check_file(*arguments)

    sys.addaudithook(hook)


def _check_connection(place: Any, allowed: tuple[str, ...]) -> None:
    host = place[0] if isinstance(place, tuple) else None
    if not isinstance(host, str) or not may_connect(host, allowed):
        raise NotAllowed(f"notices may not go to {host or place!r}: it is no public address")


def _check_file(path: Any, mode: Any, flags: Any) -> None:
    if isinstance(path, bytes):
        path = path.decode(errors="replace")
    if not isinstance(path, str):
        return  # a file that is open already
    if (isinstance(mode, str) and _WRITING & set(mode)) or not path.startswith(_READABLE) or "/../" in path:
        raise NotAllowed("a notice reads and writes no files")
