"""Small images made on this machine, without a registry.

Examples, demo and tests need an image that is surely there, also where no registry can be reached. Debian's
static busybox is one file that holds a shell and two hundred commands, so a tar of it with one link per
command is an image: it is handed to the engine as `docker import` would, with the standard library alone.
An import of the same bytes twice would leave an untagged image behind, so one that is present is kept.

`pwm up` calls `ensure_hello`, tests call `ensure_busybox`.
"""

import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

BUSYBOX = "pwm-demo/busybox:latest"
HELLO = "pwm-demo/hello:latest"

# Oldest API that every supported engine speaks (Docker 20.10) and that newer ones still accept.
_API_VERSION = "v1.41"
# An import of 2 MB takes a fraction of a second; a busy disk may need much longer.
_ENGINE_TIMEOUT_S = 60.0

_PASSWD = b"root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/tmp:/bin/sh\n"
_GROUP = b"root:x:0:\nnogroup:x:65534:\n"
_DIRECTORIES = ("bin", "dev", "etc", "proc", "root", "sys", "tmp", "usr", "var")
# What the demo shows: a first line at once, some work with lines that arrive live, an end.
_HELLO_SCRIPT = b"""#!/bin/sh
# Prints LINES lines, one each DELAY seconds.
echo "Hello from PWM, this is $(hostname)"
i=1
while [ "$i" -le "${LINES:-5}" ]; do
    echo "step $i of ${LINES:-5}"
    sleep "${DELAY:-0.5}"
    i=$((i + 1))
done
echo "done"
"""


class ImageError(Exception):
    """The image could not be made; the message is a sentence that says what to do."""


def ensure_busybox(docker_host: str | None = None) -> str:
    """Makes `BUSYBOX` unless the engine has it; returns its reference."""
    return _ensure(BUSYBOX, docker_host, files={}, cmd=("sh",))


def ensure_hello(docker_host: str | None = None) -> str:
    """Makes `HELLO`, the image of `examples/hello.yaml`, unless the engine has it; returns its reference."""
    return _ensure(HELLO, docker_host, files={"bin/hello": _HELLO_SCRIPT}, cmd=("hello",))


def _ensure(reference: str, docker_host: str | None, *, files: Mapping[str, bytes], cmd: Sequence[str]) -> str:
    host = docker_host or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if not _present(host, reference):
        import_image(host, reference, layer=busybox_layer(files), cmd=cmd)
    return reference


def busybox_layer(files: Mapping[str, bytes] | None = None) -> bytes:
    """A tar with busybox, a link per command of it, and the given executable files (path → content)."""
    busybox = shutil.which("busybox", path="/bin:/usr/bin:/usr/local/bin")
    if busybox is None:
        raise ImageError("busybox is not installed; install it with: apt install busybox-static")
    program = Path(busybox).read_bytes()
    if _needs_interpreter(program):
        raise ImageError(f"{busybox} is not a static program; install one with: apt install busybox-static")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in _DIRECTORIES:
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.DIRTYPE
            entry.mode = 0o1777 if name == "tmp" else 0o755
            tar.addfile(entry)
        _add_file(tar, "bin/busybox", program, mode=0o755)
        for applet in applets:
            if applet != "busybox":
                entry = tarfile.TarInfo(f"bin/{applet}")
                entry.type = tarfile.SYMTYPE
                entry.linkname = "busybox"
                tar.addfile(entry)
        _add_file(tar, "etc/passwd", _PASSWD, mode=0o644)
        _add_file(tar, "etc/group", _GROUP, mode=0o644)
        for path, content in (files or {}).items():
            _add_file(tar, path, content, mode=0o755)
    return buffer.getvalue()


def import_image(docker_host: str, reference: str, *, layer: bytes, cmd: Sequence[str]) -> None:
    """Hands a layer to the engine as an image called `reference`."""
    repository, _, tag = reference.partition(":")
    query = [
        ("fromSrc", "-"),
        ("repo", repository),
        ("tag", tag or "latest"),
        ("changes", "ENV PATH=/bin"),
        ("changes", "CMD " + json.dumps(list(cmd))),
    ]
    status, answer = _request(
        docker_host, "POST", f"/images/create?{urlencode(query)}", body=layer, content_type="application/x-tar"
    )
    # The engine answers 200 before it works: what went wrong stands in the last line.
    if status != 200 or b'"error"' in answer:
        raise ImageError(f"the Docker engine could not import {reference}: {answer.decode(errors='replace').strip()}")


def _present(docker_host: str, reference: str) -> bool:
    status, _ = _request(docker_host, "GET", f"/images/{quote(reference)}/json")
    return status == 200


def _request(
    docker_host: str, method: str, path: str, *, body: bytes | None = None, content_type: str = "application/json"
) -> tuple[int, bytes]:
    connection = _connect(docker_host)
    try:
        connection.request(method, f"/{_API_VERSION}{path}", body=body, headers={"Content-Type": content_type})
        response = connection.getresponse()
        return response.status, response.read()
    except OSError as error:
        raise ImageError(f"the Docker engine at {docker_host} did not answer ({error}); is it running?") from error
    finally:
        connection.close()


def _connect(docker_host: str) -> http.client.HTTPConnection:
    address = urlsplit(docker_host)
    if address.scheme == "unix":
        return _UnixConnection(address.path)
    if address.scheme in ("tcp", "http") and address.hostname:
        return http.client.HTTPConnection(address.hostname, address.port or 2375, timeout=_ENGINE_TIMEOUT_S)
    raise ImageError(f"DOCKER_HOST is {docker_host!r}; use unix:///path or tcp://host:port")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_ENGINE_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_ENGINE_TIMEOUT_S)
        self.sock.connect(self._path)


def _add_file(tar: tarfile.TarFile, path: str, content: bytes, *, mode: int) -> None:
    entry = tarfile.TarInfo(path)
    entry.size = len(content)
    entry.mode = mode
    tar.addfile(entry, io.BytesIO(content))


def _needs_interpreter(program: bytes) -> bool:
    """Whether an ELF program names a dynamic loader, which the image would lack."""
    if program[:4] != b"\x7fELF" or program[4] != 2:
        return False
    little_endian = program[5] == 1

    def number(offset: int, size: int) -> int:
        return int.from_bytes(program[offset : offset + size], "little" if little_endian else "big")

    headers, size, count = number(32, 8), number(54, 2), number(56, 2)
    interpreter = 3  # PT_INTERP
    return any(number(headers + i * size, 4) == interpreter for i in range(count))
