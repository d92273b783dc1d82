"""Keep the memory that a batch took for the next one.

Blocks of many megabytes are made and freed several times a second. By default each is mapped and unmapped,
and touching fresh pages costs more than filling them: a fifth of a sink's CPU, measured.
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
LARGEST = 32 << 20  # bytes; glibc takes no more
KEPT = 256 << 20  # bytes free at the heap's end before it is given back


def keep() -> None:
    """Make the allocator hold on to what this process frees. Without glibc, nothing happens."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)
        libc.mallopt(M_ARENA_MAX, 2)
