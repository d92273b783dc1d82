"""Batches as JSON lines on standard output, instead of Kafka: for people and for `bpfleet check`."""

import json
import sys
from collections.abc import Mapping
from typing import TextIO

from collector.output import Shipped
from collector.sequence import boot_id
from schemas.columns import Column
from schemas.declare import Stream
from schemas.rows import json_rows
from schemas.wire import Batch, Envelope


class Printer:
    """A :class:`collector.output.Output`; one Python statement a row, so not for busy hosts."""

    backlog = False
    is_up = True

    def __init__(self, host: str, out: TextIO | None = None) -> None:
        self.streams: dict[str, Shipped] = {}
        self._host, self._boot, self._out = host, boot_id(), out or sys.stdout

    def ship(self, stream: Stream, columns: Mapping[str, Column], sample_rate: int = 1) -> list[int]:
        """Print each row; the table's name comes first."""
        count = self.streams.setdefault(stream.name, Shipped())
        rows = len(columns[stream.fields[0].name])
        envelope = Envelope(self._host, self._boot, count.batches, sample_rate)
        for row in json_rows(stream, Batch(stream.name, envelope, rows, dict(columns))):
            self._out.write(json.dumps({"table": stream.name, **row}) + "\n")
        self._out.flush()
        count.batches += 1
        count.shipped += rows
        return [envelope.seq]

    def pump(self) -> None:
        """Nothing waits."""

    def spooled(self) -> tuple[int, int]:
        """Nothing is kept."""
        return 0, 0

    def close(self, seconds: float) -> int:
        """Nothing is left."""
        return 0
