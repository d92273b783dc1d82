"""On-demand probes: from `probe run` to the first row in SQL; what a sampled malloc probe costs and tells.

The first part runs the whole chain, command to store, on loopback. The second runs a program that does
nothing but allocate: alone, under `heap-outstanding`, and under plain probes of malloc and free, in turns; it
knows itself how much it has kept, and from where.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from conftest import StoreProcess
from ondemand import Alone, Whole, alone, python, total, until
from ondemand_heap import Allocating, Outcome, program, watched
from sinking import Place

from bench.common import Row, Times, free_port, in_turns, percentile, ratio_text
from sinks.kafka_server import KafkaServer

RUNS, ROUNDS, SECONDS = 20, 5, 10.0
FIRST_ROW_S, SLOWDOWN, OFF = 3.0, 1.10, 0.10
UNSAMPLED_S = 2.0
OPENS = "import ctypes, os\nctypes.CDLL(None).prctl(15, b'counted')\n" + (
    "for _ in range(23): os.close(os.open('/etc/hostname', 0))\n"
)


def first_rows(runs: int = RUNS) -> tuple[list[float], list[float]]:
    """(seconds from the start of the command, from its publication) to the first row in SQL."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        broker, store = KafkaServer(directory / "kafka", free_port()), StoreProcess(directory / "store")
        broker.start()
        try:
            broker.wait_ready()
            store.start()
            whole = Whole(Place(broker.servers, store.url, "bench", directory))
            try:
                whole.start()
                return _runs(whole, runs)
            finally:
                whole.stop()
        finally:
            store.kill()
            broker.stop()


def _runs(whole: Whole, runs: int) -> tuple[list[float], list[float]]:
    from_start, from_publication = [], []
    for number in range(runs + 1):  # the first one makes topics and tables
        name = f"run{number}"
        begun = time.time()
        whole.command("run", "count syscall:openat by comm", "--id", name, "--no-follow")
        ((_, published),) = until(lambda name=name: _first(whole, name), 60)
        now = time.time()
        whole.command("stop", name)
        from_start.append(now - begun)
        from_publication.append(now - published / 1e6)
    return from_start[1:], from_publication[1:]


def _first(whole: Whole, name: str) -> list[tuple[Any, ...]]:
    return whole.rows(name, "count(), min(revision)", "HAVING count() > 0")


def plain(file: Path, host: Alone | None = None) -> float:
    """ns a round of the program; with a host, under plain probes of malloc and free."""
    with Allocating(file, UNSAMPLED_S if host else SECONDS / 2, 20) as running:
        for name, point in (("m", "function:libc:malloc"), ("f", "uprobe:libc:free")) if host else ():
            assert (
                host
                and host.run(name, f"sum(arg0) {point} by comm", pid=running.child.pid).state == "applied"
            )
        running.go()
        ns_per_round, _ = running.done()
        for name in ("m", "f") if host else ():
            assert host
            host.end(name)
    return ns_per_round


def heap(rounds: int = ROUNDS) -> tuple[dict[str, Times], list[Outcome]]:
    """ns a round alone, watched and under plain probes; what was said of the heap."""
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as name:
        file = program(Path(name))

        def sampled() -> float:
            with alone(probe_max_cpu=0.05) as host:
                outcomes.append(watched(host, file, SECONDS, keep=20))
            return outcomes[-1].ns_per_round

        def unsampled() -> float:
            with alone(probe_max_cpu=1.0) as host:
                return plain(file, host)

        jobs: dict[str, Callable[[], float]] = {
            "alone": lambda: plain(file), "sampled": sampled, "unsampled": unsampled,
        }  # fmt: skip
        return in_turns(jobs, rounds), outcomes[1:]


def counted() -> int:
    """Opens counted of a program that makes 23."""
    with alone() as host:
        host.run("opens", 'count syscall:openat by str(filename) if comm == "counted"')
        python(OPENS)
        rows: list[dict[str, Any]] = host.end("opens")
    return total(rows, key1="/etc/hostname")


def run() -> list[Row]:
    """Delay, slow-down, error, count."""
    from_start, from_publication = first_rows()
    p95, p95_published = percentile(from_start, 0.95), percentile(from_publication, 0.95)
    times, outcomes = heap()
    off = [each.off for each in outcomes]
    off_site = [each.off_at("keep_much") for each in outcomes]
    slow = times["sampled"].median / times["alone"].median
    opens = counted()
    return [
        Row("`probe run` to first row in SQL, p95",
            f"{p95:.2f} s (median {statistics.median(from_start):.2f})",
            f"from publication {p95_published:.2f} s", "", f"≤ {FIRST_ROW_S:g} s", p95 <= FIRST_ROW_S),
        Row("allocating program, sampled malloc probe", times["sampled"].text("ns a round"),
            f"alone {times['alone'].text('ns')}", ratio_text(times["sampled"], times["alone"]),
            f"≤ {SLOWDOWN}", slow <= SLOWDOWN),
        Row("allocating program, unsampled probes of malloc and free", times["unsampled"].text("ns a round"),
            f"alone {times['alone'].text('ns')}", ratio_text(times["unsampled"], times["alone"]),
            "", None),
        Row("outstanding bytes, error of the estimate",
            f"{statistics.median(off):.1%} (worst {max(off):.1%})",
            "the program's own count", "", f"≤ {OFF:.0%}", statistics.median(off) <= OFF),
        Row("of the largest call site", f"{statistics.median(off_site):.1%} (worst {max(off_site):.1%})",
            "the program's own count", "", f"≤ {OFF:.0%}", statistics.median(off_site) <= OFF),
        Row("23 opens", str(opens), "23", "", "exact", opens == 23),
    ]  # fmt: skip
