"""Known workloads: exactly 23 of a thing are 23, in counts, sums and histograms; scope, samples, budgets."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from ondemand import Alone, alone, compiled, python, total, until

from collector.cgroup import find_mount
from fleet import probe_dry
from schemas.probe_spec import check

NAMED = "import ctypes, os, sys, time\nctypes.CDLL(None).prctl(15, sys.argv[1].encode())\n"
OPENS = NAMED + "for _ in range(23): os.close(os.open('/etc/hostname', 0))\n"
CALLS = r"""
#include <stdio.h>
#include <stdlib.h>
__attribute__((noinline)) long deep(long n) { return n <= 0 ? 7 : deep(n - 1) + 1; }
__attribute__((noinline)) long add(long a, long b, const char *text) { return a + b + text[0] - 'h'; }
int main(int argc, char **argv) {
	long sum = 0;
	char text[] = "hello"; /* on the stack: what was never touched reads as empty */
	for (long n = 1; n <= 23; n++) sum += add(n, 100, text) + deep(3);
	return sum == 0;
}
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Alone]:
    with alone(probe_max_cpu=1.0) as made:
        yield made


def test_23_opens_are_23(host: Alone) -> None:
    line = 'count syscall:openat by comm, pid, str(filename), cpu if comm == "counted"'
    assert host.run("opens", line).state == "applied"
    python(OPENS, "counted")
    rows = host.end("opens")
    assert total(rows, key1="/etc/hostname") == 23
    assert len({row["pid"] for row in rows}) == 1
    assert all(row["names"] == "filename" and 0 <= row["cpu"] < 1024 for row in rows)
    assert [each["event"] for each in host.heard("opens")] == ["attached", "stopped"]


def test_sums_and_histograms_of_known_sizes(host: Alone) -> None:
    sizes = [0, 1, 2, 3, 100, 999, 1000, 5000]
    where = 'if comm == "writer" && fd == 1'
    assert host.run("sum", f"sum(count) syscall:write by comm {where}").state == "applied"
    assert host.run("log2", f"log2(count) syscall:write by comm {where}").state == "applied"
    assert (
        host.run("linear", f"linear(count, 100, 1000, 100) syscall:write by comm {where}").state == "applied"
    )
    python(NAMED + f"for n in {sizes}: os.write(1, b'x' * n)", "writer")
    rows = {name: host.end(name) for name in ("sum", "log2", "linear")}
    assert (total(rows["sum"]), total(rows["sum"], "sum")) == (len(sizes), sum(sizes))
    for name in ("log2", "linear"):
        for row in rows[name]:
            inside = [n for n in sizes if row["bucket_from"] <= n <= row["bucket_to"]]
            assert (row["count"], row["sum"]) == (len(inside), sum(inside)), (name, row)
        assert total(rows[name]) == len(sizes)
    assert {row["bucket_from"] for row in rows["linear"]} == {-(2**63), 100, 900, 1000}


def test_latency_is_what_was_slept(host: Alone) -> None:
    line = 'log2(latency) syscall:clock_nanosleep by comm if comm == "sleeper"'
    assert host.run("sleeps", line).state == "applied"
    python(NAMED + "for _ in range(23): time.sleep(0.003)", "sleeper")
    rows = host.end("sleeps")
    assert total(rows) == 23
    assert 23 * 3_000_000 <= total(rows, "sum") < 23 * 30_000_000
    assert min(row["bucket_from"] for row in rows) >= 2_097_152


def test_functions_with_arguments_results_and_recursion(host: Alone, tmp_path: Path) -> None:
    program = compiled(tmp_path, "calls", CALLS)
    probes = {
        "args": f"sum(arg0 + arg1) uprobe:{program}:add by text=str(arg2) if arg1 == 100",
        "result": f"sum(retval) uretprobe:{program}:add",
        "pair": f"linear(retval, 0, 40, 1) function:{program}:deep by n=arg0",
        "event": f"event function:{program}:add by arg0, retval, latency rate 1000",
    }
    for name, line in probes.items():
        assert host.run(name, line).state == "applied", name
    subprocess.run([program], check=True)
    rows = {name: host.end(name) for name in probes}
    assert total(rows["args"], "sum", key1="hello") == sum(range(1, 24)) + 2300
    assert (total(rows["result"]), total(rows["result"], "sum")) == (23, sum(range(1, 24)) + 2300)
    # Each level of the recursion meets its own return: the n-th call returns 7 + n.
    assert {(row["int1"], row["bucket_from"], row["count"]) for row in rows["pair"]} == {
        (n, 7 + n, 23) for n in range(4)
    }
    assert [(row["int1"], row["int2"]) for row in rows["event"]] == [(n, n + 100) for n in range(1, 24)]
    assert all(row["int3"] > 0 for row in rows["event"])


