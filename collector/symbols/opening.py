"""Open a file of another process's mount namespace, never outside of its root and never anything but a
file.

/proc/PID/root leads there; openat2(2) with RESOLVE_IN_ROOT keeps absolute links inside, where a plain open
would follow a container's link to /etc/shadow into the host's. Linux 5.6 or later; older kernels open
nothing.
"""

import ctypes
import os
import stat
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_OPENAT2 = 437  # the same number on every architecture
_NO_MAGICLINKS, _IN_ROOT = 0x02, 0x10
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def open_inside(pid: int, path: str) -> int:
    """A descriptor of the regular file ``path`` as process ``pid`` sees it. Raises OSError."""
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        how = ctypes.create_string_buffer(struct.pack("=QQQ", _FLAGS, 0, _NO_MAGICLINKS | _IN_ROOT), 24)
        name = ctypes.create_string_buffer(os.fsencode(path))
        fd = int(_libc.syscall(_OPENAT2, root, name, how, 24))
        if fd < 0:
            raise OSError(ctypes.get_errno(), "cannot open")
    finally:
        os.close(root)
    return regular(fd)


def open_program(pid: int) -> int:
    """A descriptor of the program that ``pid`` runs, also when its file is gone. Raises OSError."""
    return regular(os.open(f"/proc/{pid}/exe", _FLAGS))


def regular(fd: int) -> int:
    """The descriptor, if it is a regular file's; otherwise it is closed. Raises OSError."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError("not a regular file")
    return fd
