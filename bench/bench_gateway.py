"""How fast the gateway answers: `GET` of one resource against a bare aiohttp handler.

The bare handler returns constant bytes of the same size and does nothing else: no token to check, no message to read,
build, or write. So the ratio is what all of PWM's work on a request costs. Both servers run in processes of their own
on uvloop, the same load generator (keep-alive connections, one request in flight on each) drives them in turns, and
each pair of neighbouring runs gives one ratio. Runs are short and many, so that what else the machine does falls on
both. The same ratio in processor time of the server, which other processes touch less, is shown beside it. Raw logs
are read through the same gateway at full speed.

    python bench/bench_gateway.py [--rounds 30] [--seconds 0.5] [--connections 16]
"""

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web
from prometheus_client import CollectorRegistry

from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.access_pb2 import Access
from pwm.api.v1.agent_pb2 import STDOUT
from pwm.api.v1.resource_pb2 import Resource
from pwm.api.v1.services_pb2_grpc import ResourceServiceServicer, WorkloadServiceServicer
from pwm.api.v1.workload_pb2 import Workload, WorkloadStatus
from pwm.controlplane.context import CallContext
from pwm.controlplane.gateway import Gateway, HealthReport

RESULTS = Path(__file__).parent / "results" / "gateway.json"
TOKEN = "pwm_benchmark"
PATH = "/v1/resources/Workload/train-7?group=vision"
TARGET_RATIO = 0.5
LOG_CHUNK_BYTES = 64 * 2**10
LOG_BYTES = 200 * 10**6
TARGET_LOG_MB_S = 50


def workload(number: int) -> Workload:
    """One like those that users have: 700 bytes of JSON."""
    made = Workload(api_version="v1", kind="Workload")
    made.metadata.name = f"train-{number}"
    made.metadata.group = "vision"
    made.metadata.uid = "01hzy3v9k2m4n6p8q0r2s4t6v8"
    made.metadata.labels["team"] = "imaging"
    made.metadata.created_at.GetCurrentTime()
    made.metadata.updated_at.GetCurrentTime()
    made.metadata.version = 12
    made.spec.driver = "pwm.docker"
    made.spec.replica.count = 2
    made.spec.selectors.gpu.product_name.append("A100")
    made.spec.selectors.gpu.count = 4
    made.spec.image.image = "pytorch/pytorch"
    made.spec.config.cmd.extend(["python", "main.py", "--epochs", "90"])
    made.spec.config.env["SEED"] = "1"
    made.spec.config.env["DATA"] = "/data/imagenet"
    made.spec.config.memory = "32GiB"
    made.status.desired = WorkloadStatus.RUN
    made.status.phase = WorkloadStatus.RUNNING
    made.status.since.GetCurrentTime()
    made.status.replicas = made.status.running = 2
    made.status.nodes.extend(["gpu01", "gpu02"])
    return made


class Caller:
    name = "ann"
    token_id = "0123456789ab"
    ending = ""


class Resources(ResourceServiceServicer):
    """Answers from a dictionary, as the real service answers from the view."""

    def __init__(self) -> None:
        self._workloads = {("vision", f"train-{number}"): workload(number) for number in range(1_000)}

    async def Get(self, request: Any, context: Any) -> api.GetResponse:
        found = self._workloads[request.group, request.name]
        return api.GetResponse(resource=Resource(workload=found), revision=4711)


class Workloads(WorkloadServiceServicer):
    async def Logs(self, request: Any, context: CallContext) -> AsyncIterator[api.LogsResponse]:
        chunk = b"x" * LOG_CHUNK_BYTES
        for offset in range(LOG_CHUNK_BYTES, LOG_BYTES, LOG_CHUNK_BYTES):
            yield api.LogsResponse(stream=STDOUT, data=chunk, container="train.0.1", next_offset=offset)


async def authenticate(token: str | None, peer: str) -> Caller:
    assert hashlib.sha256((token or "").encode()).hexdigest() == DIGEST
    return Caller()


DIGEST = hashlib.sha256(TOKEN.encode()).hexdigest()


def authorize(access: Access, method: str) -> Callable[[Caller, Any], None]:
    def check(principal: Caller, request: Any) -> None:
        assert principal.name == "ann"
        assert access.verb

    return check


async def start_gateway(body: bytes) -> int:
    by_name = api.DESCRIPTOR.services_by_name
    gateway = Gateway(
        services=[(by_name["ResourceService"], Resources()), (by_name["WorkloadService"], Workloads())],
        authenticate=authenticate,
        authorize=authorize,
        health=lambda: HealthReport(ready=True),
        registry=CollectorRegistry(),
        title="PWM",
        version="0",
    )
    return await gateway.start("127.0.0.1", 0)


async def start_bare(body: bytes) -> int:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_get("/v1/resources/{kind}/{name}", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port: int = runner.addresses[0][1]
    return port


def serve(start: Callable[[bytes], Awaitable[int]], body: bytes, pipe: Connection) -> None:
    async def main() -> None:
        pipe.send(await start(body))
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)

    uvloop.run(main())


