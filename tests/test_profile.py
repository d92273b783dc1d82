"""cpu_profile and stack: programs with known shares of time, through a real collector, beside perf record."""

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collecting import CollectorProcess
from probing import probing
from profiled import compile_all

from collector import bpf_sys
from collector.clocks import Clocks
from schemas.config import Config

SECONDS = 7
USED: dict[int, float] = {}  # pid of each program → CPU seconds, by the kernel
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return compile_all(tmp_path_factory.mktemp("programs"))


class Seen:
    """What a collector printed."""

    def __init__(self, text: str) -> None:
        self.rows: Rows = {}
        for line in text.splitlines():
            if line.startswith("{"):
                row = json.loads(line)
                self.rows.setdefault(row["table"], []).append(row)
        self.stacks = {each["stack"]: each for each in self.rows["stack"]}

    def samples(self, comm: str) -> Counter[str]:
        """user stack as text → samples of the threads of that name."""
        found: Counter[str] = Counter()
        for row in self.rows["cpu_profile"]:
            if row["comm"] == comm:
                found[self.stacks[row["user_stack"]]["frames"] if row["user_stack"] else ""] += row["samples"]
        return found

    def share(self, comm: str, function: str) -> float:
        """Share of a thread's samples that have the function on their stack."""
        samples = self.samples(comm)
        inside = sum(count for stack, count in samples.items() if function in stack.split(";"))
        return inside / max(sum(samples.values()), 1)


@pytest.fixture(scope="module")
def seen(
    programs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Seen, dict[str, float]]]:
    """All programs at once beside the collector and perf; and perf's shares of the C program's functions."""
    directory = tmp_path_factory.mktemp("profile")
    collector = CollectorProcess(
        directory,
        "127.0.0.1:1",
        "profiled",
        probes=["cpu_profile"],
        kinds=[],
        budget_percent=100,
        profile_ms=1000,
        profile_hz=199,
    )
    running: list[subprocess.Popen[bytes]] = []
    try:
        collector.start("--print")
        gone = programs["known_c"].with_name("known_gone")
        gone.write_bytes(programs["known_c"].read_bytes())
        gone.chmod(0o755)
        inside = {"PATH": "/usr/bin"}
        for program in programs.values():
            running.append(subprocess.Popen([str(program), str(SECONDS)], env=inside))
        running.append(subprocess.Popen([str(gone), str(SECONDS)]))
        time.sleep(0.05)
        gone.unlink()
        report = directory / "perf.data"
        subprocess.run(
            ["perf", "record", "-q", "-F", "499", "-g", "-e", "cpu-clock", "-o", str(report),
             "-p", str(running[0].pid), "--", "sleep", str(SECONDS - 2)],
            check=False, capture_output=True,
        )  # fmt: skip
        for each in running:
            _, each.returncode, usage = os.wait4(each.pid, 0)
            USED[each.pid] = usage.ru_utime + usage.ru_stime
        time.sleep(1.5)
    finally:
        for each in running:
            each.kill()
            each.wait()
        collector.stop()
    yield Seen(collector.said()), perf_shares(report)


