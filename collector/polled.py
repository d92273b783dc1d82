"""What no program needs to watch because the kernel counts it anyway: streams read every few seconds.

:class:`Polled` calls all its readers in one thread, those that are due at the same moment together; what they
yield is shipped with the interval it is of. A host on which a read costs much is read less often.
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


class Reader:
    """Rows of ``stream``, by ``read()`` every ``seconds``; the first call's are dropped.

    ``rates``: columns that are read as so much a second; a row has what that makes in its interval.
    """

    def __init__(
        self, stream: str, read: Callable[[], Iterable[Row]], seconds: float = SECOND, *,
        rates: Iterable[str] = (),
    ) -> None:  # fmt: skip
        self.stream, self._read, self._seconds, self._rates = stream, read, seconds, tuple(rates)
        self.due = time.monotonic() // seconds * seconds  # with all that is as frequent
        self._at_us = 0
        self._failed = False

    def rows(self) -> list[Row]:
        """What is to be shipped; then the next time is set."""
        begun, made = time.thread_time(), list[Row]()
        try:
            made = list(self._read())
        except OSError as error:
            if not self._failed:
                log.warning("%s cannot be read: %s; trying again", self.stream, error)
            self._failed = True
        else:
            self._failed = False
            made = self._finished(made)
        pause = min((time.thread_time() - begun) / SHARE, SLOWEST_S)
        self.due = max(self.due + max(self._seconds, pause), time.monotonic())
        return made

    def _finished(self, rows: list[Row]) -> list[Row]:
        before, self._at_us = self._at_us, now_us()
        if not before:
            return []
        interval = self._at_us - before
        for row in rows:
            row |= {"ts": self._at_us, "interval_us": interval}
            row |= {name: row[name] * interval // 1_000_000 for name in self._rates}
        return rows


class Polled(Companion):
    """Ships what the readers yield until :meth:`stop`."""

    def __init__(self, *readers: Reader) -> None:
        super().__init__()
        self._readers = readers
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="polled", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Read no more."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(2 * SECOND)

    def _run(self) -> None:
        while not self._end.wait(max(min(each.due for each in self._readers) - time.monotonic(), 0)):
            now = time.monotonic()
            made = [(each.stream, row) for each in self._readers if now >= each.due for row in each.rows()]
            if made:
                self.put_mixed(made)
