"""`/healthz`, `/readyz` and `/metrics` of an agent, for whoever watches over it.

Alive means that the event loop answers. Ready means that a controller has a session with this agent and that
its engines answer: a machine's own monitoring may well want to know before the control plane does.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pwm.nodeagent.config import ConfigError
from pwm.nodeagent.journal import Journal
from pwm.nodeagent.session import Sessions
from pwm.nodeagent.supervisor import Supervisor


class Health(Collector):
    def __init__(self, *, supervisor: Supervisor, sessions: Sessions, journal: Journal) -> None:
        self._supervisor = supervisor
        self._sessions = sessions
        self._journal = journal
        self._registry = CollectorRegistry()
        self._registry.register(self)

    @asynccontextmanager
    async def serving(self, address: str) -> AsyncIterator[None]:
        """Answer at HOST:PORT for as long as the block lasts; an empty address serves nothing."""
        if not address:
            yield
            return
        app = web.Application()
        app.add_routes(
            [web.get("/healthz", self._alive), web.get("/readyz", self._ready), web.get("/metrics", self._metrics)]
        )
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        host, _, port = address.rpartition(":")
        try:
            await web.TCPSite(runner, host.strip("[]"), int(port)).start()
        except OSError as error:
            await runner.cleanup()
            raise ConfigError(f"The agent cannot listen at {address}: {error.strerror}") from error
        try:
            yield
        finally:
            await runner.cleanup()

    async def _alive(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _ready(self, request: web.Request) -> web.Response:
        missing = [f"{info.name}: {info.message}" for info in self._supervisor.drivers() if not info.ready]
        if not self._sessions.connected_to:
            missing.append("no controller has a session with this agent")
        return web.Response(text="\n".join(missing or ["ok"]) + "\n", status=503 if missing else 200)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), content_type="text/plain", charset="utf-8")

    def collect(self) -> Iterable[Metric]:
        running = self._supervisor.running_uids()
        containers = GaugeMetricFamily(
            "pwm_agent_containers_running", "Containers that run on this node.", labels=["driver"]
        )
        ready = GaugeMetricFamily("pwm_agent_driver_ready", "Whether the driver's engine answers.", labels=["driver"])
        for info in self._supervisor.drivers():
            containers.add_metric([info.name], len(running.get(info.name, ())))
            ready.add_metric([info.name], info.ready)
        yield containers
        yield ready
        yield GaugeMetricFamily(
            "pwm_agent_reports_waiting",
            "Reports that no controller has acknowledged.",
            value=sum(1 for _ in self._journal.pending(after=0)),
        )
        yield GaugeMetricFamily(
            "pwm_agent_connected",
            "Whether a controller has a session with this agent.",
            value=bool(self._sessions.connected_to),
        )
