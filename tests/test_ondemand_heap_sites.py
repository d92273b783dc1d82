"""Whose memory stays: sizes that balance, callers behind libraries without frame pointers, other memory."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ondemand import Alone, alone

from collector.ondemand import heap_balance
from collector.ondemand.heap_growth import Growth
from collector.ondemand.heap_pace import Pace
from schemas.errors import BpfleetError

# A cache whose entries outlive a window, and a leak; both through operator new, which keeps no frame pointer.
CACHE = r"""
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <unistd.h>
static double now() { timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
__attribute__((noinline)) void cached(char *&place, unsigned size)
{ delete[] place; place = new char[size]; memset(place, 1, size); }
__attribute__((noinline)) char *leaked(unsigned size)
{ char *made = new char[size]; memset(made, 1, size); return made; }
static char *cache[20000];
int main(int, char **words)
{
	char line[8];
	unsigned random = 1;
	unsigned long lost = 0, rounds = 0;
	for (char *&each : cache) cached(each, 200);
	if (read(0, line, 1) < 0) return 1;
	for (double end = now() + atof(words[1]); rounds % 1024 || now() < end; rounds++) {
		random = random * 1664525u + 1013904223u;
		cached(cache[(random >> 8) % 20000], 150 + (random >> 26));
		if (rounds % 50 == 1) { unsigned size = 300 + (random >> 27); lost += size; leaked(size); }
	}
	printf("%lu\n", lost);
	fflush(stdout);
	return read(0, line, 1) < 0;
}
"""


def compiled(directory: Path) -> Path:
    (directory / "cache.cpp").write_text(CACHE)
    flags = ["-O1", "-fno-omit-frame-pointer", "-fno-builtin"]
    subprocess.run(["g++", *flags, "-o", directory / "cache", directory / "cache.cpp"], check=True)
    return directory / "cache"


def by_site(host: Alone, rows: list[dict[str, Any]]) -> dict[str, int]:
    """Bytes of the last estimate by the function that called operator new."""
    last = max(row["ts"] for row in rows)
    found: dict[str, int] = {}
    for row in rows:
        if row["ts"] == last:
            stack = host.stacks[row["user_stack"]].split(";")
            site = next(
                (each.partition("(")[0] for each in stack[::-1] if each.startswith(("cached", "leaked"))), ""
            )
            found[site] = found.get(site, 0) + row["sum"]
    return found


def test_a_leak_is_told_from_a_cache_whose_entries_outlive_a_window(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [compiled(tmp_path), "9"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin and child.stdout
    try:
        with alone(probe_max_cpu=0.05) as host:
            spec = {"at": "heap:libc", "value": "outstanding", "by": ["ustack"], "pid": child.pid}
            assert host.run("heap", spec).state == "applied"
            print("x", file=child.stdin, end="", flush=True)
            lost = int(child.stdout.readline())
            time.sleep(1.3)  # one more estimate
            found = by_site(host, host.found("heap"))
    finally:
        child.kill()
        child.communicate()
    assert abs(found["leaked"] / lost - 1) < 0.15, (found, lost)
    assert found.get("cached", 0) + found.get("", 0) < 0.15 * lost, (found, lost)


@given(st.floats(0, 1), st.integers(2, 40), st.integers(0, 1 << 32))
@settings(max_examples=40, deadline=None)
def test_shares_that_stay_are_found_by_sizes(stays: float, busier: int, seed: int) -> None:
    """Two sites of other sizes: one keeps a share, the other, far busier, nothing."""
    random = np.random.default_rng(seed)
    count = 4000
    sizes = heap_balance.classes(np.array([64.0, 80.0, 320.0, 336.0]))
    left = np.zeros((2, heap_balance.CLASSES))
    left[0, sizes[2:]] = count / 2
    left[1, sizes[:2]] = count * busier / 2
    alive = random.poisson(left.sum(axis=0)).astype(float)
    gone = random.poisson(left[1] + left[0] * (1 - stays)).astype(float)
    kept = heap_balance.kept(left, alive, gone)
    assert abs(kept.share[0] - stays) < max(6 * kept.error[0], 0.02)
    assert kept.error[0] < 0.1
    assert kept.share[1] < max(6 * kept.error[1], 0.02)


def test_sites_of_the_same_sizes_share_and_say_that_they_are_not_told_apart() -> None:
    left = np.zeros((2, heap_balance.CLASSES))
    left[:, 7] = 1000
    alive, gone = left.sum(axis=0), left.sum(axis=0) / 2
    kept = heap_balance.kept(left, alive, gone)
    assert kept.share == pytest.approx([0.5, 0.5], abs=0.01)
    assert (kept.error > 0.15).all()


def test_classes_are_in_order_and_bounded() -> None:
    chunks = np.array([0, 32, 48, 1008, 1024, 1040, 4096, 2.0**40, 2.0**63])
    found = heap_balance.classes(chunks)
    assert (np.diff(found) >= 0).all()
    assert found[1] != found[2]
    assert found[-1] < heap_balance.CLASSES


def test_growth_is_of_mappings_that_malloc_used() -> None:
    """A program that maps memory for itself beside what malloc maps: only the latter is the heap's."""
    code = (
        "import mmap, sys\n"
        "def private(size): return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "places = [private(64 << 20), private(64 << 20)]\n"
        "places[1].madvise(mmap.MADV_DONTFORK)\n"  # so that they never become one mapping
        "import ctypes\n"
        "def tell(each): print(ctypes.addressof(ctypes.c_char.from_buffer(each)), flush=True)\n"
        "tell(places[0]); tell(places[1])\n"
        "sys.stdin.read(1)\n"
        "places[0][: 8 << 20] = bytes(8 << 20); places[1][: 32 << 20] = bytes(32 << 20)\n"
        "print(flush=True); sys.stdin.read(1)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin and child.stdout
    try:
        address, other = int(child.stdout.readline()), int(child.stdout.readline())
        growth = Growth(child.pid)
        print("x", file=child.stdin, end="", flush=True)
        child.stdout.readline()
        growth.see(np.array([address], np.uint64))
        assert 8 << 20 <= growth.read() < 24 << 20  # [heap] may have grown, too
        growth.see(np.array([other], np.uint64))
        growth.due = 0
        assert growth.read() >= 40 << 20
    finally:
        child.kill()
        child.communicate()


def test_growth_of_a_process_that_is_gone() -> None:
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True, text=True
    )
    with pytest.raises(BpfleetError, match="there is no process"):
        Growth(int(child.stdout))


def test_a_process_that_waits_for_a_cpu_is_given_less() -> None:
    """Three that spin on one CPU: each runs a third of the time it could."""
    cpu = min(os.sched_getaffinity(0))
    spinning = [
        subprocess.Popen(["taskset", "-c", str(cpu), "sh", "-c", "while :; do :; done"]) for _ in range(3)
    ]
    try:
        pace = Pace([spinning[0].pid])
        shares = []
        for _ in range(6):
            time.sleep(0.3)
            shares.append(pace.share())
        assert shares[-1] < 0.6, shares
    finally:
        for each in spinning:
            each.kill()
            each.wait()
    assert Pace([1 << 22]).share() == 1
