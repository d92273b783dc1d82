"""What the collector may do: what it needs to start, and what it keeps once its probes are attached.

Capabilities belong to threads: :func:`drop` comes before any other thread is made.
"""

import ctypes
import os
import struct
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path

from schemas.errors import BpfleetError

_libc = ctypes.CDLL(None, use_errno=True)
_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _RAISE, _CLEAR_ALL = 24, 38, 47, 2, 4
BTF = Path("/sys/kernel/btf/vmlinux")


class Capability(IntEnum):
    """linux/capability.h: those that matter here."""

    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    NET_ADMIN = 12
    SYS_PTRACE = 19
    SYS_ADMIN = 21
    SYSLOG = 34
    PERFMON = 38
    BPF = 39


# Once attached: read maps (BPF, PERFMON), cgroup handles and tracefs (DAC_READ_SEARCH), symbols (SYSLOG).
KEPT = frozenset({Capability.BPF, Capability.PERFMON, Capability.DAC_READ_SEARCH, Capability.SYSLOG})
# Desired state of these kinds attaches programs to interfaces while the collector runs.
NETWORK_KINDS = frozenset({"filter", "lb"})
# To load and attach; SYS_ADMIN stands for the first two on kernels before 5.8, and turns statistics on.
NEEDED = (Capability.BPF, Capability.PERFMON)


def effective() -> int:
    """The capabilities in effect in this thread, as a bit mask."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def has(capability: Capability) -> bool:
    """Whether this thread has it."""
    return bool(effective() >> capability & 1)


def require() -> None:
    """Raises :class:`BpfleetError`, one line that says what to do, when probes cannot be loaded here."""
    if not has(Capability.SYS_ADMIN):
        missing = [f"CAP_{each.name}" for each in NEEDED if not has(each)]
        if missing:
            raise BpfleetError(
                f"loading probes needs {' and '.join(missing)}; run as root or from the systemd unit"
            )
    if not BTF.exists():
        raise BpfleetError(
            f"this kernel has no type information ({BTF}); boot one built with CONFIG_DEBUG_INFO_BTF=y"
        )


def kept_for(kinds: Iterable[str], *, symbols: bool = False) -> frozenset[Capability]:
    """What a collector that takes these kinds of desired state keeps.

    With ``symbols`` also the right to see the mappings and files of other users' processes: the kernel shows
    /proc/PID/maps and /proc/PID/root to nobody else, CAP_DAC_READ_SEARCH or not.
    """
    network = {Capability.NET_ADMIN} if NETWORK_KINDS & set(kinds) else set()
    return KEPT | network | ({Capability.SYS_PTRACE} if symbols else set())


def drop(kept: frozenset[Capability] = KEPT) -> None:
    """Give up every capability but ``kept``, for good: bounding set, no_new_privs.

    Children keep what this process keeps (ambient set): the loader's child compiles and attaches later, too.
    """
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    if has(Capability.SYS_ADMIN) or os.geteuid() == 0:
        for number in range(last + 1):
            if number not in kept:
                _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    _libc.prctl(_PR_CAP_AMBIENT, _CLEAR_ALL, 0, 0, 0)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    mask = sum(1 << each for each in kept) & effective()
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0), 8)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = ctypes.create_string_buffer(struct.pack("=6I", low, low, low, high, high, high), 24)
    if _libc.capset(header, data):
        raise BpfleetError(f"cannot drop capabilities: {os.strerror(ctypes.get_errno())}")
    for number in range(last + 1):
        if mask >> number & 1:
            _libc.prctl(_PR_CAP_AMBIENT, _RAISE, number, 0, 0)
