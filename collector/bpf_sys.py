"""bpf(2) through ctypes: programs, links and their statistics. Standard library only; maps are in bpf_map.

    fd = prog_load(ProgType.XDP, instructions, "filter")       # instructions: bytes, map descriptors in place
    link = xdp_link(fd, ifindex, mode="native")                # link_update(link, other_fd) swaps atomically
    link = raw_tracepoint_open(fd)                             # ProgType.TRACING (tp_btf) and RAW_TRACEPOINT
    result = prog_test_run(fd, packet, repeat=1000)            # result.retval, result.data, result.ns
    pin(fd, "/sys/fs/bpf/bpfleet/filter"); fd = obj_get("/sys/fs/bpf/bpfleet/filter")
    stats = enable_stats(); info = prog_info(fd)               # info.run_time_ns, info.run_count

Descriptors are plain integers, closed by their owner (closing a link's descriptor detaches unless pinned).
Every failure is a :class:`BpfError`: one line, with ``errno`` kept. Layouts: linux/bpf.h, ``union bpf_attr``.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from schemas.errors import BpfleetError

Attr = ctypes.Array[ctypes.c_char]
_libc = ctypes.CDLL(None, use_errno=True)
# machine → numbers of the system calls bpf and perf_event_open
_CALLS = {"x86_64": (321, 298), "aarch64": (280, 241), "riscv64": (280, 241), "s390x": (351, 331)}
_CAPABILITIES = {12: "CAP_NET_ADMIN", 38: "CAP_PERFMON", 39: "CAP_BPF"}
_CAP_SYS_ADMIN = 21
STATS_SYSCTL = Path("/proc/sys/kernel/bpf_stats_enabled")
LOG_BYTES = 4 << 20
REPLACE = 4  # BPF_F_REPLACE
XDP_MODES = {"auto": 0, "generic": 2, "native": 4}


class ProgType(IntEnum):
    """``enum bpf_prog_type``: the kinds bpfleet loads."""

    KPROBE = 2
    SCHED_CLS = 3
    TRACEPOINT = 5
    XDP = 6
    PERF_EVENT = 7
    RAW_TRACEPOINT = 17
    TRACING = 26


class AttachType(IntEnum):
    """``enum bpf_attach_type``: the kinds bpfleet uses."""

    TRACE_RAW_TP = 23
    XDP_DEVMAP = 33
    XDP_CPUMAP = 35
    XDP = 37
    PERF_EVENT = 41
    TCX_INGRESS = 46
    TCX_EGRESS = 47
    TRACE_UPROBE_MULTI = 48


class Command(IntEnum):
    """``enum bpf_cmd``: the commands bpfleet uses."""

    MAP_CREATE = 0
    MAP_LOOKUP = 1
    MAP_UPDATE = 2
    MAP_DELETE = 3
    MAP_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_TEST_RUN = 10
    PROG_NEXT_ID = 11
    PROG_FD_BY_ID = 13
    MAP_FD_BY_ID = 14
    OBJ_INFO = 15
    RAW_TRACEPOINT_OPEN = 17
    BTF_LOAD = 18
    MAP_TAKE = 21  # BPF_MAP_LOOKUP_AND_DELETE_ELEM
    MAP_LOOKUP_BATCH = 24
    MAP_LOOKUP_DELETE_BATCH = 25
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    LINK_CREATE = 28
    LINK_UPDATE = 29
    ENABLE_STATS = 32


class BpfError(BpfleetError):
    """The kernel refused; ``errno`` says how, ``log`` is the verifier's log if it spoke."""

    def __init__(self, message: str, number: int = 0, log: str = "") -> None:
        super().__init__(message)
        self.errno = number
        self.log = log


@dataclass(frozen=True)
class ProgInfo:
    """What the kernel says of a loaded program; times are its own, with :func:`enable_stats` in force."""

    id: int
    type: int
    name: str  # the kernel keeps 15 characters
    run_time_ns: int
    run_count: int
    missed: int  # runs left out because the program was already running on that CPU
    instructions: int  # of the verifier's walk


