"""Programs timed for a share of the time: what the kernel says in windows stands for the whole."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from collector import bpf_sys, timing, tracefs
from collector.bpf_sys import ProgInfo, ProgType
from collector.privileges import Capability
from collector.timing import CHILD, SHARE, Keeper, Timing, Took

KEY = ("probe", "hook")
RETURN_0 = bytes.fromhex("b700000000000000" + "9500000000000000")


@contextmanager
def yields_counted() -> Iterator[int]:
    """A program that runs at each of this thread's (and others') sched_yield."""
    tracefs.mount()
    program = bpf_sys.prog_load(ProgType.TRACEPOINT, RETURN_0, "test_timing")
    event = tracefs.tracepoint_event("syscalls", "sys_enter_sched_yield")
    tracefs.attach(event, program)
    yield program
    os.close(event)
    os.close(program)


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    made = Keeper.open()
    assert made
    yield made
    made.close()


def test_programs_are_timed_while_the_descriptor_is_open(keeper: Keeper) -> None:
    if bpf_sys.STATS_SYSCTL.read_text().strip() != "0":
        pytest.fail("this host times programs always")
    with yields_counted() as program:
        fd = keeper.turn_on()
        for _ in range(23):
            os.sched_yield()
        os.close(fd)
        assert bpf_sys.prog_info(program).run_count >= 23


def test_the_keeper_has_one_capability_and_ends_with_its_collector(keeper: Keeper) -> None:
    os.close(keeper.turn_on())  # it is up
    child = keeper._child
    assert child
    status = Path(f"/proc/{child.pid}/status").read_text()
    held = {line.split(":")[0]: int(line.split()[1], 16) for line in status.splitlines() if line[:3] == "Cap"}
    assert set(held.values()) == {1 << Capability.SYS_ADMIN}
    keeper._channel.close()
    assert child.wait(5) == 0


def test_a_service_does_it_for_who_must_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "timing.sock"
    service = subprocess.Popen([sys.executable, "-m", "collector.timing_keeper", str(place)])
    try:
        while not place.exists():
            time.sleep(0.01)
        assert place.stat().st_mode & 0o777 == 0o600
        monkeypatch.setattr(timing, "SERVICE", place)
        monkeypatch.setattr(timing.privileges, "has", lambda _: False)
        for _ in range(2):  # one after the other, and the first may go without a word
            asking = Keeper.open()
            assert asking
            os.close(asking.turn_on())
            asking.close()
    finally:
        service.terminate()
        service.wait()
    assert Keeper.open() is None


def saying(clock: Timing, ns: int, runs: int, missed: int = 0) -> Timing:
    """The clock, to which the kernel says this from now on."""
    clock.measure = lambda: {KEY: ProgInfo(1, 1, "p", ns, runs, missed, 2)}
    return clock


def test_what_a_window_saw_stands_for_its_interval(keeper: Keeper) -> None:
    clock = saying(Timing(keeper), 4_000, 40)
    clock.interval(90.0, 10.0)
    assert clock.at == 90, "the first comes at once"
    clock.interval(100.0, 10.0)
    assert 100 <= clock.at <= 109
    clock.step(clock.at - 0.001)
    assert clock._fd < 0, "too early"
    began = clock.at
    saying(clock, 5_000, 50).step(began)
    assert clock._fd >= 0 and clock.at == pytest.approx(began + 1.0)
    saying(clock, 6_000, 60).step(clock.at)
    assert clock._fd < 0
    took = saying(clock, 7_000, 70, missed=3).interval(110.0, 10.0)[KEY]
    assert (took.run_ns, took.runs, took.missed) == (10_000, 100, 3), "a tenth was seen"
    took = saying(clock, 9_000, 90, missed=4).interval(111.0, 10.0)[KEY]
    assert (took.run_ns, took.runs, took.missed) == (0, 0, 1), "no window: only that is known"
    clock.close()


def test_a_window_that_is_held_open_misses_nothing(keeper: Keeper) -> None:
    clock = saying(Timing(keeper), 1_000, 10)
    begun = time.monotonic()
    clock.interval(begun, 10.0)
    clock.hold("a")
    clock.hold("b")
    clock.release("a")
    clock.step(begun + 9.99)
    took = saying(clock, 10_500, 105).interval(begun + 10, 10.0)[KEY]
    assert (took.run_ns, took.runs) == (pytest.approx(9_500, rel=0.01), pytest.approx(95, rel=0.02))
    assert clock._fd >= 0, "open again at once"
    clock.release("b")
    saying(clock, 20_500, 205).step(begun + 20)
    assert clock._fd < 0
    assert clock.interval(begun + 20, 10.0)[KEY].runs == 100
    clock.close()


def test_without_a_keeper_what_the_kernel_says_is_taken_whole() -> None:
    clock = saying(Timing(None), 100, 1)
    clock.interval(0.0, 5.0)
    clock.step(3.0)
    assert saying(clock, 300, 3).interval(5.0, 5.0)[KEY].run_ns == 200
    clock.measure = lambda: {("new", "x"): ProgInfo(2, 1, "p", 9, 9, 0, 2)}
    assert clock.interval(6.0, 5.0) == {("new", "x"): Took(9, 9, 0)}


def test_a_keeper_that_dies_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    clock = Timing(Keeper(ours))
    for at in (0.0, 10.0, 20.0):
        clock.interval(at, 10.0)
        clock.step(at + 9.9)
    assert [each for each in caplog.messages if "untimed from now on" in each] == caplog.messages[:1]
    assert len(caplog.messages) == 1
    clock.close()


def test_a_window_is_a_share_of_the_interval_at_random_places() -> None:
    clock = Timing(Keeper(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)))
    clock.interval(0.0, 5.0)
    places = []
    for _ in range(50):
        clock.interval(0.0, 5.0)
        places.append(clock.at)
        assert clock._ends - clock.at == pytest.approx(SHARE * 5)
    assert min(places) < 1 and max(places) > 3.5 and max(places) <= 4.5
    assert CHILD.exists()
