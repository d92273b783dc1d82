"""`outstanding heap:LIBRARY`: what each call site has allocated and not given back, at a bounded cost.

A trap at each malloc and free costs about 1 µs, some sixty times what they do themselves. So a process is
first looked at for a moment. Where the traps take less than the budget they stay, and everything is exact.
Otherwise they are there in short windows only, as often as the budget allows, and the rest is estimated
(collector/ondemand/heap_estimate.py).
"""

import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collector import bpf_sys, loader
from collector.bpf_map import possible_cpus
from collector.clock import now_us
from collector.loader import Loaded
from collector.ondemand import attach, heap_estimate
from collector.ondemand.binary import find
from collector.ondemand.bind import RETURN_TRAP_NS, TRAP_NS
from collector.ondemand.columns import Columns
from collector.ondemand.elf import Elf
from collector.ondemand.heap_estimate import AGE, ALLOCATION, PLACE, STEPS, SUM, Estimate, Windows
from collector.ondemand.naming import Naming, StackNames
from collector.ondemand.running import Cost
from schemas.columns import Column
from schemas.errors import BpfleetError, UsageError
from schemas.probe_place import machine
from schemas.probe_spec import Checked

# function → its cookie in heap.bpf.c; all but free have a return
FREE = 4
FUNCTIONS = {
    "free": FREE, "malloc": 0, "valloc": 0, "memalign": 1, "aligned_alloc": 1, "calloc": 2, "realloc": 3,
}  # fmt: skip
WINDOW_S, LONGEST_S, CALM_S, LEAST_REST_S = 0.02, 0.16, 0.2, 0.05
UNSETTLED, JUDGED = 0.2, 5  # windows are lengthened when so much may still end, after so many
SLOWDOWN = 0.06  # of the process: what the traps may take of its time
BURST_S = 0.03  # of traps, before it is called too much
MAX_PROCESSES = 8
FULL = 0.75  # of the table of what is alive: past it every second address is left out


@dataclass
class Process:
    """One that is watched."""

    pid: int
    grown_from: int  # anonymous memory at the beginning

    @classmethod
    def of(cls, pid: int) -> "Process":
        """Raises :class:`BpfleetError` when it is gone."""
        return cls(pid, anonymous(pid))


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory that a process has touched."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    raise BpfleetError(f"there is no process {pid}")


