"""Keep the store's process to its own files and away from the network, by the kernel's Landlock.

SQL reaches files in more ways than any list of forbidden words covers: a function's name passed to another
function, an expression inside a setting or a dictionary's query. What the process may not open, they cannot
(https://docs.kernel.org/userspace-api/landlock.html). It holds for threads begun afterwards, and for good.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

# System calls of Landlock, with one number on every architecture.
_CREATE, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH, _NO_NEW_PRIVS = 1, 1, 38
_READ_FILE, _READ_DIR, _TRUNCATE = 1 << 2, 1 << 3, 1 << 14
_ALL = (1 << 14) - 1  # every right to files of its second version, with moving them between directories
_TO_FILES = (1 << 0) | (1 << 1) | _READ_FILE | _TRUNCATE  # rights that a rule on a plain file may name
_CONNECT_TCP = 1 << 1
_TRUNCATE_SINCE, _NETWORK_SINCE = 3, 4
LEAST_VERSION = 2  # the first denies moving a file to another directory, which the engine does

_LIBRARIES = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/usr/share/zoneinfo"]
_SYSTEM = [
    "/etc/localtime", "/etc/timezone", "/etc/hosts", "/etc/nsswitch.conf", "/etc/resolv.conf",
    "/etc/ld.so.cache", "/sys/fs/cgroup", "/sys/devices/system", "/sys/kernel/mm",
    "/dev/random", "/dev/urandom",
]  # fmt: skip
_PROC = ["cpuinfo", "loadavg", "meminfo", "stat", "uptime", "vmstat", "filesystems", "mounts", "sys/kernel",
         "sys/vm", "sys/fs", "pressure"]  # fmt: skip
_OUR_PACKAGES = ["sinks", "schemas", "fleet"]

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """Of Landlock in this kernel; 0 when it has none."""
    return max(0, int(_libc.syscall(_CREATE, None, 0, _VERSION)))


def apply(directory: Path) -> bool:
    """From now on this process opens files below ``directory`` and what a program needs to run, and connects
    to nobody. False, and nothing done, where the kernel cannot.

    Call it while there is one thread. Raises OSError when the kernel can and yet refuses.
    """
    known = version()
    if known < LEAST_VERSION:
        return False
    rights = _ALL | (_TRUNCATE if known >= _TRUNCATE_SINCE else 0)
    handled = struct.pack("QQ", rights, _CONNECT_TCP if known >= _NETWORK_SINCE else 0)
    rules = _call(_CREATE, handled, len(handled) if known >= _NETWORK_SINCE else 8, 0)
    try:
        _allow(rules, [directory, "/dev/null"], rights)
        _allow(rules, _to_be_read(), _READ_FILE | _READ_DIR)
        if _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
        _call(_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)
    return True


def _to_be_read() -> list[str]:
    """Code, and what the engine asks of the machine; no other process, no settings, no secrets."""
    ours = [
        str(Path(each.origin).parent) for name in _OUR_PACKAGES if (each := find_spec(name)) and each.origin
    ]
    root = {
        str(Path(each).parent) for each in ours
    }  # a clone's own directory may hold its data and passwords
    packages = [each for each in sys.path if each and each not in root]
    proc = ["/proc/self", *(f"/proc/{name}" for name in _PROC)]
    return [*_LIBRARIES, *_SYSTEM, *proc, *packages, *ours]


def _allow(rules: int, paths: Iterable[str | Path], rights: int) -> None:
    for path in paths:
        try:
            at = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # not on this machine
        try:
            given = rights if Path(path).is_dir() else rights & _TO_FILES
            _call(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", given, at), 0)
        finally:
            os.close(at)


def _call(number: int, *arguments: int | bytes) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    return result
