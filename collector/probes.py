"""Loaded probes as sources of arrays: rings, aggregates, their loss counters, their programs' run time."""

import fnmatch
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collector import bpf_sys, loader
from collector.aggregate import Aggregate
from collector.bpf_map import ArrayReader, possible_cpus
from collector.loader import Loaded
from collector.ring import Ring
from collector.stacks import StackSource, stack_fields
from schemas import c_header, dtype
from schemas.config import Collector
from schemas.declare import Probe, Stream
from schemas.errors import UsageError

MOST_CHILDREN = 4  # that compile at the same time
MONOTONIC_COARSE = 6  # the kernel's clock that moves at each of its ticks (linux/time.h)


@dataclass
class RingReader:
    """A ring stream: what was read and not yet cut into a batch."""

    stream: Stream
    ring: Ring
    pending: list[NDArray[Any]] = field(default_factory=list)
    rows: int = 0

    def read(self, limit: int) -> int:
        """Move at most ``limit`` events out of the kernel's memory; how many came."""
        events = self.ring.read(limit)
        if len(events):
            self.pending.append(events)
            self.rows += len(events)
        return len(events)

    def cut(self) -> NDArray[Any] | None:
        """All that was read, as one array; None if nothing was."""
        if not self.pending:
            return None
        whole = self.pending[0] if len(self.pending) == 1 else np.concatenate(self.pending)
        self.pending, self.rows = [], 0
        return whole

    @property
    def fill(self) -> float:
        """Share of the ring that is taken."""
        return self.ring.waiting / self.ring.bytes


@dataclass(frozen=True)
class Counts:
    """What the kernel side counted of one stream since the start."""

    made: int = 0
    lost: int = 0
    sampled_out: int = 0
    used: int = 0  # moves before the map of an aggregate changes


class Attached:
    """One probe in the kernel, its readers and its counters. Owns them: :meth:`close` detaches."""

    def __init__(self, probe: Probe, loaded: Loaded) -> None:
        self.probe = probe
        self.programs = loaded.programs
        self.loaded = loaded
        self.rings = [
            RingReader(each, Ring(loaded.maps[each.name], dtype.event(each)))
            for each in probe.streams
            if each.source == "ring"
        ]
        self.aggregates = [
            (each, Aggregate(loaded.maps[each.name], each, loaded.maps.get(f"{each.name}_near")))
            for each in probe.streams
            if each.source == "aggregate" and not stack_fields(each)
        ]
        self.stacks = StackSource.of(probe.streams, loaded.maps) if "stacks" in loaded.maps else None
        self._counted = {at: each.name for at, each in enumerate(probe.streams) if each.source != "host"}
        self._counts = ArrayReader(loaded.maps[f"{probe.name}_counts"])

    def counts(self) -> dict[str, Counts]:
        """The counters of each stream, summed over the CPUs."""
        cpus = np.frombuffer(self._counts.read(), np.uint64).reshape(-1, possible_cpus())
        sums = cpus.sum(axis=1, dtype=np.uint64).reshape(-1, len(c_header.COUNTERS)).tolist()
        return {name: Counts(*sums[at]) for at, name in self._counted.items()}

    def run_times(self) -> dict[str, bpf_sys.ProgInfo]:
        """What the kernel says of each program since it was loaded, by its hook."""
        return {each.hook: bpf_sys.prog_info(each.fd) for each in self.programs}

    def detach(self) -> None:
        """Let nothing more happen; what was made can still be read and counted."""
        self.loaded.detach()

    def close(self) -> None:
        """Detach, unmap, give everything back."""
        for each in self.rings:
            each.ring.close()
        self.loaded.close()


def chosen(probes: Mapping[str, Probe], patterns: Iterable[str]) -> list[Probe]:
    """The probes that have a program, ``bpf/<probe>.bpf.c``, and that are named; ``!name`` leaves one out.

    Streams without one are filled by another part (the filter, the balancer). Raises :class:`UsageError`
    for a pattern that names nothing.
    """
    kernel = {name: probe for name, probe in probes.items() if (loader.ROOT / f"{name}.bpf.c").exists()}
    names: set[str] = set()
    for pattern in patterns:
        matching = set(fnmatch.filter(kernel, pattern.removeprefix("!")))
        if not matching:
            raise UsageError(f"no probe is called `{pattern}`; there are: {', '.join(sorted(kernel))}")
        names = names - matching if pattern.startswith("!") else names | matching
    if not names:
        raise UsageError("no probe is chosen; collector.probes leaves all of them out")
    return [kernel[name] for name in sorted(names)]


def load(probes: Iterable[Probe], config: Collector) -> tuple[list[Attached], dict[str, str], dict[str, Any]]:
    """Load and attach: (the running ones, why not the others, names of the kernel's enums)."""
    probes = list(probes)
    by_name = {each.name: each for each in probes}
    settings = {
        "slow_io_us": config.slow_io_us,
        "slow_file_us": config.slow_file_us,
        "drop_samples_per_second": config.drop_samples_per_second,
        "off_cpu_budget": config.off_cpu_samples * (os.cpu_count() or 1),
        "tick_ns": round(time.clock_getres(MONOTONIC_COARSE) * 1e9),
    }
    ring_bytes = 1 << max(config.ring_kb * 1024 - 1, 4095).bit_length()  # a power of two, at least a page
    sources = [
        loader.probe_source(
            each,
            sizes={stream.name: ring_bytes for stream in each.streams if stream.source == "ring"},
            settings=settings,
        )
        for each in probes
    ]
    children = min(os.cpu_count() or 1, MOST_CHILDREN, len(sources))
    result = loader.load_side_by_side(sources, loader.kernel_enums(probes), children)
    attached = [Attached(by_name[name], loaded) for name, loaded in result.loaded.items()]
    return attached, result.failed, dict(result.enums)
