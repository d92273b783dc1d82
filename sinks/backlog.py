"""How much a sink holds: past its share of memory it reads no more for a moment, then it pauses partitions.

A pause makes librdkafka throw away what it has fetched ahead, to be fetched once more: between all batches of
a busy partition it made a drain take half as long again. Reading nothing costs nothing, but makes everybody
wait: it is for the fraction of a second until an insert is done. What stands for longer (a store that is
away, a table in trouble) is paused, where it holds much.
"""

from collections.abc import Iterable

from sinks.partition import Partition

PATIENCE = 1.0  # seconds without reading, before partitions are paused
LEAST = 1 << 20  # bytes that a partition may hold, however many there are


class Backlog:
    """``budget``: bytes that all partitions may hold together; a single one may take half of it."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._most = budget // 2
        self._full_since: float | None = None

    @property
    def reading(self) -> bool:
        """Whether messages may be taken now."""
        return self._full_since is None

    def settle(self, partitions: Iterable[Partition], now: float) -> tuple[list[Partition], list[Partition]]:
        """The partitions to pause and those to resume now; their ``paused`` says so already."""
        partitions = list(partitions)
        held = sum(each.size for each in partitions)
        share = min(LEAST, self._most) if held > self._budget else self._most
        full = [each for each in partitions if not each.paused and each.size > share and not each.recovering]
        drained = [each for each in partitions if each.paused and each.size <= share // 2]
        if full and self._full_since is None:
            self._full_since = now
        late = bool(full) and self._full_since is not None and now - self._full_since >= PATIENCE
        if late or not full:
            self._full_since = None
        for each in full if late else []:
            each.paused = True
        for each in drained:
            each.paused = False
        return full if late else [], drained