class Heap:
    """Like :class:`collector.ondemand.running.Running`, with a thread that opens and closes the windows."""

    leeway = 2.0  # it keeps to its share by itself, on the average of some windows

    def __init__(
        self, checked: Checked, loaded: Loaded, pids: list[int], share: float, naming: Naming
    ) -> None:
        """``share``: of all CPUs, what it may cost."""
        self.checked, self._loaded = checked, loaded
        self.sample = checked.spec.sample
        self.stacks = StackNames(loaded.maps, naming)
        self._share = share
        self._places = _places(checked.at.parts[0], pids)
        self._processes = {pid: Process.of(pid) for pid in pids}
        self._fds: list[int] = []
        self._gate, self._closed = threading.Lock(), False
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="heap")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heap", daemon=True)
        self.rests_s = 0.0  # between two windows; 0: the traps stay
        self.windowed = False
        self.window_s, self.windows = WINDOW_S, 0
        self._windows = Windows()

    # ── In the manner of Running ─────────────────────────────────────────────────────────────────

    def attach(self) -> None:
        """Begin. Raises :class:`BpfleetError`."""
        self._open()
        self._thread.start()

    def detach(self) -> None:
        """End the windows."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._close()

    @property
    def programs(self) -> int:
        """How many there are."""
        return len(self._loaded.programs)

    def set_sample(self, one_in: int) -> None:
        """Keep one address in so many (a power of two); those that no longer belong are forgotten."""
        self.sample = 1 << max(one_in - 1, 0).bit_length()
        self._loaded.set("sample", self.sample)
        places, _ = self._alive()
        mixed = (places["address"] >> np.uint64(4)) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)
        out = places[(mixed & np.uint64(self.sample - 1)) != 0]
        self._loaded.maps["live"].delete_many(out.tobytes(), len(out))

    def cost(self) -> Cost:
        """Of the programs and their traps."""
        runs = program_ns = trap_ns = 0
        for program in self._loaded.programs:
            info = bpf_sys.prog_info(program.fd)
            runs += info.run_count
            program_ns += info.run_time_ns
            trap_ns += info.run_count * (RETURN_TRAP_NS - TRAP_NS if program.name == "given" else TRAP_NS)
        return Cost(runs, program_ns, trap_ns)

    def run_times(self) -> Mapping[str, bpf_sys.ProgInfo]:
        """What the kernel says of each program, by its hook; from any thread, nothing once it is closed."""
        with self._gate:
            programs = [] if self._closed else self._loaded.programs
            return {each.hook: bpf_sys.prog_info(each.fd) for each in programs}

    def lost(self) -> int:
        """Allocations for which there was no room."""
        _, values, count = self._loaded.maps["heap_counters"].read()
        return int(np.frombuffer(values, np.uint64).reshape(count, possible_cpus()).sum(axis=1)[2])

    def close(self) -> None:
        """Give everything back."""
        self.detach()
        self._pool.shutdown()
        self.stacks.close()
        with self._gate:
            self._closed = True
            self._loaded.close()

    # ── Windows ──────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        """Stay as long as the traps cost little; else come and go."""
        begun = time.monotonic()
        while not self._stopping.is_set():
            self._look(self.window_s)
            allowed = self._allowed()
            owed = self.cost().total_ns / 1e9 - allowed * (time.monotonic() - begun)
            if not self.windowed and owed < BURST_S:
                self._keep_room()
                continue  # the traps stay
            self._end_window()
            self.rests_s = max(self._spent / allowed - self._took, LEAST_REST_S)
            if self._stopping.wait(self.rests_s):
                return
            try:
                self._open()
            except BpfleetError:
                return  # the process has ended

    def _end_window(self) -> None:
        """Take the traps out, and enter what was seen; a first look only tells that windows are needed."""
        end = time.monotonic_ns()
        self._close()
        live, ended = self._loaded.maps["live"], self._loaded.maps["ended"]
        keys, values, count = live.read(delete=True)
        old_keys, old_values, old = ended.read(delete=True)
        if self.windowed:
            sums = np.frombuffer(old_values, SUM).reshape(old, possible_cpus())
            total = np.zeros(old, SUM)
            for name in SUM.names or ():
                total[name] = sums[name].sum(axis=1)
            self._windows.add(
                np.frombuffer(keys, PLACE, count), np.frombuffer(values, ALLOCATION, count),
                np.frombuffer(old_keys, AGE, old), total, end, self._step_ns,
            )  # fmt: skip
            self.windows += 1
            if self.windows == JUDGED and self._windows.unsettled() > UNSETTLED:
                self._lengthen()
        self.windowed = True
        self._loaded.set("age_step_ns", self._step_ns)

    def _lengthen(self) -> None:
        """Much of what was alive at the end was soon to go: look twice as long, half as often."""
        if self.window_s < LONGEST_S:
            self.window_s, self.windows, self._windows = self.window_s * 2, 0, Windows()

    @property
    def _step_ns(self) -> int:
        return int(self.window_s * 1e9) // STEPS

    def _allowed(self) -> float:
        """What the traps may take of the processes' time."""
        cpus = os.cpu_count() or 1
        return min(SLOWDOWN, self._share * cpus / max(len(self._processes), 1))

    def _look(self, seconds: float) -> None:
        """Wait, and note what the traps took meanwhile; seldom where they take little."""
        before = self.cost()
        self._stopping.wait(CALM_S if self._calm and not self.windowed else seconds)
        self._spent = self.cost().since(before).total_ns / 1e9
        self._took = time.monotonic() - self._opened
        self._calm = self._spent < SLOWDOWN / 4 * seconds

    _calm = False
    _took = 0.0
    _spent = 0.0
    _opened = 0.0

    def _open(self) -> None:
        """Put the traps in; returns first, so that no entry waits for one."""
        self._opened = time.monotonic()
        for pid in self._processes:
            try:
                for file, functions in self._places:
                    self._link("given", file, {o: c for o, c in functions.items() if c != FREE}, pid)
                    self._link("called", file, functions, pid)
            except BpfleetError:
                if Path(f"/proc/{pid}").exists():
                    raise
                continue
        if not self._fds:
            raise BpfleetError("the process has ended")

    def _link(self, program: str, file: Path, functions: Mapping[int, int], pid: int) -> None:
        offsets, cookies = list(functions), list(functions.values())
        fd = self._loaded.program(program).fd
        returns = program == "given"
        self._fds.append(attach.functions(file, offsets, fd, returns=returns, pid=pid, cookies=cookies))

    def _close(self) -> None:
        """Take the traps out: each link waits for the kernel, so all do at once."""
        fds, self._fds = self._fds, []
        list(self._pool.map(os.close, fds))

    def _keep_room(self) -> None:
        places, _ = self._alive()
        if len(places) > FULL * self._loaded.maps["live"].max_entries:
            self.set_sample(self.sample * 2)

    def set_homes(self, ids: set[int]) -> None:
        """Nothing: whom it watches is settled when it begins."""

    # ── Results ──────────────────────────────────────────────────────────────────────────────────

    def results(self, columns: Columns, head: Mapping[str, Any], due: bool) -> list[dict[str, Column]]:
        """The estimates of now, as columns of probe_result, when they are ``due``."""
        self.stacks.look()
        if not due or (self.windowed and not self.windows):
            return []
        made = []
        for pid, each in self.estimates().items():
            if len(each.stack):
                named = self.stacks.names(each.stack)
                made.append(columns.outstanding(head, self.checked, pid, each, named, now_us()))
        return made

    def _alive(self) -> tuple[NDArray[np.void], NDArray[np.void]]:
        keys, values, count = self._loaded.maps["live"].read()
        return np.frombuffer(keys, PLACE, count), np.frombuffer(values, ALLOCATION, count)

    def estimates(self) -> dict[int, Estimate]:
        """What is alive now, by process; one that has ended has nothing."""
        places, allocations = self._alive()
        found = {}
        for pid, process in self._processes.items():
            try:
                growth = anonymous(pid) - process.grown_from
            except BpfleetError:
                continue
            alive = allocations[places["pid"] == pid]
            if self.windowed:
                found[pid] = self._windows.estimate(pid, growth)
            else:
                found[pid] = heap_estimate.whole(alive, self.sample)
        return found