class Server:
    """A server in a process of its own."""

    def __init__(self, start: Callable[[bytes], Awaitable[int]], body: bytes = b"") -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=serve, args=(start, body, theirs))
        self._process.start()
        self.port: int = self._pipe.recv()

    def cpu_s(self) -> float:
        """Processor time that the server has used so far."""
        assert self._process.pid is not None
        # As clock_getcpuclockid(3) names its clock: /proc/PID/stat only counts hundredths of a second.
        return time.clock_gettime(~self._process.pid << 3 | 2)

    def stop(self) -> None:
        self._pipe.send(None)
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()


def request_of(path: str) -> bytes:
    head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\nAccept: application/json"
    return f"{head}\r\n\r\n".encode()


class Client(asyncio.Protocol):
    """One keep-alive connection: sends a request, reads the answer, sends the next."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.answers = 0
        self.going = True
        self._buffer = b""
        self._expected = 0
        self.body = b""
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._expected:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end].lower()
            assert head.startswith(b"http/1.1 200"), self._buffer
            length = head.index(b"content-length:") + len(b"content-length:")
            self._expected = end + 4 + int(head[length:].split(b"\r\n", 1)[0])
        if len(self._buffer) < self._expected:
            return
        assert len(self._buffer) == self._expected
        self.body = self._buffer[self._buffer.index(b"\r\n\r\n") + 4 :]
        self._buffer, self._expected = b"", 0
        self.answers += 1
        if self.going:
            self._transport.write(self._request)
        else:
            self._transport.close()


async def load(server: Server, *, connections: int, seconds: float, path: str = PATH) -> tuple[float, float, bytes]:
    """Requests per second, requests per second of the server's processor time, and the last body."""
    loop = asyncio.get_running_loop()
    begin = partial(Client, request_of(path))
    clients = [(await loop.create_connection(begin, "127.0.0.1", server.port))[1] for _ in range(connections)]
    started, cpu, before = time.perf_counter(), server.cpu_s(), sum(client.answers for client in clients)
    await asyncio.sleep(seconds)
    answers = sum(client.answers for client in clients) - before
    elapsed, cpu = time.perf_counter() - started, server.cpu_s() - cpu
    for client in clients:
        client.going = False
    return answers / elapsed, answers / max(cpu, 0.01), clients[0].body


async def log_rate(port: int) -> float:
    """Megabytes per second of a raw log stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    head = f"GET /v1/workloads/train/logs?group=vision HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    started, received = time.perf_counter(), 0
    writer.write(f"{head}Accept: application/vnd.pwm.frames\r\nConnection: close\r\n\r\n".encode())
    while data := await reader.read(2**20):
        received += len(data)
    writer.close()
    assert received > LOG_BYTES * 0.99
    return received / 1e6 / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    gateway = Server(start_gateway)
    try:
        _, _, body = uvloop.run(load(gateway, connections=1, seconds=0.3))
        bare = Server(start_bare, body)
        try:
            report(options, gateway, bare, len(body))
        finally:
            bare.stop()
    finally:
        gateway.stop()


def report(options: argparse.Namespace, gateway: Server, bare: Server, body_bytes: int) -> None:
    def run(server: Server) -> tuple[float, float]:
        return uvloop.run(load(server, connections=options.connections, seconds=options.seconds))[:2]

    mine, theirs = [], []
    for number in range(options.rounds):
        # Each goes first in every second pair.
        for server in (gateway, bare) if number % 2 else (bare, gateway):
            (mine if server is gateway else theirs).append(run(server))
    ratios = sorted(a / b for (a, _), (b, _) in zip(mine, theirs, strict=True))
    cpu_ratios = [a / b for (_, a), (_, b) in zip(mine, theirs, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    logs = [uvloop.run(log_rate(gateway.port)) for _ in range(3)]
    result = {
        "what": "GET of one resource, gateway against a bare aiohttp handler",
        "gateway_requests_s": round(statistics.median(rate for rate, _ in mine)),
        "bare_requests_s": round(statistics.median(rate for rate, _ in theirs)),
        "ratio": round(median, 3),
        "ratio_quartiles": [round(low, 3), round(high, 3)],
        "ratio_cpu": round(statistics.median(cpu_ratios), 3),
        "target_ratio": TARGET_RATIO,
        "raw_log_mb_s": round(statistics.median(logs)),
        "target_raw_log_mb_s": TARGET_LOG_MB_S,
        "body_bytes": body_bytes,
        "rounds": options.rounds,
        "connections": options.connections,
        "python": platform.python_version(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(f"gateway   {result['gateway_requests_s']:>8,} requests/s")
    print(f"bare      {result['bare_requests_s']:>8,} requests/s")
    print(f"ratio     {median:8.2f}  quartiles {low:.2f}-{high:.2f}, target >= {TARGET_RATIO}")
    print(f"by CPU    {result['ratio_cpu']:8.2f}")
    print(f"raw logs  {result['raw_log_mb_s']:>8,} MB/s, target >= {TARGET_LOG_MB_S}")


if __name__ == "__main__":
    main()
