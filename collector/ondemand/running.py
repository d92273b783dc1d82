"""A probe in the kernel: attached, read, made thinner, detached. Not for two threads at once."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collector import bpf_sys
from collector.aggregate import Aggregate
from collector.bpf_map import possible_cpus
from collector.loader import Loaded
from collector.ondemand.bind import Hooking
from collector.ring import Ring
from schemas import c_header, dtype
from schemas.probe_c import STREAM, Generated
from schemas.probe_spec import Checked

DETACH_S = 0.005  # programs that run at that moment come to their end
RECLAIM_READS = 60
HOME = (1).to_bytes(8, "little")
STACK = np.dtype([("number", "<u8"), ("pid", "<u4"), ("frames", "<u4"), ("addresses", "<u8", (127,))])


@dataclass(frozen=True)
class Cost:
    """What a probe has cost since it was loaded, in nanoseconds of CPU."""

    runs: int
    program_ns: int
    trap_ns: int

    def since(self, before: "Cost") -> "Cost":
        """What came on top."""
        return Cost(
            self.runs - before.runs, self.program_ns - before.program_ns, self.trap_ns - before.trap_ns
        )

    @property
    def total_ns(self) -> int:
        """Programs and the traps that lead to them."""
        return self.program_ns + self.trap_ns


class Running:
    """Owns what it was given; :meth:`close` gives it back."""

    def __init__(self, checked: Checked, generated: Generated, loaded: Loaded,
                 hooks: tuple[Hooking, ...]) -> None:  # fmt: skip
        self.checked, self.generated, self._loaded, self._hooks = checked, generated, loaded, hooks
        (self.stream,) = generated.declaration.streams
        self.sample = checked.spec.sample
        self._fds: list[int] = []
        self._ring, self._aggregate = None, None
        if self.stream.source == "ring":
            self._ring = Ring(loaded.maps[STREAM], dtype.event(self.stream))
        else:
            self._aggregate = Aggregate(loaded.maps[STREAM], self.stream)
        self.stacks = Ring(loaded.maps["stacks"], STACK) if "stacks" in loaded.maps else None
        self.read_at = time.monotonic()

    def attach(self) -> None:
        """Raises :class:`schemas.errors.BpfleetError`; then nothing is attached."""
        try:
            for each in self._hooks:
                self._fds += each.attach(self._loaded.program(each.target))
        except BaseException:
            self.detach()
            raise
        self.read_at = time.monotonic()

    def detach(self) -> None:
        """Nothing more happens; what was counted can still be read."""
        for fd in self._fds:
            os.close(fd)
        if self._fds:
            time.sleep(DETACH_S)
        self._fds = []

    @property
    def programs(self) -> int:
        """How many there are."""
        return len(self._loaded.programs)

    def set_sample(self, one_in: int) -> None:
        """Take one in so many from now on."""
        self.sample = one_in
        self._loaded.set("sample", one_in)

    def set_homes(self, ids: set[int]) -> None:
        """The cgroups it is for, by id."""
        homes = self._loaded.maps["homes"]
        known = {int.from_bytes(each, "little") for each in homes}
        for number in ids - known:
            homes.update(number.to_bytes(8, "little"), HOME)
        for number in known - ids:
            homes.delete(number.to_bytes(8, "little"))

    def events(self) -> tuple[NDArray[Any], ...] | None:
        """Events since the last call; None for an aggregate or without any."""
        if self._ring is None:
            return None
        found = self._ring.read(20_000)
        return (found,) if len(found) else None

    def gains(self) -> tuple[tuple[NDArray[Any], ...], int] | None:
        """((keys, values), µs) that were gained since the last time there were some; None without any."""
        if self._aggregate is None:
            return None
        parts = self._aggregate.read()
        self._aggregate.reclaim(RECLAIM_READS)
        now = time.monotonic()
        interval = int((now - self.read_at) * 1e6)
        self.read_at = now
        return (parts, interval) if len(parts[0]) else None

    def cost(self) -> Cost:
        """Since it was loaded; zeros where the kernel keeps no statistics."""
        runs = program_ns = trap_ns = 0
        traps = {each.target: each.trap_ns for each in self._hooks}
        for program in self._loaded.programs:
            info = bpf_sys.prog_info(program.fd)
            runs += info.run_count
            program_ns += info.run_time_ns
            trap_ns += info.run_count * traps.get(program.name, 0)
        return Cost(runs, program_ns, trap_ns)

    def run_times(self) -> Mapping[str, bpf_sys.ProgInfo]:
        """What the kernel says of each program, by its hook."""
        return {each.hook: bpf_sys.prog_info(each.fd) for each in self._loaded.programs}

    def lost(self) -> int:
        """Events and keys for which there was no room."""
        _, values, count = self._loaded.maps[f"{STREAM}_counts"].read()
        cpus = np.frombuffer(values, np.uint64).reshape(count, possible_cpus())
        return int(cpus.sum(axis=1)[c_header.COUNTERS.index("lost")])

    def close(self) -> None:
        """Detach and give everything back."""
        self.detach()
        for ring in (self._ring, self.stacks):
            if ring is not None:
                ring.close()
        self._ring = self.stacks = None
        self._loaded.close()
