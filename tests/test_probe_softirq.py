"""softirq: counts per vector against /proc/softirqs, times against the time that passed."""

import os
import socket
import time
from pathlib import Path

import pytest
from probing import probing


@pytest.fixture(scope="module")
def probe():
    with probing("softirq") as loaded:
        yield loaded


def kernel() -> dict[str, int]:
    """What the kernel has counted since it booted, over all CPUs."""
    lines = [line.split() for line in Path("/proc/softirqs").read_text().splitlines()[1:]]
    return {each[0].rstrip(":"): sum(map(int, each[1:])) for each in lines}


def datagrams(count: int) -> None:
    """Each makes a NET_RX on loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        for _ in range(count):
            one.sendto(b"x", one.getsockname())
            one.recv(16)


def test_counts_agree_with_proc_softirqs(probe):
    names = {number: name.removesuffix("_SOFTIRQ") for number, name in probe.enums["HI_SOFTIRQ"].items()}
    probe.rows("softirq")
    before = kernel()
    datagrams(20_000)
    time.sleep(0.3)
    rows = {names[int(key["vector"])]: value for key, value in probe.rows("softirq")}
    after = kernel()
    assert rows["NET_RX"]["count"] >= 20_000
    for name in ("NET_RX", "TIMER", "SCHED", "RCU"):
        counted = int(rows[name]["count"])
        assert counted == pytest.approx(after[name] - before[name], rel=0.03, abs=20), name


def test_times_are_an_estimate_of_all(probe):
    """One in four is timed, for four: the histogram sums to about the count, the time to less than passed."""
    probe.rows("softirq")
    begun = time.monotonic_ns()
    datagrams(20_000)
    rows = probe.rows("softirq")
    passed = time.monotonic_ns() - begun
    (net,) = (
        value for key, value in rows if probe.enums["HI_SOFTIRQ"][int(key["vector"])].startswith("NET_RX")
    )
    assert int(net["times"].sum()) == pytest.approx(int(net["count"]), rel=0.1)
    low = sum(n * (1 << bucket >> 1) for bucket, n in enumerate(net["times"].tolist()))
    assert low * 1000 <= net["time_ns"] <= (2 * low + net["count"] * 1.1) * 1000
    assert 20_000 * 200 < net["time_ns"] < passed * (os.cpu_count() or 1)
