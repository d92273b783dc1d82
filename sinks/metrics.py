"""What the sink counts, for Prometheus on loopback."""

import time
from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from schemas.columns import Dictionary
from schemas.simulated import is_simulated
from schemas.wire import Batch

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """One sink's counters, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.messages = self._counter("messages", "Messages taken from Kafka", "topic")
        self.rows = self._counter("rows", "Rows inserted", "stream")
        self.bytes = self._counter("insert_bytes", "Bytes of Native blocks sent", "stream")
        self.inserts = self._counter("inserts", "Inserts acknowledged", "stream")
        self.retries = self._counter("insert_retries", "Inserts that failed for the server's reasons")
        self.dead = self._counter("dead_letters", "Messages to the dead letters", "reason")
        self.expired = self._counter("expired_messages", "Gone by retention before they were read", "topic")
        self.rebalances = self._counter("rebalances", "Partitions given and taken", "kind")
        self.commits = self._counter("commits", "Commits by result", "result")
        self.lag = Gauge(
            "bpfleet_sink_lag_messages", "Messages not in the store yet", ["topic", "partition"],
            registry=self.registry,
        )  # fmt: skip
        self.held = Gauge("bpfleet_sink_held_bytes", "Bytes of messages in memory", registry=self.registry)
        self.paused = Gauge("bpfleet_sink_paused_partitions", "Paused for memory", registry=self.registry)
        self.latency = self._histogram("insert_seconds", "From sending a block to its acknowledgement")
        self.delay = self._histogram("delay_seconds", "From the newest event of a batch to its row")

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"bpfleet_sink_{name}", help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str) -> Histogram:
        return Histogram(f"bpfleet_sink_{name}", help_text, buckets=SECONDS, registry=self.registry)

    def serve(self, port: int) -> Any:
        """Answer on loopback; returns what :meth:`stop` takes. Raises OSError when the port is taken."""
        return start_http_server(port, "127.0.0.1", self.registry)

    def inserted(self, stream: str, batches: Sequence[Batch], sent: int, seconds: float) -> None:
        """One insert was acknowledged."""
        self.rows.labels(stream).inc(sum(each.rows for each in batches))
        self.bytes.labels(stream).inc(sent)
        self.inserts.labels(stream).inc()
        self.latency.observe(seconds)
        newest = batches[-1].columns["ts"]
        assert not isinstance(newest, Dictionary)
        if not is_simulated(batches[-1].envelope.boot):  # its rows are of a past that was made just now
            self.delay.observe(max(0.0, time.time() - int(newest[-1]) / 1e6))
