"""Known workloads in cgroups of their own, for tests of probes: nobody else's work is in their rows."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from collector.pressure_cgroup import mounts

PLACES = mounts()


def remove(place: Path) -> None:
    """Kill what runs there, then the cgroup."""
    for _ in range(200):
        with suppress(OSError):
            for pid in (place / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        with suppress(OSError):
            place.rmdir()
        if not place.exists():
            return
        time.sleep(0.02)


@contextmanager
def cgroups(name: str, *controllers: str) -> Iterator[dict[str, Path]]:
    """The cgroup ``name`` in the unified hierarchy (``""``), and where each controller is, v1 or v2."""
    with ExitStack() as stack:
        found = {"": Path(PLACES[""]) / name}
        for each in controllers:
            found[each] = Path(PLACES.get(each, PLACES[""])) / name
        for place in set(found.values()):
            place.mkdir()
            stack.callback(remove, place)
        for each in controllers:
            if each not in PLACES:
                (Path(PLACES[""]) / "cgroup.subtree_control").write_text(f"+{each}")
        yield found


def python_in(places: dict[str, Path], code: str, *arguments: str) -> "subprocess.Popen[str]":
    """Run Python code in these cgroups from its first instruction on."""
    moves = "".join(f"echo $$ > {place}/cgroup.procs; " for place in set(places.values()))
    command = ["sh", "-c", moves + 'exec "$@"', "sh", sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


def favour(places: dict[str, Path]) -> None:
    """Let a cgroup made with ``cpu`` come before whatever else this host does."""
    v1 = places["cpu"] / "cpu.shares"
    (v1 if v1.exists() else places["cpu"] / "cpu.weight").write_text("262144" if v1.exists() else "10000")


def cgroup_id(places: dict[str, Path]) -> int:
    """What the kernel calls the cgroup of the unified hierarchy."""
    return places[""].stat().st_ino


def counters(file: str) -> dict[str, int]:
    """A file of names and numbers, like /proc/vmstat."""
    lines = (line.split() for line in Path(file).read_text().splitlines())
    return {each[0]: int(each[1]) for each in lines if len(each) == 2}


def snmp(protocol: str) -> dict[str, int]:
    """What /proc/net/snmp or /proc/net/netstat counts for ``Tcp``, ``Udp``, ``TcpExt``."""
    text = Path("/proc/net/snmp").read_text() + Path("/proc/net/netstat").read_text()
    names, values = (line.split()[1:] for line in text.splitlines() if line.startswith(f"{protocol}:"))
    return dict(zip(names, map(int, values), strict=True))
