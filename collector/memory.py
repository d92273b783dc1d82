"""Keeping the collector small: what the allocator holds beyond what is used."""

import ctypes
import gc
import os

M_ARENA_MAX, M_MMAP_THRESHOLD = -8, -3  # malloc.h
LARGE = 1 << 20  # a batch fits below: it would otherwise be mapped and unmapped each time


def spare() -> None:
    """One heap for all threads that gives large blocks back; no thread pool for linear algebra.

    To be called before numpy is imported.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_ARENA_MAX, 1)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)  # fixed: glibc would raise it with each block freed


def settle() -> None:
    """All that lives now stays: the collector of garbage need not look at it again."""
    gc.collect()
    gc.freeze()
    trim()


def trim() -> None:
    """Give the kernel back what the heap does not use."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
