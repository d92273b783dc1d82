"""Which cgroups are read: those that ran, found again as they come and go; how often, by what it costs."""

import time
from itertools import pairwise
from pathlib import Path

import pytest

from collector import cgroup_tree
from collector.cgroup_tree import Tree
from collector.polled import SHARE, Polled, Reader
from collector.pressure_cgroup import CgroupReader


def use(place: Path, path: str, microseconds: int) -> None:
    """Time of a cgroup and of all above it, as the kernel accounts it."""
    for each in (place / path, *(place / path).parents):
        each.mkdir(parents=True, exist_ok=True)
        file = each / "cpu.stat"
        before = int(file.read_text().split()[1]) if file.exists() else 0
        file.write_text(f"usage_usec {before + microseconds}\nnr_periods 0\n")
        if each == place:
            return


def test_only_what_ran_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pod in range(20):
        for container in range(5):
            use(tmp_path, f"pods/{pod}/{container}", 10)
    tree = Tree({"": str(tmp_path)}, 1000)
    assert len(list(tree.active())) == 1 + 1 + 20 + 100
    read: list[str] = []
    kernel = cgroup_tree.read
    monkeypatch.setattr(cgroup_tree, "read", lambda file: read.append(file) or kernel(file))
    assert list(tree.active()) == [] and len(read) == 1
    use(tmp_path, "pods/7/3", 5)
    assert list(tree.active()) == [("", 1005), ("/pods", 1005), ("/pods/7", 55), ("/pods/7/3", 15)]
    assert len(read) == 1 + 1 + 1 + 20 + 5


def test_cgroups_that_come_and_go_are_met(tmp_path: Path) -> None:
    use(tmp_path, "a", 10)
    tree = Tree({"": str(tmp_path)}, 1000)
    list(tree.active())
    use(tmp_path, "a/new/deep", 7)
    seen = {path for _ in range(2) for path, _ in tree.active()}
    assert seen == {"", "/a", "/a/new", "/a/new/deep"}
    (tmp_path / "a/new/deep/cpu.stat").unlink()
    (tmp_path / "a/new/deep").rmdir()
    for _ in range(2):
        list(tree.active())
    assert "/a/new/deep" not in tree.paths


def test_a_cgroup_of_another_hierarchy_is_not_judged_by_the_one_above(tmp_path: Path) -> None:
    """In the unified hierarchy the parent is idle; the child is known to v1 alone."""
    unified, v1 = tmp_path / "unified", tmp_path / "v1"
    use(unified, "a", 10)
    (v1 / "a/b").mkdir(parents=True)
    (v1 / "a/b/cpuacct.usage").write_text("1000\n")
    tree = Tree({"": str(unified), "cpuacct": str(v1)}, 1000)
    list(tree.active())
    (v1 / "a/b/cpuacct.usage").write_text("9000\n")
    assert list(tree.active()) == [("/a/b", 9)]


def test_what_a_cgroup_gained(tmp_path: Path) -> None:
    use(tmp_path, "web", 10)
    (tmp_path / "web/memory.current").write_text("4096\n")
    reader = CgroupReader({"": str(tmp_path)})
    assert reader.rows() == []
    use(tmp_path, "web", 30)
    (row,) = reader.rows()
    assert (row["cgroup"], row["cpu_us"], row["memory_bytes"]) == ("/web", 30, 4096)
    assert reader.rows() == []


def test_a_reader_that_costs_much_is_called_less_often() -> None:
    called: list[float] = []

    def read() -> list[dict[str, int]]:
        called.append(time.monotonic())
        end = time.thread_time() + 2 * SHARE * 0.2
        while time.thread_time() < end:
            pass
        return [{"grants": 1_000_000}]

    polled = Polled(Reader("listen_drop", read, seconds=0.05, rates=("grants",)))
    polled.start()
    time.sleep(2.5)
    polled.stop()
    rows = polled.rows()["listen_drop"]
    assert all(after - before > 0.35 for before, after in pairwise(called))
    assert rows and all(each["grants"] == each["interval_us"] for each in rows)
