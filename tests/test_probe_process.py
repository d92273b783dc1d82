"""process: known programs started and ended give exactly their rows, as wait() tells them."""

import os
import signal
import subprocess
import time

import pytest
from probing import probing


@pytest.fixture(scope="module")
def probe():
    with probing("process") as loaded:
        yield loaded


def ours(events) -> list:
    return [each for each in events if each["parent_pid"] == os.getpid()]


def test_23_execs_are_23_rows_with_their_exit_codes(probe):
    begun = time.monotonic_ns()
    for code in range(23):
        assert subprocess.run(["/bin/sh", "-c", f"exit {code}"], check=False).returncode == code
    ended = time.monotonic_ns()
    execs = ours(probe.events("process_exec", lambda found: len(ours(found)) >= 23))
    pids = {int(each["pid"]) for each in execs}

    def ended_ones(events) -> list:
        return [each for each in ours(events) if int(each["pid"]) in pids]

    exits = ended_ones(probe.events("process_exit", lambda found: len(ended_ones(found)) >= 23))
    assert [each["file"].decode() for each in execs] == ["/bin/sh"] * 23
    assert {each["comm"].decode() for each in execs} == {"sh"}
    assert [int(each["exit_code"]) for each in exits] == list(range(23))
    assert [int(each["pid"]) for each in exits] == [int(each["pid"]) for each in execs]
    assert all(begun < each["ts"] < ended for each in [*execs, *exits])
    assert {int(each["signal"]) for each in exits} == {0}
    assert {int(each["uid"]) for each in [*execs, *exits]} == {os.getuid()}


def test_duration_and_signal(probe):
    sleeper = subprocess.Popen(["sleep", "30"])
    time.sleep(0.3)
    sleeper.send_signal(signal.SIGTERM)
    sleeper.wait()
    rows = probe.events("process_exit", lambda found: any(each["pid"] == sleeper.pid for each in found))
    (row,) = (each for each in rows if each["pid"] == sleeper.pid)
    assert (row["signal"], row["exit_code"], row["comm"].decode()) == (signal.SIGTERM, 0, "sleep")
    assert 290_000 < row["duration_us"] < 2_000_000


def test_threads_are_no_processes(probe):
    """Eight threads that end before their process, whose last thread calls exit_group."""
    code = "import threading,os\nfor _ in range(8): threading.Thread(target=int).start()\nos._exit(7)"
    probe.events("process_exit", seconds=0)
    child = subprocess.Popen(["python3", "-c", code])
    assert child.wait() == 7
    rows = probe.events("process_exit", lambda found: any(each["pid"] == child.pid for each in found))
    assert [int(each["exit_code"]) for each in rows if each["pid"] == child.pid] == [7]


def test_nothing_is_lost(probe):
    assert probe.counts()[:, 1].tolist() == [0, 0]
