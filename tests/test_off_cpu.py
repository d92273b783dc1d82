"""off_cpu: waits of known programs, estimated from samples, against clocks and the kernel's own accounts."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from probing import Probing, probing

from collector.stacks import drain

SLEEPER = """
import sys, time
input()
begun, spent = time.monotonic(), time.process_time()
for _ in range(60):
    time.sleep(0.04)
print(time.monotonic() - begun - time.process_time() + spent, flush=True)
input()
"""
# Many short waits, and now and then one that is a thousand times longer.
STALLS = """
import time
input()
begun, spent, long = time.monotonic(), time.process_time(), 0.0
for turn in range(2400):
    time.sleep(0.0001)
    if turn % 120 == 60:
        at = time.monotonic(); time.sleep(0.1); long += time.monotonic() - at
print(time.monotonic() - begun - time.process_time() + spent, long, flush=True)
input()
"""
MANY = """
import threading, time
input()
slept = []
def work():
    begun, busy = time.monotonic(), time.thread_time()
    while time.monotonic() < begun + 3: time.sleep(0.002)
    slept.append(time.monotonic() - begun - time.thread_time() + busy)
threads = [threading.Thread(target=work) for _ in range(24)]
for each in threads: each.start()
for each in threads: each.join()
print(sum(slept) + 3, flush=True)  # and the main thread, which waited for them
input()
"""
PREEMPTED = """
import time
input()
end = time.monotonic() + 2
while time.monotonic() < end: pass
print(flush=True)
input()
"""
STATES = ("sleeping", "blocked", "runnable", "stopped")


@pytest.fixture(scope="module")
def probe() -> Iterator[Probing]:
    with probing("off_cpu") as loaded:
        yield loaded


class Program:
    """A Python program that starts at a word and prints what it measured of itself."""

    def __init__(self, text: str, *before: str) -> None:
        self.process = subprocess.Popen(
            [*before, sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        time.sleep(0.5)  # its first wait, longer than the others

    def go(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def told(self) -> list[float]:
        assert self.process.stdout
        return [float(each) for each in self.process.stdout.readline().split()]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def taken(probe: Probing) -> list[tuple[Any, Any]]:
    """All rows since the last time, as the collector takes them."""
    stream = probe.declared.streams[0]
    return list(zip(*drain(probe.loaded.maps["off_cpu"], stream), strict=True))


def of(probe: Probing, *pids: int) -> list[tuple[Any, Any]]:
    return [(key, value) for key, value in taken(probe) if int(key["pid"]) in pids]


def is_short(value: Any) -> bool:
    """Not the wait for the word to begin."""
    return bool(int(value["off_ns"]) < 300_000_000 * int(value["weight"]))


def seconds(rows: list[tuple[Any, Any]], *states: str) -> float:
    wanted = [STATES.index(each) for each in states or STATES]
    return sum(int(value["off_ns"]) for key, value in rows if int(key["state"]) in wanted) / 1e9


@pytest.fixture(scope="module")
def exact() -> Iterator[Probing]:
    """With a budget that takes every wait of more than 65 µs."""
    with probing("off_cpu", settings={"off_cpu_budget": 1_000_000}) as loaded:
        time.sleep(1)  # in which T comes down
        yield loaded


def test_a_sleeper_is_known_to_a_few_percent(exact: Probing) -> None:
    program = Program(SLEEPER)
    try:
        taken(exact)
        program.go()
        (truth,) = program.told()
        rows = of(exact, program.process.pid)
    finally:
        program.kill()
    waited = [
        (key, value) for key, value in rows if int(value["off_ns"]) < 300_000_000 * int(value["weight"])
    ]
    assert seconds(waited) == pytest.approx(truth, rel=0.03)
    assert sum(int(value["weight"]) for _, value in waited) == pytest.approx(60, abs=6)
    assert all(int(key["kernel_stack"]) for key, value in waited if int(value["off_ns"]) > 1_000_000)
    assert seconds(rows, "sleeping") > 0.9 * seconds(rows)


def test_stalls_among_short_waits_are_not_missed(exact: Probing) -> None:
    """20 waits of 100 ms among 2,400 of 0.1 ms: what was expected says nothing of them."""
    program = Program(STALLS)
    try:
        taken(exact)
        program.go()
        truth, long = program.told()
        rows = of(exact, program.process.pid)
    finally:
        program.kill()
    waited = [
        (key, value) for key, value in rows if int(value["off_ns"]) < 300_000_000 * int(value["weight"])
    ]
    assert seconds(waited) == pytest.approx(truth, rel=0.05)
    told = sum(int(v["off_ns"]) for k, v in waited if int(v["off_ns"]) > 50_000_000 * int(v["weight"])) / 1e9
    assert told == pytest.approx(long, rel=0.05) or told < long  # others share rows with short waits


def test_samples_estimate_the_time_of_many_threads(probe: Probing) -> None:
    """24 threads that sleep in pieces of 2 ms, with the budget that is the default."""
    program = Program(MANY)
    try:
        taken(probe)
        program.go()
        (truth,) = program.told()
        time.sleep(0.2)
        rows = of(probe, program.process.pid)
    finally:
        program.kill()
    samples, weight = (sum(int(value[name]) for _, value in rows) for name in ("samples", "weight"))
    assert 10 < samples < weight / 2  # they were sampled
    assert seconds(rows) == pytest.approx(truth, rel=0.25)


def test_a_ping_pong_on_one_core(probe: Probing) -> None:
    """Waits of 3 µs, hundreds of thousands a second: some hundred samples tell their sum and number."""
    taken(probe)
    begun = time.monotonic()
    pipe = subprocess.Popen(
        ["taskset", "-c", "1", "perf", "bench", "sched", "pipe", "-l", "200000"], stdout=subprocess.DEVNULL
    )
    pids = {pipe.pid}
    while len(pids) < 2 and time.monotonic() < begun + 10:  # taskset becomes perf, which forks once
        pids |= {int(each) for each in Path(f"/proc/{pipe.pid}/task/{pipe.pid}/children").read_text().split()}
    _, pipe.returncode, used = os.wait4(pipe.pid, 0)
    wall = time.monotonic() - begun
    rows = of(probe, *pids)
    samples, weight = (sum(int(value[name]) for _, value in rows) for name in ("samples", "weight"))
    assert 10 < samples < 1000 * wall
    # Two tasks that run or wait: what is not CPU time is off-CPU time. What is owed at their end is drawn.
    assert seconds(rows) == pytest.approx(2 * wall - used.ru_utime - used.ru_stime, rel=0.35)
    assert weight == pytest.approx(400_000, rel=6 / samples**0.5)


def test_sharing_a_core_shows_as_runnable(exact: Probing) -> None:
    programs = [Program(PREEMPTED, "taskset", "-c", "0") for _ in range(2)]
    try:
        taken(exact)
        before = [run_delay(each.process.pid) for each in programs]
        for each in programs:
            each.go()
        for each in programs:
            each.told()
        truth = sum(run_delay(each.process.pid) for each in programs) - sum(before)
        pids = {each.process.pid for each in programs}
        rows = [row for row in taken(exact) if int(row[0]["pid"]) in pids]
    finally:
        for each in programs:
            each.kill()
    # schedstat counts each wait for a CPU; ours are those after the task had to make room.
    assert truth > 1_000_000_000
    assert seconds(rows, "runnable") * 1e9 == pytest.approx(truth, rel=0.06)


def run_delay(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])


def test_weights_are_one_over_the_chance(probe: Probing) -> None:
    """A wait of weight one was certain to be taken; nothing weighs less than that."""
    subprocess.run(
        ["perf", "bench", "sched", "messaging", "-g", "2", "-l", "100"], check=True, stdout=subprocess.DEVNULL
    )
    rows = taken(probe)
    assert len(rows) > 20
    assert all(int(value["weight"]) >= int(value["samples"]) >= 1 for _, value in rows)
    _, lost, _, _ = probe.counts()[0].tolist()
    assert lost <= len(rows) // 100


def test_the_budget_holds_under_a_storm() -> None:
    """Fifty samples a second are asked for; a hundred thousand waits a second do not make many more."""
    with probing("off_cpu", settings={"off_cpu_budget": 50}) as probe:
        pipe = ["perf", "bench", "sched", "pipe", "-l", "60000"]
        subprocess.run(pipe, check=True, stdout=subprocess.DEVNULL)
        taken(probe)
        begun = time.monotonic()
        subprocess.run(pipe, check=True, stdout=subprocess.DEVNULL)
        passed = time.monotonic() - begun
        samples = sum(int(value["samples"]) for _, value in taken(probe))
    assert samples < 50 * passed * 3 + 100