def test_markers_fire(host: Alone, tmp_path: Path) -> None:
    source = "int main() { for (int n = 0; n < 23; n++) try { throw n; } catch (int) {} }"
    (tmp_path / "throws.cc").write_text(source)
    subprocess.run(["g++", "-o", tmp_path / "throws", tmp_path / "throws.cc"], check=True)
    line = 'count usdt:libstdc++:libstdcxx:throw by comm if arg0 != 0 && comm == "throws"'
    assert host.run("throws", line).state == "applied"
    subprocess.run([tmp_path / "throws"], check=True)
    assert total(host.end("throws"), comm="throws") == 23


def test_raw_points_read_kernel_structs(host: Alone) -> None:
    """A task's pid behind a pointer, at the running kernel's offset: the same as everybody's pid."""
    line = 'count raw:sched_process_exit by pid, inner=member(p, task_struct.tgid) if comm == "leaving"'
    assert host.run("exits", line).state == "applied"
    for _ in range(3):
        python(NAMED, "leaving")
    rows = host.end("exits")
    assert total(rows) == 3
    assert all(row["pid"] == row["int1"] for row in rows)


def test_stacks_name_functions(host: Alone, tmp_path: Path) -> None:
    program = compiled(tmp_path, "calls", CALLS)
    assert host.run("stacks", f"count uprobe:{program}:deep by ustack").state == "applied"
    subprocess.run([program], check=True)
    rows = host.end("stacks")
    assert total(rows) == 4 * 23
    frames = {host.stacks[row["user_stack"]].split(";")[-1] for row in rows}
    assert frames <= {"deep", "main", "[unknown]"} or "calls+" in str(frames)


def _removed(place: Path) -> bool:
    """A cgroup is busy for a moment after its last process."""
    with suppress(OSError):
        place.rmdir()
    return not place.exists()


def test_only_the_cgroup_and_the_process_in_scope(host: Alone) -> None:
    mount = find_mount()
    assert mount
    place = mount / "bpfleet-ondemand-test"
    inner = place / "inner"
    inner.mkdir(parents=True, exist_ok=True)
    try:
        line = "count syscall:openat by comm, cgroup"
        assert host.run("scoped", line, cgroup="/bpfleet-ondemand-*").state == "applied"
        assert (
            host.run("own", f'{line} if str(filename) == "/etc/hostname"', pid=os.getpid()).state == "applied"
        )
        enter = f"open('{inner}/cgroup.procs', 'w').write('0')\n"
        python(NAMED + "time.sleep(1.2)\n" + enter + OPENS.split("\n", 2)[2], "inside")
        python(OPENS, "outside")
        Path("/etc/hostname").read_text()
        scoped, own = host.end("scoped"), host.end("own")
    finally:
        for each in (inner, place):
            until(lambda each=each: _removed(each))
    assert total(scoped, comm="inside") >= 23
    assert {row["comm"] for row in scoped} == {"inside"}
    assert {row["cgroup"] for row in scoped} == {"/bpfleet-ondemand-test/inner"}
    assert total(own) == 1


