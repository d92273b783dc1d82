"""Perf events that programs of on-demand probes are attached to: functions, markers, samples.

Each call returns descriptors; closing one detaches. Functions of binaries are reached by links for many of
them (Linux 6.6), which take CAP_BPF and CAP_PERFMON; the older perf events take CAP_SYS_ADMIN. Programs run
for all processes, or for one: then it alone has traps.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from collector import bpf_sys, tracefs
from collector.bpf_sys import BpfError
from schemas.errors import BpfleetError, UsageError

DEVICES = Path("/sys/bus/event_source/devices")
ONLINE = Path("/sys/devices/system/cpu/online")
NO_KPROBES = "this kernel has no kprobes (CONFIG_KPROBE_EVENTS); take a tracepoint or raw point"
_BYTES = 112  # PERF_ATTR_SIZE_VER5
_SOFTWARE, _HARDWARE = 1, 0
_FREQUENCY, _INHERIT = 1 << 10, 1 << 1


def functions(
    file: Path, offsets: Sequence[int], prog_fd: int, *, returns: bool = False, pid: int = 0,
    semaphores: Sequence[int] = (), cookies: Sequence[int] = (),
) -> int:  # fmt: skip
    """A link that runs a program at instructions of a file, or at the return from the functions there."""
    try:
        return bpf_sys.uprobe_multi_link(
            prog_fd, str(file), offsets, pid=pid, returns=returns, semaphores=semaphores, cookies=cookies
        )
    except BpfError as error:
        if error.errno == errno.ESRCH:
            raise BpfleetError(f"cannot probe {file}: there is no process {pid}") from None
        if error.errno == errno.EINVAL:
            raise UsageError(f"cannot probe {file}: functions of programs take Linux 6.6 or later") from None
        raise


def kernel_event(name: str, *, returns: bool = False) -> int:
    """An event for a kernel function's entry or return."""
    kind = _device("kprobe", NO_KPROBES)
    text = ctypes.create_string_buffer(name.encode())
    event = _attributes(kind, _return_bit("kprobe") * returns, 1, ctypes.addressof(text), 0)
    return _open(event, f"cannot probe the kernel's {name}")


def kernel_check() -> None:
    """Raises :class:`BpfleetError` where the kernel has no kprobes."""
    _device("kprobe", NO_KPROBES)


def sample_events(kind: str, number: int, period: int, name: str) -> list[int]:
    """One event for each CPU that fires each ``period``-th time; ``number`` is the kernel's own."""
    made = _attributes(_SOFTWARE if kind == "software" else _HARDWARE, number, period)
    fds: list[int] = []
    try:
        for cpu in online():
            fds.append(bpf_sys.perf_event_open(made, -1, cpu, f"cannot count {name}"))
    except BpfError as error:
        for fd in fds:
            os.close(fd)
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.ENODEV):
            raise BpfleetError(
                f"this machine does not count {name} (a virtual machine?); take software:cpu-clock"
            ) from None
        raise
    return fds


def clock_events(hertz: int) -> list[int]:
    """One event for each CPU, so many times a second."""
    return [tracefs.cpu_clock(cpu, hertz) for cpu in online()]


def online() -> list[int]:
    """CPUs that are online."""
    cpus: list[int] = []
    for part in ONLINE.read_text().strip().split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus


def attach(fds: list[int], prog_fd: int) -> list[int]:
    """Run a program at these events; they are closed when that fails."""
    with closing_on_failure(fds):
        for fd in fds:
            tracefs.attach(fd, prog_fd)
    return fds


@contextmanager
def closing_on_failure(fds: list[int]) -> Iterator[None]:
    """Give descriptors back unless all goes well."""
    try:
        yield
    except BaseException:
        for fd in fds:
            os.close(fd)
        fds.clear()
        raise


def _device(name: str, otherwise: str) -> int:
    try:
        return int((DEVICES / name / "type").read_text())
    except OSError:
        raise BpfleetError(otherwise) from None


def _return_bit(name: str) -> int:
    text = (DEVICES / name / "format/retprobe").read_text().strip()
    return 1 << int(text.removeprefix("config:"))


def _attributes(kind: int, config: int, period: int, config1: int = 0, config2: int = 0) -> bpf_sys.Attr:
    head = struct.pack("=IIQQQQQIIQQ", kind, _BYTES, config, period, 0, 0, 0, 0, 0, config1, config2)
    return bpf_sys.pack(f"{_BYTES}s", head)


def _open(event: bpf_sys.Attr, what: str) -> int:
    try:
        return bpf_sys.perf_event_open(event, -1, 0, what)
    except BpfError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL, errno.EADDRNOTAVAIL):
            why = f"{bpf_sys.explain(error.errno)}; is it a function of that name?"
            raise BpfleetError(f"{what}: {why}") from None
        raise
