"""syscall: exact counts per process, call and outcome; times; slow operations on files."""

import errno
import os
import subprocess
import time
from pathlib import Path

import pytest
from probing import probing

from collector import bpf_sys, probes, syscalls
from collector.windows import Windows
from schemas import declare
from schemas.config import Collector

NUMBERS = syscalls.numbers()
SHARE = 10  # TIMED_SHARE of the source
FAST = 10_000_000_000  # µs: no operation is slow


@pytest.fixture(scope="module")
def probe():
    with probing("syscall", settings={"slow_file_us": FAST, "tick_ns": tick_ns()}) as loaded:
        yield loaded


def tick_ns() -> int:
    return round(time.clock_getres(probes.MONOTONIC_COARSE) * 1e9)


def mine(probe, call: str, pid: int = 0) -> dict[str, dict]:
    """Rows of this process and call by outcome."""
    return {
        errno.errorcode.get(int(key["error"]), ""): value
        for key, value in probe.rows("syscall")
        if key["pid"] == (pid or os.getpid()) and key["syscall"] == NUMBERS[call]
    }


def test_calls_are_counted_exactly_by_outcome(probe):
    probe.rows("syscall")
    for _ in range(1234):
        os.getppid()
    assert int(mine(probe, "getppid")[""]["count"]) == 1234
    for _ in range(77):
        with pytest.raises(FileNotFoundError):
            Path("/nonexistent/x").rmdir()
    for _ in range(5):
        with pytest.raises(OSError, match="busy"):
            Path("/proc").rmdir()
    rows = mine(probe, "rmdir")
    assert {name: int(value["count"]) for name, value in rows.items()} == {"ENOENT": 77, "EBUSY": 5}


def test_every_thread_counts_for_its_process_and_names_it(probe):
    code = (
        "import os,threading\n"
        "def work():\n"
        " for _ in range(250): os.getppid()\n"
        "for _ in range(4): threading.Thread(target=work).start()\n"
    )
    probe.rows("syscall")
    child = subprocess.Popen(["/usr/bin/python3", "-c", code])
    child.wait()
    rows = [(k, v) for k, v in probe.rows("syscall") if k["pid"] == child.pid]
    ours = [(k, v) for k, v in rows if k["syscall"] == NUMBERS["getppid"]]
    assert sum(int(value["count"]) for _, value in ours) == 1000
    assert {key["comm"].decode() for key, _ in ours} == {"python3"}


def test_agrees_with_syscount(probe):
    """libbpf-tools' syscount of one process over the same calls."""
    code = (
        "import os,time,sys\nsys.stdin.readline()\nfor _ in range(5000): os.getppid()\nsys.stdin.readline()"
    )
    child = subprocess.Popen(["/usr/bin/python3", "-c", code], stdin=subprocess.PIPE, text=True)
    tool = subprocess.Popen(
        ["stdbuf", "-oL", "syscount", "-p", str(child.pid), "-d", "3"], stdout=subprocess.PIPE, text=True
    )
    assert tool.stdout and "Tracing" in tool.stdout.readline()
    probe.rows("syscall")
    child.stdin.write("\n")
    child.stdin.flush()
    text = tool.communicate(timeout=20)[0]
    ours = int(mine(probe, "getppid", child.pid)[""]["count"])
    child.communicate("\n")
    theirs = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("getppid"))
    assert ours == theirs == 5000


def test_what_blocks_is_timed_though_nobody_saw_it_begin(probe):
    """Without the entry's program: sleeps of 40 ms, known to a tick each, standing for themselves."""
    entry = probe.loaded.program("sys_enter")
    probe.loaded.release(entry)
    try:
        probe.rows("syscall")
        for _ in range(10):
            time.sleep(0.04)
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass  # running is not being blocked
        os.getppid()
        rows = probe.rows("syscall")
    finally:
        probe.loaded._open.append(bpf_sys.raw_tracepoint_open(entry.fd, "sys_enter"))
    ours = {int(k["syscall"]): v for k, v in rows if k["pid"] == os.getpid() and not k["error"]}
    slept = ours[NUMBERS["clock_nanosleep"]]
    assert slept["count"] == slept["timed"] == 10
    assert int(slept["time_ns"]) == pytest.approx(10 * 40e6, abs=10 * tick_ns() + 20e6)
    assert ours[NUMBERS["getppid"]]["timed"] == 0


