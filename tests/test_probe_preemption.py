"""preemption and page_fault: who kept whom from a CPU, and every page fault, per cgroup."""

import os
import signal
import time
from pathlib import Path

import pytest
from probing import PROBES, probing
from test_probe_runq_latency import HOG
from workloads import cgroup_id, cgroups, favour, python_in

BY = next(
    each.argument.split(",")
    for stream in PROBES["runq_latency"].streams
    for each in stream.fields
    if (stream.name, each.name) == ("preemption", "by")
)
PINNED = "import os\nos.sched_setaffinity(0, {0})\nprint(flush=True)\n"
FAULTS = (
    "import mmap,resource,sys\n"
    "before = resource.getrusage(resource.RUSAGE_SELF)\n"
    "held = mmap.mmap(-1, 20000 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
    "held.madvise(mmap.MADV_NOHUGEPAGE)\n"
    "for at in range(0, 20000 * 4096, 4096): held[at] = 1\n"
    "after = resource.getrusage(resource.RUSAGE_SELF)\n"
    "print(after.ru_minflt, after.ru_majflt, after.ru_minflt - before.ru_minflt)\n"
)


@pytest.fixture(scope="module")
def probe():
    with probing("runq_latency") as loaded:
        yield loaded


def kept(probe, places) -> dict[tuple[str, int], dict[str, int]]:
    """(by, culprit) → what the cgroup suffered."""
    names = probe.aggregates["preemption"].value.names
    return {
        (BY[key["by"]], int(key["by_cgroup"])): {name: int(value[name]) for name in names}
        for key, value in probe.rows("preemption")
        if key["cgroup"] == cgroup_id(places)
    }


def run_for(seconds: float, *processes) -> int:
    """Let them run once all have begun, stop them; ns that the first waited for a CPU, by schedstat."""
    for each in processes:
        each.stdout.readline()
    time.sleep(seconds)
    for each in processes:
        os.kill(each.pid, signal.SIGSTOP)
    time.sleep(0.1)
    waited = int(Path(f"/proc/{processes[0].pid}/schedstat").read_text().split()[1])
    for each in processes:
        each.kill()
        each.communicate()
    return waited


def test_a_neighbour_is_told_by_name(probe):
    """Two cgroups on one core: each waits for the other, and for it by name."""
    with (
        cgroups("bpfleet-test-victim", "cpu") as victim,
        cgroups("bpfleet-test-neighbour", "cpu") as neighbour,
    ):
        favour(victim)
        favour(neighbour)
        probe.rows("preemption")
        waited = run_for(2, *(python_in(each, PINNED + HOG) for each in (victim, neighbour)))
        rows = kept(probe, victim)
        theirs = rows["other", cgroup_id(neighbour)]
    assert theirs["preempted"] > 10
    assert theirs["waits"] > 10
    # What else runs on this host had the core too; of the victim's waits nearly all are somebody's.
    assert 0.15 * waited < theirs["waited_ns"] <= waited
    assert sum(each["waited_ns"] for each in rows.values()) == pytest.approx(waited, rel=0.1)


def test_tasks_of_one_cgroup_keep_each_other_waiting(probe):
    with cgroups("bpfleet-test-same", "cpu") as places:
        favour(places)
        probe.rows("preemption")
        waited = run_for(1.5, *(python_in(places, PINNED + HOG) for _ in range(2)))
        rows = kept(probe, places)
        same = rows["same", cgroup_id(places)]
    assert same["preempted"] > 10
    assert same["waited_ns"] > 0.15 * waited


def test_a_quota_is_no_neighbour(probe):
    """Stopped by its quota, a task still wants to run while the CPU goes idle or to others: no `same`."""
    with cgroups("bpfleet-test-quota", "cpu") as places:
        quota = places["cpu"] / "cpu.cfs_quota_us"
        if quota.exists():
            quota.write_text("20000")
        else:
            (places["cpu"] / "cpu.max").write_text("20000 100000")
        probe.rows("preemption")
        run_for(2, python_in(places, PINNED + HOG))
        rows = kept(probe, places)
        number = cgroup_id(places)
    assert sum(each["preempted"] for (by, _), each in rows.items() if by != "same") >= 10
    assert ("same", number) not in rows or rows["same", number]["waited_ns"] < 50_000_000


def test_every_page_fault_is_counted_once(probe):
    """20,000 pages touched one by one, and what Python's start takes: as getrusage() has it."""
    with cgroups("bpfleet-test-fault") as places:
        probe.rows("page_fault")
        said, _ = python_in(places, FAULTS).communicate(timeout=30)
        rows = [value for key, value in probe.rows("page_fault") if key["cgroup"] == cgroup_id(places)]
    minor, major, touched = map(int, said.split())
    assert touched >= 20_000
    found = sum(int(each["minor"]) for each in rows)
    # Its last faults come after it asked; those of the shell before it moved are another cgroup's.
    assert minor - 400 <= found <= minor + 400
    assert sum(int(each["major"]) for each in rows) == pytest.approx(major, abs=5)
