"""A probe in the kernel: attached, read, made thinner, detached. Not for two threads at once."""

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collector import bpf_sys
from collector.aggregate import Aggregate
from collector.bpf_map import possible_cpus
from collector.clock import now_us
from collector.loader import Loaded
from collector.ondemand.bind import Hooking
from collector.ondemand.columns import Columns
from collector.ondemand.naming import Naming, StackNames
from collector.ring import Ring
from collector.stacks import stack_fields
from schemas import c_header, dtype
from schemas.columns import Column
from schemas.probe_c import STREAM, Generated
from schemas.probe_spec import Checked

DETACH_S = 0.005  # programs that run at that moment come to their end
RECLAIM_READS = 60
HOME = (1).to_bytes(8, "little")


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

    leeway = 1.0  # its budget is this many times what it was given

    def __init__(self, checked: Checked, generated: Generated, loaded: Loaded,
                 hooks: tuple[Hooking, ...], naming: Naming) -> None:  # fmt: skip
        self.checked, self.generated, self._loaded, self._hooks = checked, generated, loaded, hooks
        (self.stream,) = generated.declaration.streams
        self.sample = checked.spec.sample
        self._fds: list[int] = []
        self._gate, self._closed = threading.Lock(), False
        self._ring, self._aggregate = None, None
        if self.stream.source == "ring":
            self._ring = Ring(loaded.maps[STREAM], dtype.event(self.stream))
        else:
            self._aggregate = Aggregate(loaded.maps[STREAM], self.stream)
        self.stacks = StackNames(loaded.maps, naming) if "stacks" in loaded.maps else None
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

    def results(self, columns: Columns, head: Mapping[str, Any], due: bool) -> list[dict[str, Column]]:
        """What came since the last call, as columns of probe_result; aggregates only when ``due``."""
        found: list[tuple[tuple[NDArray[Any], ...], int]] = []
        if self._ring is not None and len(events := self._ring.read(20_000)):
            found.append(((events,), 0))
        if self._aggregate is not None and due and (gains := self._gains()) is not None:
            found.append(gains)
        made = []
        for parts, interval in found:
            self._name_stacks(parts)
            made.append(
                columns.make(
                    head, self.checked, self.generated.columns, self.stream, parts, now_us(), interval
                )
            )
        return made

    def _gains(self) -> tuple[tuple[NDArray[Any], ...], int] | None:
        """((keys, values), µs) that were gained since the last time; None without any."""
        assert self._aggregate is not None
        parts = self._aggregate.read()
        self._aggregate.reclaim(RECLAIM_READS)
        now = time.monotonic()
        interval = int((now - self.read_at) * 1e6)
        self.read_at = now
        return (parts, interval) if len(parts[0]) else None

    def _name_stacks(self, parts: tuple[NDArray[Any], ...]) -> None:
        """Put names in the place of the kernel's numbers of stacks."""
        for name in stack_fields(self.stream) if self.stacks else ():
            assert self.stacks is not None
            parts[0][name] = self.stacks.names(parts[0][name])

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
        """What the kernel says of each program, by its hook; from any thread, nothing once it is closed."""
        with self._gate:
            programs = [] if self._closed else self._loaded.programs
            return {each.hook: bpf_sys.prog_info(each.fd) for each in programs}

    def lost(self) -> int:
        """Events and keys for which there was no room."""
        _, values, count = self._loaded.maps[f"{STREAM}_counts"].read()
        cpus = np.frombuffer(values, np.uint64).reshape(count, possible_cpus())
        return int(cpus.sum(axis=1)[c_header.COUNTERS.index("lost")])

    def close(self) -> None:
        """Detach and give everything back."""
        self.detach()
        for each in (self._ring, self.stacks):
            if each is not None:
                each.close()
        self._ring = self.stacks = None
        with self._gate:
            self._closed = True
            self._loaded.close()