def test_what_is_seen_to_begin_is_timed(probe):
    """All calls here, as the entry is watched all the time; in a collector each stands for SHARE."""
    probe.rows("syscall")
    probe.rows("syscall_latency")
    begun = time.monotonic_ns()
    for _ in range(20_000):
        os.getppid()
    passed = time.monotonic_ns() - begun
    row = mine(probe, "getppid")[""]
    assert row["timed"] == row["count"] == 20_000
    assert 20_000 * 20 < row["time_ns"] / SHARE < passed
    latencies = sum(
        v["latencies"].sum() for k, v in probe.rows("syscall_latency") if k["syscall"] == NUMBERS["getppid"]
    )
    assert int(latencies) >= 20_000 * SHARE


def test_windows_are_a_tenth_of_the_time_and_estimate_the_whole():
    """As a collector runs it: a steady load's calls are all counted, about a tenth are timed."""
    (attached,), failed, _ = probes.load([declare.load()["syscall"]], Collector())
    assert not failed
    windows = Windows([attached])
    ((_, counts), *_) = attached.aggregates
    try:
        windows.start()
        counts.read()
        end, calls = time.monotonic() + 6, 0
        while time.monotonic() < end:
            for _ in range(200):
                os.getppid()
            calls += 200
            time.sleep(0.001)
        windows.stop()
        keys, values = counts.read()
    finally:
        windows.stop()
        attached.close()
    (row,) = (v for k, v in zip(keys, values, strict=True)
              if k["pid"] == os.getpid() and k["syscall"] == NUMBERS["getppid"])  # fmt: skip
    assert row["count"] == calls
    assert 0.05 < row["timed"] / calls < 0.2
    mean = row["time_ns"] / SHARE / row["timed"]
    assert 20 < mean < 20_000


@pytest.fixture
def slow(probe):
    """Everything that is timed counts as slow."""
    probe.loaded.set("slow_file_us", 0)
    probe.events("file_io", seconds=0)
    yield
    probe.loaded.set("slow_file_us", FAST)


def test_slow_operations_on_files_tell_what_and_where(probe, slow, tmp_path):
    file = tmp_path / "journal"
    fd = os.open(file, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 10_000)
    os.fsync(fd)
    os.pread(fd, 4096, 0)
    os.close(fd)
    with pytest.raises(FileNotFoundError):
        os.open(tmp_path / "missing", os.O_RDONLY)
    file.rename(tmp_path / "other")
    reader, writer = os.pipe()
    os.write(writer, b"pipes are no files")
    os.close(reader)
    os.close(writer)
    names = syscalls.names()
    mine = [
        (names[int(each["operation"])], each["file"].decode(), int(each["bytes"]),
         errno.errorcode.get(int(each["error"]), ""))
        for each in probe.events("file_io", lambda found: sum(e["file"] == b"journal" for e in found) >= 4)
        if each["pid"] == os.getpid()
    ]  # fmt: skip
    expected = [
        ("openat", "journal", 0, ""),
        ("write", "journal", 10_000, ""),
        ("fsync", "journal", 0, ""),
        ("pread64", "journal", 4096, ""),
    ]
    assert [each for each in mine if each[1] == "journal"] == expected
    paths = {(operation, path[:63], error) for operation, path, _, error in mine if "/" in path}
    assert ("openat", str(tmp_path / "missing")[:63], "ENOENT") in paths
    assert ("rename", str(file)[:63], "") in paths
    assert not [each for each in mine if each[0] == "write" and each[2] == 18]


def test_the_file_system_and_device_are_named(probe, slow, tmp_path):
    place = Path("/var/tmp/bpfleet-test-file")
    try:
        place.write_bytes(b"x" * 100)
        rows = probe.events("file_io", lambda found: any(e["file"] == b"bpfleet-test-file" for e in found))
        stat = place.stat()
    finally:
        place.unlink()
    (row, *_) = (each for each in rows if each["file"] == b"bpfleet-test-file")
    assert int(row["device"]) == os.major(stat.st_dev) << 20 | os.minor(stat.st_dev)
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    assert row["filesystem"].decode() in {words[2] for words in mounts}
    assert row["latency_ns"] > 0


def test_cost_is_below_200_ns_a_call(probe):
    """Of the exit's program, which alone is always attached; an empty one shows 48 ns here."""
    entry = probe.loaded.program("sys_enter")
    probe.loaded.release(entry)
    stats = bpf_sys.enable_stats()
    try:
        cost = probe.cost(lambda: [os.getppid() for _ in range(100_000)])
    finally:
        os.close(stats)
        probe.loaded._open.append(bpf_sys.raw_tracepoint_open(entry.fd, "sys_enter"))
    runs, each = cost["sys_exit"]
    assert runs >= 100_000
    assert each <= 200
