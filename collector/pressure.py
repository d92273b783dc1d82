"""The streams `pressure` and `cgroup_pressure`: what the kernel says of itself each second.

A thread of its own reads a dozen small files for the host and, for each cgroup that used a CPU since it was
last looked at, those of its controllers (:mod:`collector.pressure_cgroup`). What a kernel lacks reads 0.
"""

import logging
import os
import threading
import time
from pathlib import Path

from collector.clock import now_us
from collector.companion import Companion, Row
from collector.pressure_cgroup import CgroupReader, gained
from collector.pressure_controllers import Numbers, psi, read, table

log = logging.getLogger("bpfleet.collector")
SECOND = 1.0
TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")
GAUGES = {"cores", "running", "blocked", "memory_available_bytes"}  # as they are; all else is what was gained


class Pressure(Companion):
    """Reads and ships once a second until :meth:`stop`."""

    def __init__(self) -> None:
        super().__init__()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pressure", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Read no more."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(2 * SECOND)

    def _run(self) -> None:
        cgroups = CgroupReader()
        before, at_us = host_numbers(), now_us()
        cgroups.rows()
        due = time.monotonic() + SECOND
        while not self._end.wait(max(due - time.monotonic(), 0)):
            due = max(due + SECOND, time.monotonic() - SECOND)
            try:
                now, ts = host_numbers(), now_us()
                shared = {"ts": ts, "interval_us": ts - at_us}
                self.put("pressure", {**gained(before, now, GAUGES), **shared})
                for row in cgroups.rows():
                    self.put("cgroup_pressure", _scaled(row, ts - at_us) | shared)
                before, at_us = now, ts
            except OSError as error:
                log.warning("pressure cannot be read: %s; trying again", error)


def _scaled(row: Row, interval_us: int) -> Row:
    """Limits are read as so much a second; a row has what they grant in its interval."""
    for name in ("quota_us", "io_limit_requests", "io_limit_bytes"):
        row[name] = row[name] * interval_us // 1_000_000
    return row


def host_numbers(proc: Path = Path("/proc")) -> Numbers:
    """What the kernel has counted since it booted; files that it lacks count as 0."""
    pressure = {
        f"{name}_{kind}_us": value
        for name, kinds in (("cpu", ("some",)), ("memory", ("some", "full")), ("io", ("some", "full")))
        for kind, value in psi(read(proc / "pressure" / name)).items()
        if kind in kinds
    }
    virtual = table(read(proc / "vmstat"))
    return {
        **pressure,
        **_cpus(read(proc / "stat")),
        **_tcp(read(proc / "net/snmp")),
        "memory_available_bytes": table(read(proc / "meminfo")).get("MemAvailable:", 0) * 1024,
        "major_faults": virtual.get("pgmajfault", 0),
        "refaults": sum(virtual.get(f"workingset_refault_{kind}", 0) for kind in ("anon", "file")),
        "direct_scans": virtual.get("pgscan_direct", 0),
        "oom_kills": virtual.get("oom_kill", 0),
    }


def _cpus(text: str) -> Numbers:
    """/proc/stat: the times of all CPUs together in µs, how many there are, tasks at this moment."""
    lines = [line.split() for line in text.splitlines()]
    user, nice, system, idle, iowait, irq, softirq, steal = (int(each) * TICK_US for each in lines[0][1:9])
    single = {line[0]: int(line[1]) for line in lines if line[0] in ("procs_running", "procs_blocked")}
    return {
        "user_us": user + nice,
        "system_us": system,
        "irq_us": irq + softirq,
        "steal_us": steal,
        "idle_us": idle + iowait,
        "cores": sum(line[0].startswith("cpu") for line in lines) - 1,
        "running": single["procs_running"],
        "blocked": single["procs_blocked"],
    }


def _tcp(text: str) -> Numbers:
    """/proc/net/snmp: a line of names, a line of values."""
    lines = [line.split()[1:] for line in text.splitlines() if line.startswith("Tcp:")]
    found = dict(zip(*lines, strict=True)) if len(lines) == 2 else {}
    return {
        "tcp_segments": int(found.get("OutSegs", 0)),
        "tcp_retransmits": int(found.get("RetransSegs", 0)),
    }