@dataclass(frozen=True)
class TestRun:
    """Outcome of BPF_PROG_TEST_RUN; ``ns`` is the kernel's mean over the repeats."""

    __test__ = False  # not a test class
    retval: int
    data: bytes
    ns: int


def system_call(command: Command, attributes: Attr, what: str) -> int:
    """bpf(2). Raises :class:`BpfError` that starts with ``what``."""
    result = int(_libc.syscall(_numbers()[0], int(command), attributes, len(attributes)))
    if result < 0:
        number = ctypes.get_errno()
        raise BpfError(f"{what}: {explain(number)}", number)
    return result


def perf_event_open(attributes: Attr, pid: int, cpu: int, what: str) -> int:
    """perf_event_open(2), close-on-exec, no group."""
    result = int(_libc.syscall(_numbers()[1], attributes, pid, cpu, -1, 8))
    if result < 0:
        number = ctypes.get_errno()
        raise BpfError(f"{what}: {explain(number)}", number)
    return result


def mount(kind: str, place: str) -> str:
    """mount(2) of a pseudo file system; "" or the reason why not."""
    if _libc.mount(kind.encode(), place.encode(), kind.encode(), 0, None) == 0:
        return ""
    return os.strerror(ctypes.get_errno()).lower()


def _numbers() -> tuple[int, int]:
    machine = platform.machine()
    if machine not in _CALLS:
        raise BpfError(f"BPF on {machine} is not known to bpfleet; run it on {', '.join(_CALLS)}")
    return _CALLS[machine]


def explain(number: int) -> str:
    """An errno of bpf(2) or perf_event_open(2) in words that say what to do."""
    if number in (errno.EPERM, errno.EACCES):
        return _why_not_permitted()
    if number == errno.ENOSYS:
        return "this kernel has no bpf(2); boot one built with CONFIG_BPF_SYSCALL"
    return os.strerror(number).lower()


def _why_not_permitted() -> str:
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    missing = [name for bit, name in _CAPABILITIES.items() if not effective >> bit & 1]
    if missing and not effective >> _CAP_SYS_ADMIN & 1:
        return f"not permitted; run as root or grant {', '.join(missing)}"
    lockdown = Path("/sys/kernel/security/lockdown")
    if lockdown.exists() and "[confidentiality]" in lockdown.read_text():
        return "not permitted by kernel lockdown; boot without lockdown=confidentiality"
    return "not permitted by the kernel (container, seccomp or security module?); run on the host itself"


def pack(layout: str, *values: int | bytes) -> Attr:
    """A ``union bpf_attr`` laid out natively, writable where the kernel answers into it."""
    raw = struct.pack("=" + layout, *values)
    return ctypes.create_string_buffer(raw, len(raw))


def prog_load(
    kind: ProgType, instructions: bytes, name: str, *, expected: int = 0, btf_id: int = 0,
    license_: str = "Dual BSD/GPL", flags: int = 0, btf_fd: int = 0, functions: bytes = b"",
) -> int:  # fmt: skip
    """Load a program and return its descriptor.

    ``btf_id`` is the type it attaches to (TRACING); ``btf_fd`` and ``functions`` (pairs of u32: instruction,
    type) tell the verifier of several functions. Raises :class:`BpfError` whose message ends in the
    verifier's last line and whose ``log`` is all it said.
    """
    code = ctypes.create_string_buffer(instructions, len(instructions))
    words = ctypes.create_string_buffer(license_.encode())
    told = ctypes.create_string_buffer(functions, max(len(functions), 1))

    def attempt(log: Attr | None) -> int:
        attributes = pack(
            "IIQQIIQII16sIIIIQIIQIII", int(kind), len(instructions) // 8, ctypes.addressof(code),
            ctypes.addressof(words), int(log is not None), len(log) if log else 0,
            ctypes.addressof(log) if log else 0, 0, flags, name[:15].encode(), 0, expected,
            btf_fd, 8 if functions else 0, ctypes.addressof(told) if functions else 0, len(functions) // 8,
            0, 0, 0, btf_id, 0,
        )  # fmt: skip
        return system_call(Command.PROG_LOAD, attributes, f"cannot load program {name}")

    try:
        return attempt(None)
    except BpfError as error:
        log = ctypes.create_string_buffer(LOG_BYTES)
        try:
            return attempt(log)  # the verifier is asked for its reasons only when there are some
        except BpfError:
            text = log.value.decode(errors="replace")
            raise _refused(name, error, text) from None


