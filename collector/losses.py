"""What will never arrive, kept on disk until `collector_health` has said so in Kafka.

A loss is a range of batch numbers of one stream and boot, with a reason of a closed set. One whose fate is
still open (a kill fell between sending and the answer) waits until Kafka was asked: collector.recovery.
A declaration that is itself in doubt is made again, so SQL may see a range twice and never too rarely.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path


class Reason(StrEnum):
    """Why batches are lost. (Events lost before they had a number are counted, not listed.)"""

    KILLED = "killed"  # the collector died between numbering and Kafka's answer
    SHED = "shed"  # the spool was at its bound, or its disk full
    REFUSED = "refused"  # Kafka will not have it: too large, not authorised
    BROKEN = "broken"  # the producer failed for good, or the spool was damaged


@dataclass(frozen=True)
class Loss:
    """Batches ``first`` to ``last``, both included, of a stream."""

    reason: Reason
    stream: str
    boot: str  # hexadecimal
    first: int
    last: int
    events: int  # rows in them, as far as known
    at_us: int
    open: bool = False  # Kafka may have them
    partition: int = -1  # where to look: behind this offset
    offset: int = -1
    since_us: int = 0  # or, without one, behind this time

    def joins(self, other: "Loss") -> bool:
        """Whether the other continues this one."""
        same = (self.reason, self.stream, self.boot, self.open) == (
            other.reason, other.stream, other.boot, other.open,
        )  # fmt: skip
        return same and self.last + 1 == other.first


def ranges(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Rising numbers as (first, last) of each unbroken run."""
    first = last = None
    for number in numbers:
        if last is not None and first is not None and number != last + 1:
            yield first, last
            first = None
        first = number if first is None else first
        last = number
    if first is not None and last is not None:
        yield first, last


class Losses:
    """The journal. Written whole at each change: it is small, as neighbours join."""

    def __init__(self, file: Path) -> None:
        """Read what an earlier process left."""
        self._file = file
        self._saved = True
        self.all: list[Loss] = []
        self._declared: dict[int, list[Loss]] = {}  # by number of the health batch that says so
        if file.exists():
            self.all = [_loads(each) for each in json.loads(file.read_text() or "[]")]

    def add(self, loss: Loss) -> None:
        """Keep a loss until it is declared."""
        silent = self._not_yet_declared()
        for at, known in enumerate(self.all):
            if known in silent and known.joins(loss):
                self.all[at] = replace(
                    known, last=loss.last, events=known.events + loss.events, at_us=loss.at_us
                )
                break
        else:
            self.all.append(loss)
        self.save()

    def replace(self, old: Loss, new: Iterable[Loss]) -> None:
        """What was open is now known: these remain lost (none, if Kafka has them all)."""
        if old in self.all:
            self.all.remove(old)
            self.all += new
            self.save()

    def pending(self) -> list[Loss]:
        """Certain, and not in a health batch that is on its way."""
        return [each for each in self._not_yet_declared() if not each.open]

    def open(self) -> list[Loss]:
        """Kafka has to be asked about these."""
        return [each for each in self.all if each.open]

    def _not_yet_declared(self) -> list[Loss]:
        on_the_way = [loss for losses in self._declared.values() for loss in losses]
        return [each for each in self.all if each not in on_the_way]

    def declare(self, losses: list[Loss], seq: int) -> None:
        """These are rows of health batch ``seq``."""
        if losses:
            self._declared[seq] = losses

    def settle(self, seq: int, *, delivered: bool) -> None:
        """What became of health batch ``seq``: delivered ends its losses, else they are pending again."""
        said = self._declared.pop(seq, [])
        if said and delivered:
            self.all = [each for each in self.all if each not in said]
            self.save()

    def save(self) -> None:
        """Write the journal; on a full disk the next change, or :meth:`retry`, writes it."""
        new = self._file.with_suffix(".new")
        try:
            with new.open("w") as handle:
                json.dump([asdict(each) for each in self.all], handle)
            os.replace(new, self._file)  # noqa: PTH105 (one call, as atomic as the kernel has it)
            self._saved = True
        except OSError:
            self._saved = False

    def retry(self) -> None:
        """Write what a full disk kept from being written."""
        if not self._saved:
            self.save()


def _loads(tree: dict[str, object]) -> Loss:
    return Loss(**{**tree, "reason": Reason(str(tree["reason"]))})  # type: ignore[arg-type]
