"""What no program needs to watch because the kernel counts it anyway: streams read every few seconds.

A :class:`Polled` companion calls its reader in a thread of its own; what the reader yields is shipped with
the interval it is of. A host on which a read costs much is read less often.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable

from collector.clock import now_us
from collector.companion import Companion, Row

log = logging.getLogger("bpfleet.collector")
SECOND = 1.0
SHARE = 0.003  # of one CPU, that a reader takes at most
SLOWEST_S = 5.0  # but it is called at least so often


class Polled(Companion):
    """Ships the rows of ``read()`` every ``seconds`` until :meth:`stop`; the first call's are dropped.

    ``rates``: columns that are read as so much a second; a row has what that makes in its interval.
    """

    def __init__(
        self, stream: str, read: Callable[[], Iterable[Row]], seconds: float = SECOND, *,
        rates: Iterable[str] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self._stream, self._read, self._seconds, self._rates = stream, read, seconds, tuple(rates)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=stream, daemon=True)
        self._failed = False

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Read no more."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(2 * SECOND)

    def _run(self) -> None:
        at_us, due = 0, time.monotonic() // self._seconds * self._seconds  # with all that is as frequent
        while not self._end.wait(max(due - time.monotonic(), 0)):
            begun = time.thread_time()
            try:
                rows = list(self._read())
            except OSError as error:
                if not self._failed:
                    log.warning("%s cannot be read: %s; trying again", self._stream, error)
                self._failed = True
                rows, now = [], at_us
            else:
                now, self._failed = now_us(), False
            if at_us and rows:
                self._ship(rows, now, now - at_us)
            at_us = now
            pause = min((time.thread_time() - begun) / SHARE, SLOWEST_S)
            due = max(due + max(self._seconds, pause), time.monotonic())

    def _ship(self, rows: list[Row], now: int, interval_us: int) -> None:
        for row in rows:
            row |= {"ts": now, "interval_us": interval_us}
            row |= {name: row[name] * interval_us // 1_000_000 for name in self._rates}
        self.put_all(self._stream, rows)