def _refused(name: str, error: BpfError, log: str) -> BpfError:
    lines = [line for line in log.splitlines() if line.strip() and not line.startswith("processed ")]
    if not lines:
        return error
    return BpfError(f"the verifier refused program {name}: {lines[-1].strip()}", error.errno, log)


def raw_tracepoint_open(prog_fd: int, name: str = "") -> int:
    """Attach a TRACING program (its target was named at load) or a RAW_TRACEPOINT one to ``name``."""
    text = ctypes.create_string_buffer(name.encode())
    attributes = pack("QII", ctypes.addressof(text) if name else 0, prog_fd, 0)
    return system_call(Command.RAW_TRACEPOINT_OPEN, attributes, f"cannot attach to tracepoint {name}".strip())


def link_create(prog_fd: int, target: int, attach: AttachType, flags: int = 0, cookie: int = 0) -> int:
    """A link of a program to ``target`` (interface index or perf event descriptor)."""
    attributes = pack("IIIIQ", prog_fd, target, int(attach), flags, cookie)
    return system_call(Command.LINK_CREATE, attributes, f"cannot attach by {attach.name}")


def uprobe_multi_link(
    prog_fd: int, file: str, offsets: Sequence[int], *, pid: int = 0, returns: bool = False,
    cookies: Sequence[int] = (), semaphores: Sequence[int] = (),
) -> int:  # fmt: skip
    """A link of a program to functions of one file, in one process or all; cookies tell which is meant.

    Linux 6.6 or later. Unlike a perf event of a function it does not take CAP_SYS_ADMIN.
    """
    path = ctypes.create_string_buffer(os.fsencode(file))
    places = ctypes.create_string_buffer(struct.pack(f"={len(offsets)}Q", *offsets))
    marks = ctypes.create_string_buffer(struct.pack(f"={len(cookies)}Q", *cookies))
    counters = ctypes.create_string_buffer(struct.pack(f"={len(semaphores)}Q", *semaphores))
    attributes = pack(
        "IIIIQQQQIII", prog_fd, 0, int(AttachType.TRACE_UPROBE_MULTI), 0, ctypes.addressof(path),
        ctypes.addressof(places), ctypes.addressof(counters) if semaphores else 0,
        ctypes.addressof(marks) if cookies else 0, len(offsets), int(returns), pid,
    )  # fmt: skip
    return system_call(Command.LINK_CREATE, attributes, f"cannot probe {file}")


def link_update(link_fd: int, prog_fd: int, expected_fd: int | None = None) -> None:
    """Replace the program of a link atomically; with ``expected_fd`` only if that one is there now."""
    flags = 0 if expected_fd is None else REPLACE
    attributes = pack("IIII", link_fd, prog_fd, flags, expected_fd or 0)
    system_call(Command.LINK_UPDATE, attributes, "cannot replace the attached program")


def xdp_link(prog_fd: int, ifindex: int, mode: str = "auto") -> int:
    """Attach an XDP program to an interface: ``auto``, ``native`` (driver) or ``generic``."""
    return link_create(prog_fd, ifindex, AttachType.XDP, XDP_MODES[mode])


def pin(fd: int, path: str | Path) -> None:
    """Pin a program, map or link in bpffs, so that it outlives this process."""
    text = ctypes.create_string_buffer(str(path).encode())
    system_call(Command.OBJ_PIN, pack("QII", ctypes.addressof(text), fd, 0), f"cannot pin {path}")


def obj_get(path: str | Path) -> int:
    """Descriptor of what is pinned at ``path``."""
    text = ctypes.create_string_buffer(str(path).encode())
    return system_call(Command.OBJ_GET, pack("QII", ctypes.addressof(text), 0, 0), f"cannot open pin {path}")


