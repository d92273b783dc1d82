"""memory: an OOM kill in a cgroup is one row with its victim; stalls against the kernel's own counters."""

import os
from pathlib import Path

import pytest
from probing import PROBES, probing
from workloads import cgroup_id, cgroups, counters, python_in

LIMIT = 64 << 20
CAUSES = {
    each.name: each.argument.split(",") for each in PROBES["memory"].streams[1].fields if each.name == "cause"
}["cause"]
KINDS = {each.name: each.argument.split(",") for each in PROBES["memory"].streams[0].fields}["kind"]
GREEDY = (
    "import mmap,sys\n"
    "sys.stdin.readline()\n"
    "held = mmap.mmap(-1, 256 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
    "for at in range(0, 256 << 20, 4096): held[at] = 1\n"
)
READER = (
    "import os,sys\n"
    "sys.stdin.readline()\n"
    "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
    "while os.read(fd, 1 << 20): pass\n"
)


@pytest.fixture(scope="module")
def probe():
    with probing("memory") as loaded:
        yield loaded


def limit(place: Path) -> None:
    """At most LIMIT bytes, by whichever version of the controller there is."""
    v1 = place / "memory.limit_in_bytes"
    (v1 if v1.exists() else place / "memory.max").write_text(str(LIMIT))


def test_an_oom_kill_is_one_row_with_the_victim(probe):
    with cgroups("bpfleet-test-oom", "memory") as places:
        limit(places["memory"])
        before = counters("/proc/vmstat")["oom_kill"]
        greedy = python_in(places, GREEDY)
        greedy.communicate("\n", timeout=30)
        killed = counters("/proc/vmstat")["oom_kill"] - before
        rows = probe.events("oom_kill", lambda found: any(each["pid"] == greedy.pid for each in found))
        ours = [each for each in rows if each["pid"] == greedy.pid]
        number = cgroup_id(places)
    assert greedy.returncode == -9
    assert len(ours) == 1 and len(rows) == killed
    (row,) = ours
    assert CAUSES[row["cause"]] == "cgroup"
    assert row["cgroup"] == number
    assert row["trigger_pid"] == greedy.pid
    assert row["comm"] == row["trigger_comm"] != b""
    assert 0.75 * LIMIT < row["anonymous_bytes"] <= LIMIT
    assert row["total_bytes"] > 256 << 20
    assert row["page_table_bytes"] > LIMIT / 512


def test_reclaim_by_a_limit_agrees_with_the_pages_that_were_scanned(probe, tmp_path):
    """A file four times the limit is read: the cgroup frees what it read before."""
    file = tmp_path / "large"
    with file.open("wb") as out:
        for _ in range(256):
            out.write(bytes(1 << 20))
    with file.open("rb") as written:
        os.fsync(written.fileno())
        os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with cgroups("bpfleet-test-reclaim", "memory") as places:
        limit(places["memory"])
        probe.rows("reclaim")
        reader = python_in(places, READER, str(file))
        reader.communicate("\n", timeout=60)
        rows = [(k, v) for k, v in probe.rows("reclaim") if k["cgroup"] == cgroup_id(places)]
        file.unlink()
    assert reader.returncode == 0
    by_kind = {KINDS[key["kind"]]: value for key, value in rows}
    assert by_kind.keys() == {"cgroup"}
    found = by_kind["cgroup"]
    assert found["count"] == found["stalls"].sum() > 40
    # The file's pages, less what fits into the limit, had to be freed by those stalls.
    freed = (256 << 20) - LIMIT
    assert freed / 4096 * 0.5 < found["pages"] < (256 << 20) / 4096 * 1.5
    low = sum(n * (1 << bucket >> 1) for bucket, n in enumerate(found["stalls"].tolist()))
    assert low * 1000 <= found["stalled_ns"] <= (2 * low + found["count"]) * 1000


def test_a_task_that_compacts_stalls_and_background_threads_do_not(probe):
    with cgroups("bpfleet-test-compact") as places:
        probe.rows("reclaim")
        code = "open('/proc/sys/vm/compact_memory', 'w').write('1')"
        python_in(places, code).communicate(timeout=60)
        rows = probe.rows("reclaim")
        ours = [(KINDS[k["kind"]], v) for k, v in rows if k["cgroup"] == cgroup_id(places)]
    assert [kind for kind, _ in ours] == ["compaction"]
    assert ours[0][1]["count"] >= 1 and ours[0][1]["stalled_ns"] > 0
