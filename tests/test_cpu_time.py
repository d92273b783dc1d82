"""cpu_time: usage and throttling per cgroup as the kernel accounts them; a quota is no neighbour."""

import time
from pathlib import Path

import pytest
from test_probe_runq_latency import HOG
from workloads import cgroups, favour, python_in

from collector.cpu_time import CpuTime
from schemas import declare
from schemas.rows import columns

PINNED = "import os\nos.sched_setaffinity(0, {0})\nprint(flush=True)\n"


def rows_of(watch: CpuTime) -> dict:
    return {each["cgroup"]: each for each in watch.rows()}


def set_quota(place: Path, quota_us: int) -> None:
    """Of each 100 ms, by whichever version of the controller there is."""
    v1 = place / "cpu.cfs_quota_us"
    if v1.exists():
        v1.write_text(str(quota_us))
    else:
        (place / "cpu.max").write_text(f"{quota_us} 100000")


def test_a_quota_shows_as_throttled_time_and_a_neighbour_does_not():
    with (
        cgroups("bpfleet-test-limited", "cpu") as limited,
        cgroups("bpfleet-test-one", "cpu") as one,
        cgroups("bpfleet-test-two", "cpu") as two,
    ):
        for each in (limited, one, two):
            favour(each)
        set_quota(limited["cpu"], 20_000)
        watch = CpuTime()
        hogs = [python_in(each, PINNED + HOG) for each in (limited, one, two)]
        for each in hogs:
            assert each.stdout
            each.stdout.readline()
        list(watch.rows())
        time.sleep(3)
        rows = rows_of(watch)
        stat = dict(line.split() for line in (limited["cpu"] / "cpu.stat").read_text().splitlines())
        for each in hogs:
            each.kill()
            each.communicate()
    held, neighbour = rows["/bpfleet-test-limited"], rows["/bpfleet-test-one"]
    assert (held["quota_us"], held["period_us"]) == (20_000, 100_000)
    assert 5 <= held["throttled_periods"] <= held["periods"] <= int(stat["nr_periods"])
    assert held["throttled_us"] > 300_000
    assert 200_000 < held["usage_us"] < 1_000_000
    assert neighbour["quota_us"] == -1
    assert neighbour["throttled_periods"] == neighbour["throttled_us"] == 0
    assert neighbour["usage_us"] > 300_000
    assert neighbour["user_us"] + neighbour["system_us"] == pytest.approx(neighbour["usage_us"], rel=0.02)
    assert columns(declare.streams()["cpu_time"], [held | {"ts": 1, "interval_us": 1}])


def test_a_row_is_without_the_cgroups_below(tmp_path):
    """Of 10 s above, 6 are one child's, of which 1 is a grandchild's; 2 are another's."""

    def write(path: str, usage: int) -> None:
        (tmp_path / path).mkdir(exist_ok=True)
        (tmp_path / path / "cpu.stat").write_text(f"usage_usec {usage}\nuser_usec {usage}\nsystem_usec 0\n")

    for path in ("", "a", "a/b", "a-c"):
        write(path, 0)
    watch = CpuTime({"": str(tmp_path)})
    assert rows_of(watch) == {}
    for path, usage in (("", 10), ("a", 6), ("a/b", 1), ("a-c", 2)):
        write(path, usage * 1_000_000)
    own = {path: row["usage_us"] // 1_000_000 for path, row in rows_of(watch).items()}
    assert own == {"/": 2, "/a": 5, "/a/b": 1, "/a-c": 2}
    assert rows_of(watch) == {}


def test_files_that_are_not_there_or_not_as_expected_are_no_error(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "cpu.stat").write_text("usage_usec many\n\x00\n")
    (tmp_path / "x" / "cpu.max").write_text("max")
    watch = CpuTime({"": str(tmp_path), "cpu": str(tmp_path)})
    assert rows_of(watch) == {}
