"""runq_latency: the waits of known tasks, per cgroup, against the kernel's own schedstat."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from probing import probing

from collector import bpf_sys
from collector.bpf_sys import Command

HOG = "while True: pass"


@pytest.fixture(scope="module")
def probe():
    with probing("runq_latency") as loaded:
        yield loaded


@contextmanager
def cgroup(name: str):
    """A cgroup in the unified hierarchy, removed afterwards; what runs in it is killed."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    place = Path(next(where for _, where, kind, *_ in mounts if kind == "cgroup2")) / name
    place.mkdir()
    try:
        yield place
    finally:
        for _ in range(100):
            for pid in (place / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            try:
                place.rmdir()
                break
            except OSError:
                time.sleep(0.02)


def start_in(place: Path, *command: str) -> subprocess.Popen:
    """Run a command in a cgroup from its first instruction on."""
    script = f'echo $$ > {place}/cgroup.procs; exec "$@"'
    return subprocess.Popen(["sh", "-c", script, "sh", *command], stdout=subprocess.DEVNULL)


def run_delay(pid: int) -> int:
    """Nanoseconds all threads of a process have waited for a CPU."""
    stats = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(each.read_text().split()[1]) for each in stats)


def gained(probe, *places: Path) -> list[tuple[int, int, list[int]]]:
    """(count, ns, histogram) of each cgroup since the last read."""
    rows = {int(key["cgroup"]): value for key, value in probe.rows("runq_latency")}
    found = [rows.get(place.stat().st_ino) for place in places]
    return [
        (int(each["count"]), int(each["sum_ns"]), each["waits"].tolist()) if each is not None else (0, 0, [])
        for each in found
    ]


def test_two_hogs_on_one_core_agree_with_schedstat(probe):
    with cgroup("bpfleet-test-a") as a, cgroup("bpfleet-test-b") as b:
        probe.rows("runq_latency")
        hogs = [start_in(place, "taskset", "-c", "0", sys.executable, "-c", HOG) for place in (a, b)]
        time.sleep(3)
        for each in hogs:
            os.kill(each.pid, signal.SIGSTOP)
        time.sleep(0.1)
        theirs = [run_delay(each.pid) for each in hogs]
        ours = gained(probe, a, b)
        for each in hogs:
            each.kill()
            each.wait()
    for kernel, (count, total, waits) in zip(theirs, ours, strict=True):
        assert kernel > 500_000_000
        assert total / kernel == pytest.approx(1, abs=0.015)
        assert sum(waits) == count > 50
        low = sum(n * (1 << bucket >> 1) for bucket, n in enumerate(waits))
        assert low * 1000 <= total <= (2 * low + count) * 1000


def test_many_tasks_that_sleep_wake_and_move_agree_with_schedstat(probe):
    """Four times more busy threads than cores, moved between cores, with pauses."""
    busy = (
        "import threading,time\n"
        "def work():\n"
        " end=time.monotonic()+3\n"
        " while time.monotonic()<end:\n"
        "  sum(range(20000)); time.sleep(0.0002)\n"
        "threads=[threading.Thread(target=work) for _ in range(8)]\n"
        "[each.start() for each in threads]; [each.join() for each in threads]; time.sleep(60)\n"
    )
    with cgroup("bpfleet-test-c") as place:
        probe.rows("runq_latency")
        processes = [start_in(place, sys.executable, "-c", busy) for _ in range(2)]
        started = time.monotonic()
        while time.monotonic() - started < 2:
            for each in processes:
                for thread in Path(f"/proc/{each.pid}/task").iterdir():
                    os.sched_setaffinity(int(thread.name), {int(thread.name) % 2})
            time.sleep(0.05)
            for each in processes:
                for thread in Path(f"/proc/{each.pid}/task").iterdir():
                    os.sched_setaffinity(int(thread.name), {0, 1})
            time.sleep(0.05)
        for each in processes:
            os.kill(each.pid, signal.SIGSTOP)
        time.sleep(0.2)
        kernel = sum(run_delay(each.pid) for each in processes)
        ((count, total, waits),) = gained(probe, place)
        for each in processes:
            each.kill()
            each.wait()
    assert kernel > 100_000_000
    assert total / kernel == pytest.approx(1, abs=0.015)
    assert sum(waits) == count


@contextmanager
def runqlat():
    """libbpf-tools' runqlat, attached; yields descriptors of its programs."""
    before = set(bpf_sys.prog_ids())
    tool = subprocess.Popen(["runqlat", "30", "1"], stdout=subprocess.DEVNULL)
    fds: list[int] = []
    try:
        end = time.monotonic() + 10
        while len(fds) < 3 and time.monotonic() < end:
            time.sleep(0.1)
            for number in set(bpf_sys.prog_ids()) - before:
                before.add(number)
                fds.append(bpf_sys.fd_by_id(Command.PROG_FD_BY_ID, number))
        yield fds
    finally:
        for fd in fds:
            os.close(fd)
        tool.kill()
        tool.wait()


def test_cheaper_than_libbpf_tools_and_350_ns_a_switch(probe):
    """Both attached to the same run of wake-ups and switches on one core, by the kernel's statistics."""
    pipe = ["taskset", "-c", "1", "perf", "bench", "sched", "pipe", "-l", "20000"]
    stats = bpf_sys.enable_stats()
    try:
        with runqlat() as theirs:
            before = sum(bpf_sys.prog_info(fd).run_time_ns for fd in theirs)
            (cost,) = probe.cost(lambda: subprocess.run(pipe, check=True, stdout=subprocess.DEVNULL)).values()
            spent = sum(bpf_sys.prog_info(fd).run_time_ns for fd in theirs) - before
    finally:
        os.close(stats)
    runs, ours = cost
    assert runs > 40_000
    assert ours <= 350
    assert ours < 0.6 * spent / runs


def test_every_switch_is_counted_or_declared(probe):
    """Reads lose nothing: what is discarded (a pid's place taken by another task) is rare and counted."""
    subprocess.run(
        ["perf", "bench", "sched", "messaging", "-g", "2", "-l", "200"], check=True, stdout=subprocess.DEVNULL
    )
    count = sum(int(value["count"]) for _, value in probe.rows("runq_latency"))
    _, lost, discarded, _ = probe.counts()[0].tolist()
    assert lost == 0
    assert count > 5_000
    assert discarded < count / 100
