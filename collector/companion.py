"""What runs beside the probes, in threads of its own, and has something to ship now and then.

Desired state and its handlers, the balancer's health checks, samplers: each a :class:`Companion` in
``Agent.companions``. Their threads call :meth:`Companion.put`; the agent's loop wakes and ships.
"""

import os
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from numpy.typing import NDArray

from schemas.columns import Column
from schemas.declare import Stream

Row = dict[str, Any]
ROWS = 50_000  # rows, or batches, that wait for the agent


class Companion:
    """A part with rows of its own."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # readable when there is something to ship
        self._rows: deque[tuple[str, Row]] = deque(maxlen=ROWS)
        self._batches: deque[tuple[str, Mapping[str, Column], int]] = deque(maxlen=ROWS)

    def start(self) -> None:
        """Begin; called once the collector is up."""

    def stop(self) -> None:
        """End; what is left to ship is asked for once more afterwards."""

    def put(self, stream: str, row: Row) -> None:
        """Have one row shipped. From any thread."""
        self.put_all(stream, [row])

    def put_all(self, stream: str, rows: Iterable[Row]) -> None:
        """Have rows shipped, together. From any thread."""
        self.put_mixed((stream, row) for row in rows)

    def put_mixed(self, rows: Iterable[tuple[str, Row]]) -> None:
        """Have rows shipped, each with its stream. From any thread."""
        self._rows.extend(rows)
        self.wake()

    def put_columns(
        self, stream: str, columns: Mapping[str, Column], sample_rate: int = 1, *, at_once: bool = True
    ) -> None:
        """Have equally long columns shipped as they are: for what comes by the thousand. From any thread."""
        self._batches.append((stream, columns, sample_rate))
        if at_once:
            self.wake()

    def wake(self) -> None:
        """Have the agent ask what there is to ship. From any thread."""
        os.eventfd_write(self.fd, 1)

    def arrays(self) -> Iterable[tuple[Stream, NDArray[Any], NDArray[Any], int]]:
        """Keys and values of aggregates that are still to be decoded, and the µs in which they came to be."""
        return ()

    def rows(self) -> dict[str, list[Row]]:
        """The rows since the last call, by stream. From any thread."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        taken: dict[str, list[Row]] = {}
        while self._rows:
            stream, row = self._rows.popleft()
            taken.setdefault(stream, []).append(row)
        return taken

    def batches(self) -> list[tuple[str, Mapping[str, Column], int]]:
        """The columns since the last call: stream, columns, sample rate."""
        taken = []
        while self._batches:
            taken.append(self._batches.popleft())
        return taken
