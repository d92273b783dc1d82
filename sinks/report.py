"""What the sink says of itself, as rows of ``sink_health``.

They go straight into the store and not through Kafka: the row that tells how far behind the sink is must not
wait behind all that it is behind with. While the store is away none are written, and that is what the alert
«Sink behind» takes for a fault, too.
"""

import contextlib
import logging
import os
import threading
import time
import uuid
from typing import Any

from schemas import declare, rows, wire
from schemas.config import Config
from schemas.errors import BpfleetError
from sinks import tables
from sinks.metrics import Metrics
from sinks.writer import Rejected, ServerTrouble, Writer

INTERVAL = 10.0  # seconds
STREAM = "sink_health"
log = logging.getLogger("bpfleet.sink")
# column → the counter whose growth it is
COUNTED = {
    "messages": "bpfleet_sink_messages_total",
    "inserted": "bpfleet_sink_rows_total",
    "inserts": "bpfleet_sink_inserts_total",
    "retries": "bpfleet_sink_insert_retries_total",
    "dead": "bpfleet_sink_dead_letters_total",
    "expired": "bpfleet_sink_expired_messages_total",
}
MOMENTARY = {"lag": "bpfleet_sink_lag_messages", "held_bytes": "bpfleet_sink_held_bytes"}
SUMMED = {"insert_us": "bpfleet_sink_insert_seconds_sum", "delay_us": "bpfleet_sink_delay_seconds_sum"}


class Report:
    """A thread that writes a row each interval, from the metrics there are; it ends with the process."""

    def __init__(self, config: Config, metrics: Metrics) -> None:
        self._config, self._metrics = config, metrics
        self._session = uuid.uuid4().bytes
        self._name = f"{config.sink.group} {os.getpid()}"
        self._before = self._sums()
        self._since = time.monotonic()

    def start(self) -> None:
        """Begin; touches no server before the first interval is over."""
        threading.Thread(target=self._run, name="report", daemon=True).start()

    def _run(self) -> None:
        number = 0
        writer: Writer | None = None
        while True:
            time.sleep(INTERVAL)
            row = self.row()
            try:
                writer = writer or Writer(self._config.clickhouse)
                self._write(writer, row, number)
            except (BpfleetError, ServerTrouble, Rejected) as error:
                log.debug("no row of sink_health: %s", error)
                if writer:
                    with contextlib.suppress(OSError):
                        writer.close()
                writer = None
            number += 1

    def _write(self, writer: Writer, row: dict[str, Any], number: int) -> None:
        stream = declare.streams()[STREAM]
        table = tables.make(stream, self._config.clickhouse, writer)
        envelope = wire.Envelope(self._config.host, self._session, number)
        batch = wire.Batch(STREAM, envelope, 1, rows.columns(stream, [row]))
        writer.insert(table, [batch], f"{STREAM}:{self._session.hex()}:{number}")

    def row(self) -> dict[str, Any]:
        """What has happened since the last row."""
        now, sums = time.monotonic(), self._sums()
        grown = {name: sums[name] - self._before[name] for name in sums}
        made: dict[str, Any] = {
            "ts": time.time_ns() // 1000,
            "interval_us": int((now - self._since) * 1e6),
            "sink": self._name,
        }
        made |= {column: int(grown[name]) for column, name in COUNTED.items()}
        made |= {column: int(sums[name]) for column, name in MOMENTARY.items()}
        made["insert_us"] = int(grown[SUMMED["insert_us"]] * 1e6)
        made["delay_us"] = int(grown[SUMMED["delay_us"]] * 1e6 / max(made["inserts"], 1))
        self._before, self._since = sums, now
        return made

    def _sums(self) -> dict[str, float]:
        """Every sample of the registry by name, summed over its labels."""
        wanted = {*COUNTED.values(), *MOMENTARY.values(), *SUMMED.values()}
        sums = dict.fromkeys(wanted, 0.0)
        for family in self._metrics.registry.collect():
            for sample in family.samples:
                if sample.name in wanted:
                    sums[sample.name] += sample.value
        return sums
