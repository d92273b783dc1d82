"""Profiles: off-CPU time beside libbpf-tools' offcputime, the on-CPU profile beside perf record.

The ping-pong's CPU time is measured with nothing attached, with ours and with offcputime, in turns. Shares of
a program whose ten functions take known parts of its time come from one run that both profilers watched.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from probing import Probing, probing
from profiled import ten_functions
from test_profile import perf_shares

from bench.common import Row, in_turns, ratio, ratio_text
from bench.runq_latency import ping_pong
from collector import bpf_sys
from collector.clocks import Clocks
from collector.ring import Ring
from collector.stacks import RECORD, Names, drain
from collector.symbols import Symbols

LOOPS, ROUNDS = 60_000, 7
SLOWER, CORE, POINTS = 1.10, 0.002, 3.0
SECONDS, PATIENCE, HERTZ = 10, 60, 199  # of its CPU time; of waiting for it


@contextmanager
def offcputime() -> Iterator[None]:
    """libbpf-tools' offcputime, attached."""
    tool = subprocess.Popen(["offcputime", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(2.0)
    try:
        assert tool.poll() is None, "offcputime does not run here"
        yield
    finally:
        tool.kill()
        tool.wait()


def with_ours() -> float:
    """The ping-pong under our probe."""
    with probing("off_cpu"):
        ping_pong(LOOPS // 4)  # T finds its place
        return ping_pong(LOOPS)


def with_theirs() -> float:
    """The ping-pong under offcputime."""
    with offcputime():
        return ping_pong(LOOPS)


def off_cpu() -> list[Row]:
    """How much slower the ping-pong is."""
    bare, ours, theirs = "bare", "ours", "theirs"
    times = in_turns({bare: lambda: ping_pong(LOOPS), ours: with_ours, theirs: with_theirs}, ROUNDS)
    least, median = ratio(times[ours], times[bare])
    return [
        Row(
            "off-CPU time with stacks: CPU time of a pipe ping-pong on one core, to that without it",
            ratio_text(times[ours], times[bare]),
            f"offcputime {ratio_text(times[theirs], times[bare])}",
            ratio_text(times[ours], times[theirs]),
            f"≤ {SLOWER:.2f}×",
            min(least, median) <= SLOWER,
        )
    ]


def on_cpu_cost() -> Row:
    """Run time of the program at 49 Hz while every CPU is busy, as a share of a core."""
    cpus = os.cpu_count() or 1
    busy = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(cpus)]
    stats = bpf_sys.enable_stats()
    try:
        with probing("cpu_profile") as probe:
            clocks = Clocks(probe.loaded, 49)
            begun = time.monotonic()
            ((runs, ns),) = probe.cost(lambda: time.sleep(5)).values()
            share = runs * ns / 1e9 / (time.monotonic() - begun) / cpus
            clocks.close()
    finally:
        os.close(stats)
        for each in busy:
            each.kill()
            each.wait()
    told = f"{share:.3%} of each core, {ns / 1000:.1f} µs a sample"
    return Row("on-CPU profile at 49 Hz, in the kernel", told, "", "", f"≤ {CORE:.1%}", share <= CORE)


def shares(probe: Probing, pid: int, contents: dict[int, set[str]], names: Names) -> dict[str, float]:
    """function → share of our samples of a process that have it on their stack."""
    keys, values = drain(probe.loaded.maps["cpu_profile"], probe.declared.streams[0])
    found: Counter[str] = Counter()
    mine = keys["pid"] == pid
    named, _ = names.of(keys["user_stack"][mine])
    for name, samples in zip(named.tolist(), values["samples"][mine].tolist(), strict=True):
        for function in contents.get(name, ()):
            found[function] += samples
    total = int(np.sum(values["samples"][mine]))
    return {function: count / total for function, count in found.items()}


def watch(probe: Probing, perf: "subprocess.Popen[bytes]", pid: int) -> dict[str, float]:
    """Learn stacks as the collector does, until perf ends; then :func:`shares`."""
    names, contents = Names(Symbols()), dict[int, set[str]]()
    ring = Ring(probe.loaded.maps["stacks"], RECORD)
    drain(probe.loaded.maps["cpu_profile"], probe.declared.streams[0])
    end = time.monotonic() + PATIENCE
    while cpu_seconds(pid) < SECONDS and time.monotonic() < end:
        time.sleep(0.1)
        for told in names.learn(ring.read(1 << 20)):
            contents[told.name] = set(told.frames.split(";"))
    ring.close()
    perf.send_signal(signal.SIGINT)
    perf.wait()
    return shares(probe, pid, contents, names)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, by the kernel."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def agreement() -> list[Row]:
    """Ten functions of known shares: ours, perf's, and the truth."""
    with tempfile.TemporaryDirectory() as directory, probing("cpu_profile") as probe:
        program, report = ten_functions(Path(directory)), Path(directory) / "perf.data"
        running = subprocess.Popen([str(program), str(PATIENCE + 5)])
        clocks = Clocks(probe.loaded, HERTZ)
        try:
            time.sleep(0.5)
            perf = subprocess.Popen(
                ["perf", "record", "-q", "-F", "999", "-g", "-e", "cpu-clock", "-o", str(report),
                 "-p", str(running.pid)],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            ours = watch(probe, perf, running.pid)
        finally:
            clocks.close()
            running.kill()
            running.wait()
        theirs = perf_shares(report)
    names = [f"work_{n}" for n in range(10, 0, -1)]
    to_perf = max(abs(ours.get(name, 0.0) - theirs.get(name, 0.0)) for name in names) * 100
    to_truth = (
        max(abs(ours.get(name, 0.0) - n / 55) for n, name in zip(range(10, 0, -1), names, strict=True)) * 100
    )
    what = "on-CPU profile of ten functions of known time: greatest difference of a share, to "
    target = f"≤ {POINTS:.0f} points"
    return [
        Row(
            what + "perf record's",
            f"{to_perf:.2f} points",
            "perf record -F 999",
            "",
            target,
            to_perf <= POINTS,
        ),
        Row(what + "the truth", f"{to_truth:.2f} points", "", "", target, to_truth <= POINTS),
    ]


def run() -> list[Row]:
    """Off-CPU, on-CPU, agreement."""
    return [*off_cpu(), on_cpu_cost(), *agreement()]
