"""page_cache: a file of known size read cold and warm, and written, in a cgroup of its own."""

import mmap
import os
import time
from pathlib import Path

import pytest
from probing import probing
from workloads import cgroup_id, cgroups, python_in

PAGES = 2_000
READ = (
    "import os,sys\n"
    "sys.stdin.readline()\n"
    "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
    "while os.read(fd, int(sys.argv[2])): pass\n"
)
WRITE = (
    "import os,sys\n"
    "sys.stdin.readline()\n"
    "fd = os.open(sys.argv[1], os.O_WRONLY)\n"
    "for at in range(int(sys.argv[2])): os.pwrite(fd, b'x' * 4096, at * 4096)\n"
)


@pytest.fixture(scope="module")
def probe():
    with probing("page_cache") as loaded:
        yield loaded


@pytest.fixture
def file(tmp_path):
    made = tmp_path / "data"
    made.write_bytes(os.urandom(PAGES * mmap.PAGESIZE))
    forget(made)
    return made


def forget(file) -> None:
    """Out of the cache with it."""
    fd = os.open(file, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def seen(probe, code: str, *arguments: str) -> dict[str, int]:
    """What the cgroup in which the code ran gained; without what Python's own start takes."""
    with cgroups("bpfleet-test-cache") as places:
        child = python_in(places, code, *arguments)
        wait_for_stdin(child.pid)
        probe.rows("page_cache")
        child.communicate("\n", timeout=30)
        assert child.returncode == 0
        found = [v for k, v in probe.rows("page_cache") if k["cgroup"] == cgroup_id(places)]
    names = probe.aggregates["page_cache"].value.names
    return {name: int(sum(each[name] for each in found)) for name in names}


def wait_for_stdin(pid: int) -> None:
    """Until it blocks in its read of standard input (its first argument is 0)."""
    for _ in range(500):
        words = Path(f"/proc/{pid}/syscall").read_text().split()
        if words[:2] == ["0", "0x0"] and b"-c" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return
        time.sleep(0.01)
    raise AssertionError("the child never came to read its standard input")


@pytest.mark.parametrize("size", [4096, 65536, 1 << 20])
def test_a_cold_read_misses_and_a_warm_one_hits(probe, file, size):
    """Whatever the size of a read, and in however many rounds the kernel serves it."""
    cold = seen(probe, READ, str(file), str(size))
    warm = seen(probe, READ, str(file), str(size))
    asked = PAGES + size // 4096  # the last read asks for pages past the end
    assert PAGES <= cold["read_pages"] <= asked + PAGES * 0.02
    assert PAGES <= warm["read_pages"] <= asked + PAGES * 0.02
    assert PAGES <= cold["added_pages"] <= PAGES * 1.02
    assert warm["added_pages"] < PAGES * 0.02
    assert cold["dirtied_pages"] + warm["dirtied_pages"] < 5  # a directory's time stamp


def test_pages_that_writes_make_are_told_apart(probe, file):
    """Written whole, a page need not be read: it is added, and gets dirty; no miss is left."""
    found = seen(probe, WRITE, str(file), str(PAGES))
    assert PAGES <= found["added_pages"] <= PAGES * 1.02
    assert PAGES <= found["dirtied_pages"] <= PAGES * 1.02
