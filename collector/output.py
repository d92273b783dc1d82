"""Where columns go: to Kafka (collector.ship) or to standard output (collector.printer)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from schemas.columns import Column
from schemas.declare import Stream


@dataclass
class Shipped:
    """What became of one stream's events since the start; numbers only rise."""

    batches: int = 0
    shipped: int = 0  # rows in batches that got a number
    bytes: int = 0
    delivered: int = 0  # rows that Kafka has
    shed: int = 0  # rows
    refused: int = 0  # rows
    invalid: int = 0  # events that could not be decoded


class Output(Protocol):
    """Where columns go."""

    streams: dict[str, Shipped]

    def ship(self, stream: Stream, columns: Mapping[str, Column], sample_rate: int = 1) -> list[int]:
        """Take equally long columns; the numbers of the batches they became."""

    def pump(self) -> None:
        """Do what is waiting; returns at once."""

    @property
    def backlog(self) -> bool:
        """Whether :meth:`pump` should be called again soon."""

    @property
    def is_up(self) -> bool:
        """Whether what is shipped now arrives now."""

    def spooled(self) -> tuple[int, int]:
        """Bytes and batches on disk."""

    def close(self, seconds: float) -> int:
        """Finish within that time; how many batches are left unanswered."""
