"""The vdso, which the kernel maps into every process: our own copy of it as a file."""

import os
import re
from pathlib import Path

MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) .*\[vdso\]$", re.MULTILINE)
BYTES = 1 << 20


def vdso() -> int:
    """A descriptor of its image. Raises OSError when there is none."""
    match = MAPPING.search(Path("/proc/self/maps").read_text())
    if match is None:
        raise OSError("this process has no vdso")
    start, end = int(match[1], 16), int(match[2], 16)
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:
        image = os.pread(memory.fileno(), min(end - start, BYTES), start)
    fd = os.memfd_create("vdso", os.MFD_CLOEXEC)
    os.write(fd, image)
    return fd
