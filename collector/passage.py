"""Whether a batch that was about to be shipped arrives, also when a killed process was to ship it.

    passage = Passage(Way.of(agent, "lb_stats"))
    passage.start()                # the numbers of batches are known
    number = passage.send(rows)    # kept in a file, with what the batch says, before the rows are put
    passage.arrives(number)        # True, False, or None: not known yet

Of rows that follow from totals no other is made until that is known: docs/decisions/0053.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collector.agent import Agent


@dataclass(frozen=True)
class Way:
    """What the agent knows of batches of one stream."""

    next_number: Callable[[], int]
    fate: Callable[[int], bool | None]  # of an earlier process's batch: arrives, or not; None: not known yet
    numbered: Callable[[], int]  # rows that got a number since the start

    @classmethod
    def of(cls, agent: "Agent", stream: str) -> "Way":
        """Of an agent's own."""

        def numbered() -> int:
            shipped = agent.output.streams.get(stream)
            return shipped.shipped if shipped else 0

        return cls(partial(agent.next_number, stream), partial(agent.fate, stream), numbered)


NOBODY = Way(lambda: 0, lambda number: True, lambda: 2**62)  # who takes rows without numbering batches


class Passage:
    """See the module. For one thread at a time, and one batch at a time."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self._first = 0  # the first number of this process
        self._put = 0  # rows
        self.on_the_way = False

    def start(self) -> None:
        """The numbers of batches are known."""
        self._first = self._way.next_number()

    def send(self, rows: int) -> int:
        """So many rows are about to be put; the number that their batch will have."""
        self._put += rows
        self.on_the_way = True
        return self._way.next_number()

    def arrives(self, number: int) -> bool | None:
        """Whether that batch has its number (then it arrives, or is declared lost); None: not known yet."""
        if not self.on_the_way:
            return number < self._first and self._way.fate(number)
        self.on_the_way = self._way.numbered() < self._put
        return None if self.on_the_way else True
