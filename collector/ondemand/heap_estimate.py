"""What is alive in a heap, by call site, from what was seen of it (docs/decisions/0082).

Seen whole, from the beginning on: sums of what is alive, times the sampling of addresses. Seen in windows
only, since the program allocates too often: of each call site it is known how much it allocated in them, and
how old that became: a life table (Kaplan and Meier, in bytes), in which what was alive when its window closed
is censored. Of what outlives a window, some is freed later: how much of it, the balance of sizes tells
(heap_balance.py). How much stays in total, the kernel knows: the heap's growth. It is divided among the call
sites by what each left behind for good in the windows.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from collector.ondemand import heap_balance
from collector.ondemand.heap_balance import CLASSES, Kept

STEPS = 64  # of a window: HEAP_STEPS of heap.bpf.c
PLACE = np.dtype([("address", "<u8"), ("pid", "<u8")])
ALLOCATION = np.dtype([("size", "<u8"), ("chunk", "<u8"), ("stack", "<u8"), ("at", "<u8")])
AGE = np.dtype([("pid", "<u8"), ("stack", "<u8"), ("step", "<u8")])
GONE = np.dtype([("pid", "<u8"), ("chunk", "<u8")])
SUM = np.dtype([("count", "<u8"), ("bytes", "<u8"), ("chunks", "<u8")])
COUNT, BYTES, CHUNKS = 0, 1, 2
Site = tuple[int, int]  # pid, stack


@dataclass(frozen=True)
class Estimate:
    """Alive by call site; arrays of one length."""

    stack: NDArray[np.uint64]
    count: NDArray[np.int64]
    bytes: NDArray[np.int64]
    error: NDArray[np.int64]  # standard error of bytes


def whole(alive: NDArray[np.void], sample: int) -> Estimate:
    """All was seen: one in ``sample`` addresses."""
    stacks, which = np.unique(alive["stack"], return_inverse=True)
    size = alive["size"].astype(np.float64)
    count = np.bincount(which, minlength=len(stacks)) * sample
    total = np.bincount(which, size, len(stacks)) * sample
    squares = np.bincount(which, size * size, len(stacks))
    error = np.sqrt(sample * (sample - 1) * squares)
    return Estimate(stacks, count.astype(np.int64), total.astype(np.int64), error.astype(np.int64))


@dataclass
class Table:
    """The life table of one call site: (count, bytes, chunk bytes) by age, of what ended and was censored."""

    ended: NDArray[np.float64] = field(default_factory=lambda: np.zeros((STEPS, 3)))
    censored: NDArray[np.float64] = field(default_factory=lambda: np.zeros((STEPS, 3)))
    alive: NDArray[np.float64] = field(default_factory=lambda: np.zeros(CLASSES))  # by size, at windows' ends

    def survival(self, start: int = 0) -> float:
        """The share of the bytes alive at step ``start`` that outlives a window."""
        ended, censored = self.ended[:, BYTES], self.censored[:, BYTES]
        at_risk = (ended + censored)[::-1].cumsum()[::-1] - censored / 2
        hazard = np.divide(ended, at_risk, out=np.zeros(STEPS), where=at_risk > 0)
        # The last steps hold hardly anyone: what little is known there must not decide.
        return float(np.prod(1 - np.clip(hazard[start : STEPS * 3 // 4], 0, 1)))

    def left(self) -> NDArray[np.float64]:
        """(count, bytes, chunk bytes) allocated here that outlive a window."""
        seen: NDArray[np.float64] = self.ended.sum(axis=0) + self.censored.sum(axis=0)
        return seen * self.survival()

    def left_by_size(self) -> NDArray[np.float64]:
        """How many of each class of sizes outlive a window."""
        alive = float(self.censored[:, CHUNKS].sum())
        sizes: NDArray[np.float64] = self.alive * (float(self.left()[CHUNKS]) / alive if alive else 0.0)
        return sizes


class Windows:
    """Life tables over the windows of all processes."""

    def __init__(self) -> None:
        self.tables: dict[Site, Table] = {}
        self.gone: dict[int, NDArray[np.float64]] = {}  # pid → by size, freed and of no window's making

    def add_gone(self, keys: NDArray[np.void], counts: NDArray[np.uint64]) -> None:
        """Of one window: what was freed in it and had been allocated before it."""
        sizes = heap_balance.classes(keys["chunk"].astype(np.float64))
        for pid in np.unique(keys["pid"]).tolist():
            mine = keys["pid"] == pid
            total = self.gone.setdefault(pid, np.zeros(CLASSES))
            np.add.at(total, sizes[mine], counts[mine].astype(np.float64))

    def add(self, places: NDArray[np.void], alive: NDArray[np.void], ages: NDArray[np.void],
            sums: NDArray[np.void], end_ns: int, step_ns: int) -> None:  # fmt: skip
        """One window: what was alive at its end, and what had ended before."""
        for age, total in zip(ages.tolist(), sums.tolist(), strict=True):
            table = self.tables.setdefault((age[0], age[1]), Table())
            table.ended[age[2]] += total
        age_ns = np.maximum(end_ns - alive["at"].astype(np.int64), 0)
        steps = np.minimum(age_ns // step_ns, STEPS - 1)
        amounts = np.stack(
            [np.ones(len(alive)), alive["size"].astype(float), alive["chunk"].astype(float)], axis=1
        )
        sizes = heap_balance.classes(amounts[:, CHUNKS])
        pairs = np.empty(len(alive), [("pid", "<u8"), ("stack", "<u8")])
        pairs["pid"], pairs["stack"] = places["pid"], alive["stack"]
        sites, which = np.unique(pairs, return_inverse=True)
        for number, site in enumerate(sites.tolist()):
            mine = which == number
            table = self.tables.setdefault(site, Table())
            np.add.at(table.censored, steps[mine], amounts[mine])
            np.add.at(table.alive, sizes[mine], 1.0)

    def unsettled(self) -> float:
        """Share of what is left behind that may yet turn out to live only a little longer than a window."""
        left = {site: float(table.left()[BYTES]) for site, table in self.tables.items()}
        total = sum(left.values())
        if not total:
            return 0.0
        return (
            sum(float(amount) * (1 - self.tables[site].survival(STEPS // 3)) for site, amount in left.items())
            / total
        )

    def estimate(self, pid: int, growth: int) -> Estimate:
        """The growth of a process's heap (bytes) by call site."""
        tables = {site[1]: table for site, table in self.tables.items() if site[0] == pid}
        left = np.array([table.left() for table in tables.values()]).reshape(-1, 3)
        kept = self._kept(pid, list(tables.values()))
        unsure = np.divide(kept.error, kept.share, out=np.ones(len(left)), where=kept.share > kept.error)
        left *= kept.share[:, None]
        taken = left[:, CHUNKS].sum()
        scale = max(growth, 0) / taken if taken else 0.0
        seen = np.maximum(left[:, COUNT], 1e-9)
        total = left[:, BYTES] * scale
        share = np.divide(left[:, BYTES], left[:, BYTES].sum() or 1.0)
        error = total * np.sqrt((1 - share) / np.maximum(seen, 1.0) + ((1 - share) * unsure) ** 2)
        return Estimate(
            np.array(list(tables), np.uint64), (left[:, COUNT] * scale).astype(np.int64),
            total.astype(np.int64), error.astype(np.int64),
        )  # fmt: skip

    def _kept(self, pid: int, tables: list[Table]) -> Kept:
        """What of each site's leavings stays; all of it where no freed sizes are known."""
        gone = self.gone.get(pid)
        if gone is None or not tables:
            return Kept(np.ones(len(tables)), np.zeros(len(tables)))
        left = np.array([each.left_by_size() for each in tables])
        return heap_balance.kept(left, np.sum([each.alive for each in tables], axis=0), gone)
