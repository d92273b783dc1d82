"""Run-queue latency: what a switch costs, against libbpf-tools' runqlat attached to the very same switches.

Cost is the kernel's own BPF statistics over a pipe ping-pong on one core; each round attaches both. The
slow-down is CPU time of the ping-pong with one of them attached, in turns with none.
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from probing import probing
from test_probe_runq_latency import HOG, cgroup, gained, run_delay, runqlat, start_in

from bench.common import Row, Times, in_turns, ratio_text
from collector import bpf_sys

PIPE = ["taskset", "-c", "1", "perf", "bench", "sched", "pipe", "-l"]
ROUNDS = 7
TARGET_NS, TARGET_SUM = 350.0, 0.985


def ping_pong(loops: int = 20_000) -> float:
    """CPU seconds of the ping-pong, both ends."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*PIPE, str(loops)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def costs(probe: Any) -> tuple[Times, Times]:
    """ns a wake-up and switch: (ours, runqlat's), both in the same rounds."""
    ours, theirs = [], []
    with runqlat() as programs:
        for _ in range(ROUNDS):
            before = sum(bpf_sys.prog_info(fd).run_time_ns for fd in programs)
            ((runs, each),) = probe.cost(ping_pong).values()
            spent = sum(bpf_sys.prog_info(fd).run_time_ns for fd in programs) - before
            ours.append(each)
            theirs.append(spent / runs)
    return Times(tuple(ours)), Times(tuple(theirs))


def _attached(make: Callable[[], AbstractContextManager[Any]]) -> Callable[[], float]:
    def measure() -> float:
        with make():
            return ping_pong()

    return measure


def agreement(probe: Any) -> float:
    """The worst ratio of our sum to schedstat's, of two cgroups whose hogs share a core."""
    with cgroup("bpfleet-bench-a") as a, cgroup("bpfleet-bench-b") as b:
        probe.rows("runq_latency")
        hogs = [start_in(place, "taskset", "-c", "0", sys.executable, "-c", HOG) for place in (a, b)]
        time.sleep(3)
        for each in hogs:
            os.kill(each.pid, 19)  # SIGSTOP: it leaves the CPU, and its last wait is in
        time.sleep(0.1)
        kernel = [run_delay(each.pid) for each in hogs]
        ours = [total for _, total, _ in gained(probe, a, b)]
        for each in hogs:
            each.kill()
            each.wait()
    shares = [mine / theirs for mine, theirs in zip(ours, kernel, strict=True)]
    return min(min(share, 1 / share) for share in shares)


def run() -> list[Row]:
    """Cost, slow-down and agreement."""
    stats = bpf_sys.enable_stats()
    try:
        with probing("runq_latency") as probe:
            ours, theirs = costs(probe)
            agreed = agreement(probe)
    finally:
        os.close(stats)
    slow = in_turns(
        {
            "none": _attached(nullcontext),
            "ours": _attached(lambda: probing("runq_latency")),
            "runqlat": _attached(runqlat),
        },
        ROUNDS,
    )
    text, peer = ours.text("ns"), f"runqlat {theirs.text('ns')}"
    return [
        Row("a wake-up and switch", text, peer, ratio_text(ours, theirs), "≤ 350 ns",
            ours.median <= TARGET_NS),
        Row("ping-pong with ours", slow["ours"].text("s CPU"), f"without {slow['none'].text('s')}",
            ratio_text(slow["ours"], slow["none"]), "per-CPU arrays elsewhere: 1.19×", None),
        Row("ping-pong with runqlat", slow["runqlat"].text("s CPU"), f"without {slow['none'].text('s')}",
            ratio_text(slow["runqlat"], slow["none"]), "", None),
        Row("sum against schedstat, the worse of two cgroups", f"{agreed:.4f}", "the kernel's run_delay", "",
            f"≥ {TARGET_SUM}", agreed >= TARGET_SUM),
    ]  # fmt: skip
