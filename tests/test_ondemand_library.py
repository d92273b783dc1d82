"""Each ready probe on this host: it runs and counts a workload, where one is at hand; or it says why not."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ondemand import Alone, alone, python, total, until

from fleet import probe_choice
from schemas.errors import UsageError

LIBRARY = probe_choice.ready()
# What this host may lack, and what it must say then.
MAY_LACK = {
    "python-gc": "has no marker python:gc__start",
    "java-gc": "there is no libjvm on this host",
}
OPENS = """
import os, sys
for n in range(23):
    os.close(os.open("/etc/hostname", os.O_RDONLY))
    try: os.open("/nonexistent/" + str(n), 0)
    except OSError: pass
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Alone]:
    with alone(probe_max_cpu=1.0) as made:
        yield made


def spec(name: str, **more: Any) -> dict[str, Any]:
    return probe_choice.choose(name, more).spec


def test_there_are_fifteen_and_each_is_described() -> None:
    assert len(LIBRARY) >= 15
    for file in LIBRARY.values():
        assert len(probe_choice.read(file).about) > 20


@pytest.mark.parametrize("name", sorted(LIBRARY))
def test_attaches_or_says_why_not(name: str, host: Alone) -> None:
    outcome = host.run(name, spec(name, pid=os.getpid()) if name == "heap-outstanding" else spec(name))
    host.end(name)
    if outcome.state != "applied":
        assert name in MAY_LACK and MAY_LACK[name] in outcome.reason, outcome


def test_a_heap_without_a_process_is_refused_with_advice() -> None:
    with pytest.raises(UsageError, match="by pid or cgroup"):
        spec("heap-outstanding")


def test_exec_failures(host: Alone) -> None:
    assert host.run("exec-failures", spec("exec-failures")).state == "applied"
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            subprocess.run(["/nonexistent/bpfleet"], check=False)
    rows = [row for row in host.end("exec-failures") if row["key1"] == "/nonexistent/bpfleet"]
    assert len(rows) == 3
    assert {row["key2"] for row in rows} == {"ENOENT"}


def test_signals_sent(host: Alone) -> None:
    assert host.run("signals-sent", spec("signals-sent")).state == "applied"
    python(
        "import os, signal\nsignal.signal(10, signal.SIG_IGN)\nfor _ in range(23): os.kill(os.getpid(), 10)"
    )
    rows = host.end("signals-sent")
    assert total(rows, key1="10", comm="python3", key2="python3") == 23


def test_syscall_errors_have_names(host: Alone) -> None:
    assert host.run("syscall-errors", spec("syscall-errors")).state == "applied"
    python("import ctypes; ctypes.CDLL(None).prctl(15, b'erring')\n" + OPENS)
    rows = host.end("syscall-errors")
    assert total(rows, comm="erring", key1="openat", key2="ENOENT") == 23


def test_dns(host: Alone) -> None:
    assert host.run("dns", spec("dns")).state == "applied"
    python("import socket\nfor _ in range(3): socket.getaddrinfo('localhost', 80)")
    rows = [row for row in host.end("dns") if row["key1"] == "localhost" and row["comm"] == "python3"]
    assert len(rows) == 3
    assert all(
        row["names"] == "name,retval,latency" and row["int3"] > 1000 and row["int2"] == 0 for row in rows
    )


def test_fsync_latency(host: Alone, tmp_path: Path) -> None:
    assert host.run("fsync-latency", spec("fsync-latency")).state == "applied"
    python(
        "import ctypes, os, sys; ctypes.CDLL(None).prctl(15, b'syncing')\n"
        "fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\n"
        "for _ in range(23): os.write(fd, b'x'); os.fsync(fd)",
        str(tmp_path / "file"),
    )
    rows = host.end("fsync-latency")
    assert total(rows, comm="syncing") == 23
    assert all(
        row["bucket_from"] * row["count"] <= row["sum"] <= row["bucket_to"] * row["count"] for row in rows
    )


def test_bash_readline(host: Alone) -> None:
    assert host.run("bash-readline", spec("bash-readline")).state == "applied"
    shell = ["script", "-qc", "bash --norc -i", "/dev/null"]
    subprocess.run(
        shell, input=b"echo bpfleet-was-here\nexit\n", capture_output=True, timeout=30, check=False
    )
    lines = [row["key1"] for row in host.end("bash-readline")]
    assert "echo bpfleet-was-here" in lines


def test_block_latency(host: Alone, tmp_path: Path) -> None:
    assert host.run("block-latency", spec("block-latency")).state == "applied"
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={tmp_path / 'file'}", "bs=4096", "count=23", "oflag=direct,sync"],
        capture_output=True, check=True,
    )  # fmt: skip
    rows = until(lambda: [row for row in host.found("block-latency") if row["comm"] == "dd"])
    host.end("block-latency")
    assert total(rows) >= 1


def test_page_faults_are_weighted_by_their_period(host: Alone) -> None:
    assert host.run("page-faults", spec("page-faults")).state == "applied"
    python("import ctypes, mmap; ctypes.CDLL(None).prctl(15, b'faulty')\n"
           "m = mmap.mmap(-1, 40 << 20, flags=34)\n"
           "for n in range(0, 40 << 20, 4096): m[n] = 1")  # fmt: skip
    rows = host.end("page-faults")
    assert 9_000 <= total(rows, comm="faulty") <= 13_000, "10,240 pages were touched"
    assert all(row["user_stack"] for row in rows if row["comm"] == "faulty" and row["count"] > 1000)
