"""Waiting for files to change, instead of looking for them again and again: inotify(7).

watch = Watch(directory)      # made, if it is not there
watch.wait(5.0)               # returns when something changed in it, was woken, or after so long
watch.wake()                  # from any thread
"""

import ctypes
import os
import select
from contextlib import suppress
from pathlib import Path

MODIFIED, MOVED_HERE, MADE, DELETED = 0x2, 0x80, 0x100, 0x200
CLOEXEC, NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK  # IN_CLOEXEC, IN_NONBLOCK
LOOK_S = 0.5  # where the kernel watches for nobody any more
_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Of one directory. One thread waits."""

    def __init__(self, directory: Path) -> None:
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.fd = _libc.inotify_init1(CLOEXEC | NONBLOCK)  # readable after a change; -1 where there is none
        with suppress(OSError):
            directory.mkdir(parents=True, exist_ok=True)
        mask = MODIFIED | MOVED_HERE | MADE | DELETED
        if self.fd >= 0 and _libc.inotify_add_watch(self.fd, os.fsencode(directory), mask) < 0:
            os.close(self.fd)
            self.fd = -1

    def wait(self, seconds: float) -> None:
        """Until something changed since the last call, :meth:`wake`, or so long."""
        seconds = seconds if self.fd >= 0 else min(seconds, LOOK_S)
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        if self.fd >= 0:
            poll.register(self.fd, select.POLLIN)
        poll.poll(seconds * 1000)
        self.forget()
        with suppress(BlockingIOError):
            os.eventfd_read(self._woken)

    def forget(self) -> None:
        """What changed until now is known."""
        with suppress(BlockingIOError):
            while self.fd >= 0:
                os.read(self.fd, 1 << 16)

    def wake(self) -> None:
        """End a wait. From any thread."""
        os.eventfd_write(self._woken, 1)

    def close(self) -> None:
        """Watch no more."""
        for fd in (self.fd, self._woken):
            if fd >= 0:
                os.close(fd)
