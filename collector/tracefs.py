"""Pseudo file systems and perf events: what a probe attaches to besides raw tracepoints and interfaces.

    mount()                                   # tracefs and bpffs, if root finds them unmounted
    fd = tracepoint_event("block", "block_rq_issue"); attach(fd, prog_fd)
    fd = cpu_clock(cpu, hertz=49);            attach(fd, prog_fd)

Closing an event's descriptor detaches its program.
"""

import fcntl
import struct
from pathlib import Path

from collector import bpf_sys
from collector.bpf_sys import BpfError
from schemas.errors import BpfleetError

TRACEFS = Path("/sys/kernel/tracing")
BPFFS = Path("/sys/fs/bpf")
_TYPE_SOFTWARE, _TYPE_TRACEPOINT = 1, 2
_ATTR_BYTES = 112  # PERF_ATTR_SIZE_VER5
_FREQUENCY = 1 << 10
_SET_BPF, _ENABLE = 0x40042408, 0x2400


def mount() -> None:
    """Mount tracefs and bpffs where they are not. Raises :class:`BpfleetError` that names the command."""
    for kind, place in (("tracefs", TRACEFS), ("bpf", BPFFS)):
        if not _is_mounted(place):
            _mount(kind, place)


def _is_mounted(place: Path) -> bool:
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return any(line.split()[1] == str(place) for line in mounts)


def _mount(kind: str, place: Path) -> None:
    result = bpf_sys.mount(kind, str(place))
    if result:
        raise BpfleetError(f"{kind} is not mounted ({result}); run `mount -t {kind} {kind} {place}` as root")


def tracepoint_id(category: str, name: str) -> int:
    """The number perf events know a tracepoint by."""
    file = TRACEFS / "events" / category / name / "id"
    try:
        return int(file.read_text())
    except PermissionError:
        raise BpfleetError(f"cannot read {file}; run as root or `chmod -R o+rX {TRACEFS}`") from None
    except OSError:
        if not _is_mounted(TRACEFS):
            raise BpfleetError(
                f"tracefs is not mounted; run `mount -t tracefs tracefs {TRACEFS}` as root"
            ) from None
        raise BpfleetError(f"this kernel has no tracepoint {category}:{name}") from None


def tracepoint_event(category: str, name: str) -> int:
    """A perf event for a tracepoint, on every CPU once a program is attached to it."""
    attributes = _attributes(_TYPE_TRACEPOINT, tracepoint_id(category, name), 1)
    return bpf_sys.perf_event_open(attributes, -1, 0, f"cannot open {category}:{name}")


def cpu_clock(cpu: int, hertz: int) -> int:
    """A perf event that fires ``hertz`` times a second on ``cpu`` (software clock)."""
    attributes = _attributes(_TYPE_SOFTWARE, 0, hertz, _FREQUENCY)
    return bpf_sys.perf_event_open(attributes, -1, cpu, f"cannot sample CPU {cpu}")


def _attributes(kind: int, config: int, period: int, flags: int = 0) -> bpf_sys.Attr:
    head = struct.pack("=IIQQQQQ", kind, _ATTR_BYTES, config, period, 0, 0, flags)
    return bpf_sys.pack(f"{_ATTR_BYTES}s", head)


def attach(event_fd: int, prog_fd: int) -> None:
    """Run a program at each firing of the event, and enable it."""
    try:
        fcntl.ioctl(event_fd, _SET_BPF, prog_fd)
        fcntl.ioctl(event_fd, _ENABLE, 0)
    except OSError as error:
        why = bpf_sys.explain(error.errno or 0)
        raise BpfError(f"cannot attach a program to its event: {why}", error.errno or 0) from None
