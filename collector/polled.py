"""What no program needs to watch because the kernel counts it anyway: streams read once a second.

A :class:`Polled` companion calls its reader in a thread of its own; what the reader yields is shipped with
the interval it is of.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable

from collector.clock import now_us
from collector.companion import Companion, Row

log = logging.getLogger("bpfleet.collector")
SECOND = 1.0


class Polled(Companion):
    """Ships the rows of ``read()`` each second until :meth:`stop`; the first call's are dropped."""

    def __init__(self, stream: str, read: Callable[[], Iterable[Row]]) -> None:
        super().__init__()
        self._stream, self._read = stream, read
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
        at_us, due = 0, time.monotonic()
        while not self._end.wait(max(due - time.monotonic(), 0)):
            due = max(due + SECOND, time.monotonic() - SECOND)
            try:
                rows = list(self._read())
            except OSError as error:
                if not self._failed:
                    log.warning("%s cannot be read: %s; trying again", self._stream, error)
                self._failed = True
                continue
            now = now_us()
            shared = {"ts": now, "interval_us": now - at_us}
            for row in rows if at_us else ():
                self.put(self._stream, row | shared)
            at_us, self._failed = now, False
