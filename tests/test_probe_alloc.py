"""alloc: pages by order against /proc/vmstat, sampled slabs against a known number of allocations."""

import mmap
import os
from pathlib import Path

import pytest
from probing import probing
from workloads import counters


@pytest.fixture(scope="module")
def probe():
    with probing("alloc") as loaded:
        yield loaded


def touch(pages: int) -> None:
    """Fault so many pages in, one by one."""
    with mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.madvise(mmap.MADV_NOHUGEPAGE)
        for at in range(0, pages * mmap.PAGESIZE, mmap.PAGESIZE):
            held[at] = 1


def allocated() -> int:
    """Pages the kernel says it has given out since it booted."""
    return sum(value for name, value in counters("/proc/vmstat").items() if name.startswith("pgalloc_"))


def test_pages_by_order_agree_with_vmstat(probe):
    """Both count the whole host, so that whatever else happens is in both."""
    probe.rows("page_alloc")
    before = allocated()
    touch(50_000)
    ours = {int(key["order"]): value for key, value in probe.rows("page_alloc")}
    kernel = allocated() - before
    pages = sum(int(value["count"] - value["failed"]) << order for order, value in ours.items())
    assert ours[0]["count"] >= 50_000
    # The kernel's figure is of one moment later than ours.
    assert pages == pytest.approx(kernel, rel=0.05)


def test_slabs_by_call_site_are_estimated(probe):
    """Each stat of a path takes one buffer for its name."""
    calls = 400_000
    probe.rows("slab_alloc")
    for _ in range(calls):
        os.access("/nonexistent", os.F_OK)
    rows = probe.rows("slab_alloc")
    names = [value for key, value in rows if key["cache"] == b"names_cache"]
    count = sum(int(each["count"]) for each in names)
    samples = sum(int(each["samples"]) for each in names)
    assert count == samples * 64
    assert 0.93 * calls < count < 1.3 * calls  # others on this host look for files too
    assert sum(int(each["allocated_bytes"]) for each in names) == count * 4096


def test_call_sites_are_functions_of_the_kernel(probe):
    rows = probe.rows("slab_alloc")
    for _ in range(20_000):
        os.access("/nonexistent", os.F_OK)
    rows = probe.rows("slab_alloc")
    text = Path("/proc/kallsyms").read_text().splitlines()
    places = [int(line.split()[0], 16) for line in text if line.split()[1] in "tT" and "[" not in line]
    assert rows and all(min(places) < int(key["location"]) < max(places) for key, _ in rows)


def test_cost(probe):
    """Of a page fault's page, and of a slab that is not sampled; an empty program shows 48 ns here."""
    from collector import bpf_sys

    stats = bpf_sys.enable_stats()
    try:
        pages = probe.cost(lambda: touch(50_000))
        slabs = probe.cost(lambda: [os.access("/nonexistent", os.F_OK) for _ in range(50_000)])
    finally:
        os.close(stats)
    assert pages["mm_page_alloc"][0] >= 50_000 and pages["mm_page_alloc"][1] < 200
    assert slabs["kmem_cache_alloc"][0] >= 50_000 and slabs["kmem_cache_alloc"][1] < 200
