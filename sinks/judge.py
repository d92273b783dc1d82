"""Is a message good, dead, or not yet to be told? Nobody but this decides, and only from what it is given."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from schemas import wire
from schemas.columns import InvalidBatch
from schemas.topics import stream_of
from schemas.wire import Batch, Envelope
from sinks import native
from sinks.writer import Table

# How long a message waits for its schema to arrive on the schemas topic: a collector publishes it before
# its first batch, but the two topics are read independently.
SCHEMA_SECONDS = 10.0
# The closed set of reasons why a message goes to the dead letters.
REASONS = {
    "unreadable": "not a whole batch of the schema that it names",
    "unknown_schema": "its schema is not on the schemas topic",
    "incompatible": "its schema does not fit the table",
    "wrong_topic": "its schema belongs to another topic",
    "out_of_range": "a time that no partition can hold, or more days than one batch may span",
    "rejected": "the server rejected its rows",
}
MAX_DAYS = 32  # of one message: a host's clock may jump, but no collector ships a month in one batch


@dataclass(frozen=True)
class Good:
    """Rows, and where they go."""

    batch: Batch
    table: Table
    schema: int


@dataclass(frozen=True)
class Dead:
    """For the dead letters, and why."""

    reason: str  # of REASONS
    detail: str


@dataclass(frozen=True)
class Refused:
    """A schema that has no place in its table."""

    detail: str


class Tables(Protocol):
    """What the judge must know of schemas and tables."""

    schemas: wire.Schemas

    def known(self, schema: int) -> bool:
        """Whether the schema has arrived, its table ready or not."""

    def heard(self) -> float:
        """When it was last certain that nothing on the schemas topic is unread (on the judge's clock)."""

    def of(self, schema: int) -> Table | Refused | None:
        """Where its rows go; None until that is settled."""


class Judge:
    """Verdicts on messages; remembers how long each unknown schema has been waited for."""

    def __init__(self, tables: Tables, clock: Callable[[], float] = time.monotonic) -> None:
        self._tables = tables
        self._clock = clock
        self._since: dict[int, float] = {}

    def __call__(self, topic: str, value: bytes | None) -> Good | Dead | None:
        """None: ask again later; bounded for an unknown schema, else until the store has answered."""
        try:
            schema = wire.schema_of(value or b"")
            if not self._tables.known(schema):
                return self._unknown(schema)
            table = self._tables.of(schema)
            if table is None:
                return None
            if isinstance(table, Refused):
                return Dead("incompatible", table.detail)
            if stream_of(topic) != table.stream:
                return Dead("wrong_topic", f"a batch of {table.stream} on {topic}")
            batch = self._tables.schemas.decode(value or b"")
            _check_envelope(batch.envelope)
            first, last = native.day_range(batch)
        except native.TimeOutOfRange as error:
            return Dead("out_of_range", str(error))
        except InvalidBatch as error:
            return Dead("unreadable", str(error))
        if last - first >= MAX_DAYS:
            return Dead("out_of_range", f"its rows span {last - first + 1} days")
        return Good(batch, table, schema)

    def _unknown(self, schema: int) -> Dead | None:
        """Dead only when the whole topic was read so much later: a slow reader is no reason."""
        since = self._since.setdefault(schema, self._clock())
        if self._tables.heard() - since < SCHEMA_SECONDS:
            return None
        return Dead("unknown_schema", f"schema {schema:016x} did not arrive in {SCHEMA_SECONDS:.0f} s")


def _check_envelope(envelope: Envelope) -> None:
    """Raises :class:`InvalidBatch` for numbers that no collector of ours writes."""
    if envelope.seq < 0 or not 0 <= envelope.sample_rate < 2**32 or len(envelope.boot) != 16:
        raise InvalidBatch("its envelope holds impossible numbers")
