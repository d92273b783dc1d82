"""What every benchmark shares: measuring in turns, one kind of row, one kind of table.

A benchmark module has ``run() -> list[Row]``; ``python -m bench [NAME…]`` runs them and writes
docs/benchmarks.md. Speed is a ratio of two things measured in turns within one run: the least and the median.
"""

import contextlib
import random
import socket
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

ROUNDS = 7


@dataclass(frozen=True)
class Row:
    """One figure: ours, what it is compared with, and what it has to reach."""

    name: str
    ours: str  # with its unit
    peer: str  # what it was compared with and its figure; "" when there is none
    ratio: str  # ours to peer, min/median
    target: str
    met: bool | None  # None: informative only


@dataclass(frozen=True)
class Times:
    """Repeated measurements of one thing, in whatever unit the caller measures."""

    values: tuple[float, ...]

    @property
    def least(self) -> float:
        """The least disturbed of them."""
        return min(self.values)

    @property
    def median(self) -> float:
        """The usual one."""
        return statistics.median(self.values)

    def text(self, unit: str, scale: float = 1.0) -> str:
        """``min/median unit``."""
        return f"{self.least * scale:.3g}/{self.median * scale:.3g} {unit}"


def in_turns(jobs: Mapping[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, Times]:
    """Run every job once a round, so that a disturbance hits all; the first round warms up."""
    for job in jobs.values():
        job()
    measured: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            measured[name].append(job())
    return {name: Times(tuple(values)) for name, values in measured.items()}


def ratio(ours: Times, peer: Times) -> tuple[float, float]:
    """Ours to the peer's: (of the minima, of the medians)."""
    return ours.least / peer.least, ours.median / peer.median


def ratio_text(ours: Times, peer: Times) -> str:
    """The two ratios as ``0.42/0.45``."""
    least, median = ratio(ours, peer)
    return f"{least:.3g}/{median:.3g}"


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of this process, all its threads, that ``work`` takes."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def percentile(values: list[float], share: float) -> float:
    """The value that ``share`` (0…1) of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def free_port() -> int:
    """A loopback port that nobody uses now, and that no client is ever given as its own.

    One of the kernel's ephemeral ports would not do: a client that tries again and again to reach a server
    that was killed there ends up connected to itself, and the server cannot come back.
    """
    while True:
        port = random.randint(12_000, 31_999)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
