"""The stream `pressure`: what the kernel says of the whole host each second, from a dozen small files.

What a kernel lacks reads 0. Of single cgroups :mod:`collector.pressure_cgroup` tells.
"""

import os

from collector.companion import Row
from collector.pressure_cgroup import gained
from collector.pressure_controllers import Numbers, psi, read, table

TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")
VIRTUAL = ("pgmajfault", "workingset_refault_", "pgscan_direct", "oom_kill")  # of /proc/vmstat's lines
GAUGES = {"cores", "running", "blocked", "memory_available_bytes"}  # as they are; all else is what was gained


class HostReader:
    """What the host gained between two calls of :meth:`rows`."""

    def __init__(self) -> None:
        self._before: Numbers = {}

    def rows(self) -> list[Row]:
        """One row; the first is since the boot."""
        before, self._before = self._before, host_numbers()
        return [gained(before, self._before, GAUGES)]


def host_numbers(proc: str = "/proc") -> Numbers:
    """What the kernel has counted since it booted; files that it lacks count as 0."""
    pressure = {
        f"{name}_{kind}_us": value
        for name, kinds in (("cpu", ("some",)), ("memory", ("some", "full")), ("io", ("some", "full")))
        for kind, value in psi(read(f"{proc}/pressure/{name}")).items()
        if kind in kinds
    }
    available = table(_lines(read(f"{proc}/meminfo"), ("MemAvailable:",)))
    virtual = table(_lines(read(f"{proc}/vmstat"), VIRTUAL))
    return {
        **pressure,
        **_cpus(read(f"{proc}/stat")),
        **_tcp(read(f"{proc}/net/snmp")),
        "memory_available_bytes": available.get("MemAvailable:", 0) * 1024,
        "major_faults": virtual.get("pgmajfault", 0),
        "refaults": sum(virtual.get(f"workingset_refault_{kind}", 0) for kind in ("anon", "file")),
        "direct_scans": virtual.get("pgscan_direct", 0),
        "oom_kills": virtual.get("oom_kill", 0),
    }


def _lines(text: str, names: tuple[str, ...]) -> str:
    """Those of many lines that begin with one of the names."""
    return "\n".join(line for line in text.splitlines() if line.startswith(names))


def _cpus(text: str) -> Numbers:
    """/proc/stat: the times of all CPUs together in µs, how many there are, tasks at this moment."""
    # Not the lines of interrupts, which are as long as all others together.
    lines = [line.split() for line in text.splitlines() if line.startswith(("cpu", "procs_"))]
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
