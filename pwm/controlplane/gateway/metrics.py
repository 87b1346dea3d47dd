"""What the gateway counts: calls by rpc and outcome, how long they took, streams that are open.

The counting is a few additions to plain numbers, for it happens at every request and the gateway runs in one thread;
prometheus-client's own counters take locks and cost 5 µs a call. They become Prometheus' shapes when somebody asks.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

# Seconds. A read from the view takes 0.1 ms, a write two round trips to etcd, `why` or `verify` may take seconds.
LATENCY_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class RpcMetrics:
    """The numbers of one rpc."""

    def __init__(self) -> None:
        self.outcomes: Counter[grpc.StatusCode] = Counter()
        self.open_streams = 0
        self.seconds = 0.0
        self.buckets = [0] * (len(LATENCY_BUCKETS_S) + 1)

    def count(self, code: grpc.StatusCode) -> None:
        self.outcomes[code] += 1

    def took(self, seconds: float) -> None:
        """A unary call was answered."""
        self.seconds += seconds
        self.buckets[bisect_left(LATENCY_BUCKETS_S, seconds)] += 1

    @contextmanager
    def streaming(self) -> Iterator[None]:
        self.open_streams += 1
        try:
            yield
        finally:
            self.open_streams -= 1


class Metrics(Collector):
    """The numbers of all rpcs, as Prometheus reads them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._rpcs: dict[str, RpcMetrics] = {}
        registry.register(self)

    def rpc(self, name: str) -> RpcMetrics:
        return self._rpcs.setdefault(name, RpcMetrics())

    def collect(self) -> Iterator[Metric]:
        calls = CounterMetricFamily("pwm_gateway_calls", "Calls of the API", labels=["rpc", "code"])
        latency = HistogramMetricFamily("pwm_gateway_call_seconds", "Time to answer a unary call", labels=["rpc"])
        streams = GaugeMetricFamily("pwm_gateway_open_streams", "Streams that are open", labels=["rpc"])
        for name, numbers in self._rpcs.items():
            for code, count in numbers.outcomes.items():
                calls.add_metric([name, code.name], count)
            streams.add_metric([name], numbers.open_streams)
            if any(numbers.buckets):
                latency.add_metric([name], _cumulative(numbers.buckets), numbers.seconds)
        yield from (calls, latency, streams)


def _cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    """Each bucket with how many calls took so long or less."""
    found, total = [], 0
    for bound, count in zip((*map(str, LATENCY_BUCKETS_S), "+Inf"), buckets, strict=True):
        total += count
        found.append((bound, float(total)))
    return found
