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
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collector import bpf_sys
from collector.bpf_map import possible_cpus
from collector.clock import now_us
from collector.loader import Loaded
from collector.ondemand import attach, heap_estimate, heap_library
from collector.ondemand.bind import RETURN_TRAP_NS, TRAP_NS
from collector.ondemand.columns import Columns
from collector.ondemand.heap_estimate import AGE, ALLOCATION, GONE, PLACE, STEPS, SUM, Estimate, Windows
from collector.ondemand.heap_growth import Growth
from collector.ondemand.heap_library import FREE
from collector.ondemand.heap_pace import Pace
from collector.ondemand.naming import Naming, StackNames
from collector.ondemand.running import Cost
from schemas.columns import Column
from schemas.errors import BpfleetError
from schemas.probe_spec import Checked

WINDOW_S, LONGEST_S, CALM_S, LEAST_REST_S = 0.02, 0.16, 0.2, 0.05
UNSETTLED, JUDGED = 0.2, 5  # windows are lengthened when so much may still end, after so many
SLOWDOWN = 0.06  # of the process: what the traps may take of its time
WORKED = 0.3  # of a window, by traps: with less, not much was seen in it
ESTIMATING = 0.05  # of a CPU: with very many call sites, estimates come less often
NEW_STACKS = 12  # windows that are set aside at most, since stacks became longer in them
BURST_S = 0.03  # of traps, before it is called too much
FULL = 0.75  # of the table of what is alive: past it every second address is left out


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
        self._places = heap_library.functions(checked.at.parts[0], pids)
        self._has_headers = all(heap_library.is_glibc(file) for file, _ in self._places)
        loaded.set("headers", int(self._has_headers))
        self._processes = {pid: Growth(pid) for pid in pids}
        self._pace = Pace(pids)
        self._fds: list[int] = []
        self._gate, self._closed = threading.Lock(), False
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="heap")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heap", daemon=True)
        self.rests_s = 0.0  # between two windows; 0: the traps stay
        self.windowed = False
        self.window_s, self.windows = WINDOW_S, 0
        self._windows, self._books = Windows(), threading.Lock()  # one thread enters, another asks

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
        places, gone = np.frombuffer(keys, PLACE, count), self._gone()
        if not self.windowed:
            self.windowed = True
        else:
            sums = np.frombuffer(old_values, SUM).reshape(old, possible_cpus())
            total = np.zeros(old, SUM)
            for name in SUM.names or ():
                total[name] = sums[name].sum(axis=1)
            with self._books:
                self._windows.add(
                    places, np.frombuffer(values, ALLOCATION, count),
                    np.frombuffer(old_keys, AGE, old), total, end, self._step_ns,
                )  # fmt: skip
                if self._has_headers:
                    self._windows.add_gone(*gone)
                for pid, growth in self._processes.items():
                    growth.see(places["address"][places["pid"] == pid])
                self.windows += 1
                self._judge_windows()
        self._loaded.set("age_step_ns", self._step_ns)

    def _judge_windows(self) -> None:
        """Whether to go on like this, or to begin anew; the first few are judged."""
        self._begin_anew_when_stacks_grow()
        little = self.windows <= JUDGED and self._spent < WORKED * self.window_s
        if little or (self.windows == JUDGED and self._windows.unsettled() > UNSETTLED):
            self._lengthen()

    def _lengthen(self) -> None:
        """Little happened, or much of what was alive at the end was soon to go: look twice as long.

        That is half as often where much happens. A process that waits for a CPU hardly notices.
        """
        if self.window_s < LONGEST_S:
            self.window_s, self.windows, self._windows = self.window_s * 2, 0, Windows()

    def _gone(self) -> tuple[NDArray[np.void], NDArray[np.uint64]]:
        """Chunks that were freed and are of no window: keys, and how many."""
        keys, values, count = self._loaded.maps["gone"].read(delete=True)
        cpus = np.frombuffer(values, np.uint64).reshape(count, possible_cpus())
        return np.frombuffer(keys, GONE, count), cpus.sum(axis=1, dtype=np.uint64)

    def _begin_anew_when_stacks_grow(self) -> None:
        """While callers become known that were not, what was seen is of other call sites."""
        grown, self._grown = self._grown, self.stacks.grown
        if grown != self._grown and self._anew < NEW_STACKS:
            self._anew, self._windows = self._anew + 1, Windows()

    @property
    def _step_ns(self) -> int:
        return int(self.window_s * 1e9) // STEPS

    def _allowed(self) -> float:
        """What the traps may take of the processes' time."""
        cpus = os.cpu_count() or 1
        share = self._share * cpus / max(len(self._processes), 1)
        return min(SLOWDOWN * self._pace.share(), share)

    def _look(self, seconds: float) -> None:
        """Wait, and note what the traps took meanwhile; seldom where they take little."""
        before = self.cost()
        self._stopping.wait(CALM_S if self._calm and not self.windowed else seconds)
        self._spent = self.cost().since(before).total_ns / 1e9
        self._took = time.monotonic() - self._opened
        self._calm = self._spent < SLOWDOWN / 4 * seconds

    _grown = _anew = 0
    _estimable = 0.0
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
        self._loaded.set("open", 1)

    def _link(self, program: str, file: Path, functions: Mapping[int, int], pid: int) -> None:
        offsets, cookies = list(functions), list(functions.values())
        fd = self._loaded.program(program).fd
        returns = program == "given"
        self._fds.append(attach.functions(file, offsets, fd, returns=returns, pid=pid, cookies=cookies))

    def _close(self) -> None:
        """Take the traps out: each link waits for the kernel, so all do at once."""
        self._loaded.set("open", 0)
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
        last = self._stopping.is_set()
        if (
            not due
            or (self.windowed and not self.windows)
            or (time.monotonic() < self._estimable and not last)
        ):
            return []
        begun, made = time.thread_time(), []
        for pid, each in self.estimates().items():
            if len(each.stack):
                named = self.stacks.names(each.stack)
                made.append(columns.outstanding(head, self.checked, pid, each, named, now_us()))
        self._estimable = time.monotonic() + (time.thread_time() - begun) / ESTIMATING
        return made

    def _alive(self) -> tuple[NDArray[np.void], NDArray[np.void]]:
        keys, values, count = self._loaded.maps["live"].read()
        return np.frombuffer(keys, PLACE, count), np.frombuffer(values, ALLOCATION, count)

    def estimates(self) -> dict[int, Estimate]:
        """What is alive now, by process; one that has ended has nothing."""
        places, allocations = self._alive()
        found = {}
        for pid, growth in self._processes.items():
            if not Path(f"/proc/{pid}").exists():
                continue
            if not self.windowed:
                found[pid] = heap_estimate.whole(allocations[places["pid"] == pid], self.sample)
                continue
            with self._books, suppress(BpfleetError):  # it has just ended
                found[pid] = self._windows.estimate(pid, growth.read())
        return found