def perf_shares(report: Path) -> dict[str, float]:
    """function → share of samples that have it on their stack, by perf."""
    text = subprocess.run(
        ["perf", "script", "-i", str(report), "-F", "ip,sym"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    stacks = [
        {line.split()[1] for line in block.splitlines() if len(line.split()) > 1}
        for block in text.split("\n\n")
        if block.strip()
    ]
    functions = {name for stack in stacks for name in stack}
    return {name: sum(name in stack for stack in stacks) / len(stacks) for name in functions}


def test_shares_are_the_programs_own(seen: tuple[Seen, dict[str, float]]) -> None:
    # On a busy machine the program gets less time, and fewer samples tell less.
    allowed = max(0.06, 3 * (0.7 * 0.3 / sum(seen[0].samples("known_c").values())) ** 0.5)
    assert seen[0].share("known_c", "seventy") == pytest.approx(0.7, abs=allowed)
    assert seen[0].share("known_c", "thirty") == pytest.approx(0.3, abs=allowed)
    assert seen[0].share("known_c", "burn") > 0.97
    deepest = seen[0].samples("known_c").most_common(1)[0][0]
    assert deepest.endswith("main;seventy;burn")  # root first


def test_shares_agree_with_perf_record(seen: tuple[Seen, dict[str, float]]) -> None:
    ours, theirs = seen
    top = sorted(theirs, key=theirs.__getitem__, reverse=True)[:10]
    compared = [name for name in top if theirs[name] > 0.02 and not name.startswith(("[", "asm_", "sysvec"))]
    assert {"main", "seventy", "thirty", "burn"} <= set(compared)
    allowed = 3 * (0.25 / sum(ours.samples("known_c").values())) ** 0.5 + 0.01
    for name in compared:
        assert ours.share("known_c", name) == pytest.approx(theirs[name], abs=max(0.03, allowed)), name


def test_names_of_cpp_rust_and_a_jit(seen: tuple[Seen, dict[str, float]]) -> None:
    ours = seen[0]
    assert (
        ours.share("known_cpp", "shop::Till<int>::count(std::vector<int, std::allocator<int> > const&)") > 0.6
    )
    assert ours.share("known_rust", "<[u8, 4] as known_rust::shop::Count>::count") > 0.6
    assert ours.share("known_jit", "js:hot,path square.js:3") > 0.9  # what separates frames is replaced
    jit = next(each for each in ours.stacks.values() if "js:hot" in each["frames"])
    assert "[jit]" in jit["modules"].split(";")


def test_a_file_without_symbols_is_told_by_build_id_and_address(
    seen: tuple[Seen, dict[str, float]], programs: dict[str, Path]
) -> None:
    ours = seen[0]
    stack = ours.samples("known_bare").most_common(1)[0][0]
    leaf = stack.split(";")[-1]
    assert leaf.startswith("known_bare+0x")
    told = next(each for each in ours.stacks.values() if each["frames"] == stack)
    notes = subprocess.run(
        ["readelf", "-n", str(programs["known_bare"])], capture_output=True, text=True, check=True
    ).stdout
    build_id = notes.partition("Build ID: ")[2].split()[0]
    assert f"known_bare={build_id}" in told["build_ids"].split(";")
    # The address is one that addr2line takes: in the file with symbols it is the function's.
    line = subprocess.run(
        ["addr2line", "-f", "-e", str(programs["known_c"]), leaf.partition("+")[2]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert line.split()[0] == "burn"


def test_a_program_whose_file_was_removed_keeps_its_names(seen: tuple[Seen, dict[str, float]]) -> None:
    assert seen[0].share("known_gone", "burn") > 0.97


def test_samples_stand_for_the_time_that_was_spent(seen: tuple[Seen, dict[str, float]]) -> None:
    """Against what the kernel accounts to each process."""
    rows = [each for each in seen[0].rows["cpu_profile"] if each["pid"] in USED]
    spent = Counter[int]()
    for each in rows:
        spent[each["pid"]] += each["cpu_ns"]
    assert len(USED) == 6
    for pid, seconds in USED.items():
        error = 3 * (seconds / 199) ** 0.5 + 0.03
        assert spent[pid] / 1e9 == pytest.approx(seconds, abs=error)
    assert {each["cpu_ns"] for each in rows if each["samples"] == 1} == {1_000_000_000 // 199}
    assert all(each["pid"] for each in rows) and "[unknown]" not in {each["comm"] for each in rows}


def test_a_stack_goes_out_once(seen: tuple[Seen, dict[str, float]]) -> None:
    told = Counter(each["stack"] for each in seen[0].rows["stack"])
    assert set(told.values()) == {1}
    used = {row[name] for row in seen[0].rows["cpu_profile"] for name in ("user_stack", "kernel_stack")} - {0}
    assert used <= told.keys()


def test_the_frequency_can_be_changed_while_it_runs(programs: dict[str, Path]) -> None:
    stats = bpf_sys.enable_stats()
    # An idle CPU's ticks are not all there: every CPU is kept busy.
    busy = [subprocess.Popen([str(programs["known_c"]), "20"]) for _ in range(os.cpu_count() or 1)]
    try:
        with probing("cpu_profile") as probe:
            clocks = Clocks(probe.loaded, 100)
            for hertz in (100, 25, 0):
                clocks.set_frequency(hertz)
                probe.rows("cpu_profile")
                for _ in range(6):  # a virtual CPU that its host takes away loses ticks, and gains none
                    begun = time.monotonic()
                    (cost,) = probe.cost(lambda: time.sleep(0.8)).values()
                    expected = hertz * (time.monotonic() - begun) * (os.cpu_count() or 1)
                    values = [value for _, value in probe.rows("cpu_profile")]
                    samples = sum(int(each["samples"]) for each in values)
                    assert bool(samples) == bool(hertz)
                    period = 1_000_000_000 // hertz if hertz else 0
                    assert sum(int(each["cpu_ns"]) for each in values) == samples * period
                    assert cost[0] <= 1.15 * expected + 2
                    if cost[0] >= 0.85 * expected - 2:
                        break
                else:
                    raise AssertionError(f"{cost[0]} ticks where {expected:.0f} were due")
            clocks.close()
    finally:
        os.close(stats)
        for each in busy:
            each.kill()
            each.wait()


def test_costs_less_than_a_500th_of_a_core(programs: dict[str, Path]) -> None:
    """By the kernel's own statistics, at 49 Hz, while every CPU is busy."""
    busy = [subprocess.Popen([str(programs["known_c"]), "4"]) for _ in range(os.cpu_count() or 1)]
    stats = bpf_sys.enable_stats()
    try:
        with probing("cpu_profile") as probe:
            clocks = Clocks(probe.loaded, Config().collector.profile_hz)
            begun = time.monotonic()
            (cost,) = probe.cost(lambda: time.sleep(3)).values()
            passed = time.monotonic() - begun
            clocks.close()
    finally:
        os.close(stats)
        for each in busy:
            each.kill()
            each.wait()
    runs, ns = cost
    cpus = os.cpu_count() or 1
    assert runs == pytest.approx(49 * passed * cpus, rel=0.1)
    assert runs * ns / 1e9 / passed / cpus < 0.002


def test_processes_of_other_users_are_seen_after_the_rights_are_dropped(tmp_path: Path) -> None:
    """The collector's thread keeps what /proc/PID/maps demands of it."""
    collector = CollectorProcess(
        tmp_path,
        "127.0.0.1:1",
        "rights",
        probes=["cpu_profile"],
        kinds=[],
        budget_percent=100,
        profile_ms=500,
        profile_hz=199,
    )
    spin = "import os\nos.setgid(65534); os.setuid(65534)\nwhile True: sum(range(9999))"
    busy = subprocess.Popen(["/usr/bin/python3", "-c", spin])
    try:
        collector.start("--print")
        status = Path(f"/proc/{collector.process.pid if collector.process else 0}/status").read_text()
        time.sleep(3)
    finally:
        busy.kill()
        busy.wait()
        collector.stop()
    kept = int(status.partition("CapEff:")[2].split()[0], 16)
    assert kept >> 19 & 1 and not kept >> 21 & 1  # CAP_SYS_PTRACE, not CAP_SYS_ADMIN
    ours = Seen(collector.said())
    frames = {
        frame
        for row in ours.rows["cpu_profile"]
        if row["pid"] == busy.pid and row["user_stack"]
        for frame in ours.stacks[row["user_stack"]]["frames"].split(";")
    }
    assert any("PyEval" in each or "PyLong" in each or each.startswith("python3") for each in frames), frames
