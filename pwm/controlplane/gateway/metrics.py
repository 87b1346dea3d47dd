"""What the gateway counts: calls by rpc and outcome, how long they took, streams that are open."""

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# Seconds. A read from the view takes 0.1 ms, a write two round trips to etcd, `why` or `verify` may take seconds.
LATENCY_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class RpcMetrics:
    """The time series of one rpc, looked up once: labels cost more than the counting."""

    def __init__(self, name: str, *, calls: Counter, latency: Histogram, streams: Gauge) -> None:
        self._name = name
        self._calls = calls
        self._by_code: dict[grpc.StatusCode, Counter] = {}
        self.latency = latency.labels(rpc=name)
        self.open_streams = streams.labels(rpc=name)

    def count(self, code: grpc.StatusCode) -> None:
        counter = self._by_code.get(code)
        if counter is None:
            counter = self._by_code[code] = self._calls.labels(rpc=self._name, code=code.name)
        counter.inc()


class Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._calls = Counter("pwm_gateway_calls", "Calls of the API", ["rpc", "code"], registry=registry)
        self._latency = Histogram(
            "pwm_gateway_call_seconds",
            "Time to answer a unary call",
            ["rpc"],
            registry=registry,
            buckets=LATENCY_BUCKETS_S,
        )
        self._streams = Gauge("pwm_gateway_open_streams", "Streams that are open", ["rpc"], registry=registry)

    def rpc(self, name: str) -> RpcMetrics:
        return RpcMetrics(name, calls=self._calls, latency=self._latency, streams=self._streams)
