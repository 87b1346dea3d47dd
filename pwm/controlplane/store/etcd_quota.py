"""Asking a member of etcd for its space quota.

Since 3.6 a member tells it with its status. Older ones tell it in their metrics only, which they serve as text
on the same port as everything else. It changes only when a member is restarted with another one, so an answer
is good for a while; a member that does not say is asked again each time.
"""

import asyncio
import contextlib
import ssl

ASKED_AGAIN_S = 300.0
TIMEOUT_S = 1.0
ANSWER_LIMIT_BYTES = 4 * 1024 * 1024
_NAME = b"\netcd_server_quota_backend_bytes "


class Quotas:
    """Call it with an address, HOST:PORT; the answer is in bytes, 0 when it is not known."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._known: dict[str, tuple[int, float]] = {}

    async def __call__(self, address: str) -> int:
        now = asyncio.get_running_loop().time()
        quota_bytes, asked_at = self._known.get(address, (0, 0.0))
        if not quota_bytes or now - asked_at > ASKED_AGAIN_S:
            quota_bytes = await _ask(address, self._tls)
            self._known[address] = quota_bytes, now
        return quota_bytes


async def _ask(address: str, tls: ssl.SSLContext | None) -> int:
    host, _, port = address.rpartition(":")
    answer = b""
    with contextlib.suppress(OSError, TimeoutError, ValueError):
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=tls)
            try:
                writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
                while (part := await reader.read(1 << 16)) and len(answer) < ANSWER_LIMIT_BYTES:
                    answer += part
            finally:
                writer.close()
        _, found, rest = answer.partition(_NAME)
        return int(float(rest.split(b"\n", 1)[0])) if found else 0
    return 0