def _places(binary: str, pids: list[int]) -> list[tuple[Path, dict[int, int]]]:
    """The library's files, and of each its functions: offset → cookie."""
    places = []
    for file in find(binary, pids):
        functions: dict[int, int] = {}
        with Elf(file) as elf:
            for name, cookie in FUNCTIONS.items():
                try:
                    functions.setdefault(elf.entry(name)[0], cookie)
                except BpfleetError:
                    if name in ("malloc", "free"):
                        raise
        places.append((file, functions))
    return places


def load(checked: Checked) -> Loaded:
    """The programs. Raises :class:`UsageError` where the kernel does not take them."""
    registers = machine()
    names = ("FIRST_ARGUMENT", "SECOND_ARGUMENT", "THIRD_ARGUMENT")
    defined = "".join(
        f"#define {name} ctx->{register}\n"
        for name, register in zip(names, registers.arguments[:3], strict=True)
    )
    text = (
        f"KERNEL_STRUCT(pt_regs, {', '.join(registers.members)})\n{defined}"
        f'#define RESULT ctx->{registers.result}\n#include "ondemand/heap.bpf.c"\n'
    )
    sample = 1 << max(checked.spec.sample - 1, 0).bit_length()
    result = loader.load([loader.Source("heap", text=text, attach=False, settings={"sample": sample})])
    if result.failed:
        raise UsageError(f"this kernel does not take it: {result.failed['heap']}")
    return result.loaded["heap"]


def processes(checked: Checked, pids: list[int]) -> list[int]:
    """Whom it watches. Raises :class:`BpfleetError`."""
    chosen = [checked.spec.pid] if checked.spec.pid else pids
    if not chosen:
        raise BpfleetError("there is no process in that cgroup")
    if len(chosen) > MAX_PROCESSES:
        raise UsageError(f"{len(chosen)} processes are in that cgroup, at most {MAX_PROCESSES} are watched")
    return chosen