def fd_by_id(command: Command, number: int) -> int:
    """Descriptor of the program (PROG_FD_BY_ID) or map (MAP_FD_BY_ID) of that id; needs CAP_SYS_ADMIN."""
    return system_call(command, pack("III", number, 0, 0), f"cannot open BPF object {number}")


def prog_ids() -> Iterator[int]:
    """Ids of all programs in the kernel; needs CAP_SYS_ADMIN."""
    number = 0
    while True:
        attributes = pack("III", number, 0, 0)
        try:
            system_call(Command.PROG_NEXT_ID, attributes, "cannot list BPF programs")
        except BpfError as error:
            if error.errno != errno.ENOENT:
                raise
            return
        number = struct.unpack_from("=I", attributes.raw, 4)[0]
        yield number


def object_info(fd: int, size: int) -> bytes:
    """The first ``size`` bytes of ``struct bpf_prog_info``, ``bpf_map_info`` or ``bpf_link_info``."""
    info = ctypes.create_string_buffer(size)
    system_call(Command.OBJ_INFO, pack("IIQ", fd, size, ctypes.addressof(info)), "cannot ask a BPF object")
    return info.raw


def prog_info(fd: int) -> ProgInfo:
    """Identity and run statistics of a program."""
    raw = object_info(fd, 232)
    kind, number = struct.unpack_from("=II", raw)
    name = raw[64:80].rstrip(b"\0").decode()
    run_time, runs, missed, verified = struct.unpack_from("=QQQI", raw, 192)
    return ProgInfo(number, kind, name, run_time, runs, missed, verified)


def prog_maps(fd: int) -> list[int]:
    """Ids of the maps that a program uses."""
    (count,) = struct.unpack_from("=I", object_info(fd, 232), 52)
    ids = (ctypes.c_uint32 * count)()
    info = ctypes.create_string_buffer(232)
    struct.pack_into("=IQ", info, 52, count, ctypes.addressof(ids))
    system_call(Command.OBJ_INFO, pack("IIQ", fd, 232, ctypes.addressof(info)), "cannot ask a BPF object")
    return list(ids)


@contextmanager
def opened(fd: int) -> Iterator[int]:
    """A descriptor that is closed in the end."""
    try:
        yield fd
    finally:
        os.close(fd)


def enable_stats() -> int:
    """Have the kernel time every program's runs while the returned descriptor is open (5.8 or later).

    This takes CAP_SYS_ADMIN; without it the sysctl kernel.bpf_stats_enabled does, set at boot.
    """
    try:
        return system_call(Command.ENABLE_STATS, pack("I", 0), "cannot enable BPF statistics")
    except BpfError as error:
        if error.errno != errno.EPERM:
            raise
        if STATS_SYSCTL.exists() and STATS_SYSCTL.read_text().strip() != "0":
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        advice = "grant CAP_SYS_ADMIN or run `sysctl kernel.bpf_stats_enabled=1` as root"
        raise BpfError(f"cannot enable BPF statistics: not permitted; {advice}", error.errno) from None


def prog_test_run(fd: int, data: bytes, *, repeat: int = 1, context: bytes = b"", room: int = 256) -> TestRun:
    """Run a program on ``data`` (XDP: a packet of 14 bytes or more), which may grow by ``room`` bytes."""
    given = ctypes.create_string_buffer(data, len(data))
    out = ctypes.create_string_buffer(len(data) + room)
    ctx = ctypes.create_string_buffer(context, max(len(context), 1))
    attributes = pack(
        "IIIIQQIIIIQQIII", fd, 0, len(data), len(out), ctypes.addressof(given), ctypes.addressof(out),
        repeat, 0, len(context), 0, ctypes.addressof(ctx) if context else 0, 0, 0, 0, 0,
    )  # fmt: skip
    system_call(Command.PROG_TEST_RUN, attributes, "test run failed")
    _, retval, _, size, _, _, _, ns = struct.unpack_from("=IIIIQQII", attributes.raw)
    return TestRun(retval, out.raw[:size], ns)