def test_a_library_inside_a_container(host: Alone, tmp_path: Path) -> None:
    """A process with a root directory and a library of its own: the host's file is another."""
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    program = compiled(tmp_path, "calls", CALLS, "-static")
    (root / "bin/calls").write_bytes(program.read_bytes())
    (root / "bin/calls").chmod(0o755)
    code = f"import os, sys\nos.chroot({str(root)!r})\nos.chdir('/')\nsys.stdin.read()\n"
    code += "os.execv('/bin/calls', ['calls'])"
    child = subprocess.Popen(["unshare", "-m", sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        until(lambda: os.path.realpath(f"/proc/{child.pid}/root") == str(root))
        outcome = host.run("contained", "count uprobe:/bin/calls:add by comm", pid=child.pid)
        assert outcome.state == "applied", outcome
        assert child.stdin
        child.stdin.close()
        child.wait(20)
        rows = host.end("contained")
    finally:
        child.kill()
        child.wait()
    assert total(rows) == 23


def test_samples_are_weighted(host: Alone) -> None:
    assert host.run("thin", 'count syscall:getppid by comm if comm == "many" sample 10').state == "applied"
    python(NAMED + "for _ in range(20_000): os.getppid()", "many")
    rows = host.end("thin")
    assert all(row["count"] % 10 == 0 for row in rows)
    assert 18_000 <= total(rows) <= 22_000, "the standard error is 424"


def test_events_keep_to_their_rate_and_say_how_many_they_stand_for(host: Alone) -> None:
    assert (
        host.run("flood", 'event syscall:getppid by pid, comm if comm == "flooding" rate 100').state
        == "applied"
    )
    python(NAMED + "end = time.time() + 3\nwhile time.time() < end: os.getppid()", "flooding")
    rows = host.end("flood")
    assert 50 <= len(rows) <= 4 * 100 * 4, "some four seconds, with the bursts in which it learns"
    assert max(row["count"] for row in rows) > 100


def test_over_its_budget_a_probe_is_thinned_then_detached() -> None:
    with alone(probe_max_cpu=0.001) as host:
        assert host.run("dear", "count tracepoint:raw_syscalls:sys_enter by comm").state == "applied"
        busy = subprocess.Popen([sys.executable, "-c", "import os\nwhile True: os.getppid()"])
        try:
            until(lambda: any(row["event"] == "detached" for row in host.heard("dear")), 40)
        finally:
            busy.kill()
            busy.wait()
        events = host.heard("dear")
        assert [row["event"] for row in events][:2] == ["attached", "throttled"]
        assert events[1]["sample"] > 1
        last = events[-1]
        assert last["cpu_share"] > last["budget"] == 0.001
        assert "over its budget" in last["reason"]
        assert last["runs_per_s"] > 0
        outcome = host.probes.apply(host.documents)["dear"]
        assert outcome.state == "refused"
        assert "detached: over its budget" in outcome.reason
        assert host.run("dear", "count syscall:getppid").state == "applied", "a newer revision is tried"


def test_the_hosts_budget_may_slow_and_detach(host: Alone) -> None:
    assert host.run("managed", "count syscall:getppid by comm").state == "applied"
    assert (host.probes.slow("managed"), host.probes.slow("managed")) == (2, 4)
    assert host.agent.costs["probe managed"]()
    assert host.probes.detach("managed", "the costliest of all")
    assert not host.probes.detach("managed", "again")
    assert host.probes.slow("managed") == 0
    assert "probe managed" not in host.agent.costs
    assert host.probes.apply(host.documents)["managed"].reason == "detached: the costliest of all"
    assert [row["event"] for row in host.heard("managed")] == [
        "attached",
        "throttled",
        "throttled",
        "detached",
    ]
    host.end("managed")


def test_one_that_expires_says_so(host: Alone) -> None:
    assert host.run("short", "count syscall:getppid", ttl=0.5).state == "applied"
    time.sleep(0.6)
    host.end("short")
    assert host.heard("short")[-1]["event"] == "expired"


def test_c_of_ones_own_only_from_the_hosts_own_directory(tmp_path: Path) -> None:
    """The document names a file; what is in it never travels."""
    spec = {"at": "syscall:getppid", "by": ["comm"], "source": "own.c"}
    with alone() as host:
        assert "collector.probe_dir is not set" in host.run("own", spec).reason
    code = probe_dry.source(check(spec))
    (tmp_path / "own.c").write_text(code.replace("count, weight)", "count, 2 * weight)"))
    with alone(probe_dir=str(tmp_path), probe_max_cpu=1.0) as host:
        assert host.run("own", spec).state == "applied"
        python(NAMED + "for _ in range(23): os.getppid()", "twofold")
        assert total(host.end("own"), comm="twofold") == 46
        (tmp_path / "own.c").chmod(0o666)
        assert "others" in host.run("own", spec).reason


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ('comm == "fifteen-letters"', True),
        ('comm == "fifteen-letters-and-more"', False),
        ('starts_with(comm, "fifteen-letters")', True),
        ('starts_with(comm, "fifteen-letters!")', False),
        (" && ".join(f'comm != "some-name-{n:02}"' for n in range(40)), True),
    ],
)
def test_long_texts_compare(host: Alone, condition: str, holds: bool) -> None:
    """As many bytes as there are: the verifier follows one branch for each text, not one a byte."""
    name = f"texts{abs(hash(condition))}"
    assert host.run(name, f"count syscall:getppid by comm if {condition}").state == "applied"
    python(NAMED + "for _ in range(23): os.getppid()", "fifteen-letters")
    assert total(host.end(name), comm="fifteen-letters") == 23 * holds


def test_texts_are_bytes(host: Alone) -> None:
    assert host.run("bytes", 'count syscall:getppid if comm == "größe"').state == "applied"
    python(NAMED + "for _ in range(23): os.getppid()", "größe")
    assert total(host.end("bytes")) == 23
