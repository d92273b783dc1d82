"""A bpfleet of its own, and how long a verdict takes on a fault in it."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults import FAULTS
from faults_more import MORE

from fleet import supervise
from fleet.diagnose.judge import Judge, Row
from schemas.clickhouse import connect
from schemas.config import Config

ALL = {**FAULTS, **MORE}
DEADLINE_S = 10.0
WINDOW_S = 8.0
POLL_S = 0.5
HASTY_S = 3.0  # what is right sooner may be the quiet before
DISTURBED = 0.4  # CPUs
TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Outcome:
    """What was said of a fault within :data:`DEADLINE_S`."""

    faults: tuple[str, ...]
    culprits: tuple[str, ...]
    expected: frozenset[str]
    verdicts: frozenset[str]  # at the last judgement
    seconds: float  # until just the expected ones were said; inf: never
    rows: list[Row]
    background: float = 0.0  # CPUs that programs of nobody's here took

    @property
    def disturbed(self) -> bool:
        """Whether other programs of the machine took so much that the verdict is (also) about them."""
        return self.background > DISTURBED

    @property
    def right(self) -> bool:
        """Just what is expected, at some judgement in time and at the last one."""
        return self.seconds <= DEADLINE_S and self.verdicts == self.expected

    @property
    def named(self) -> bool:
        """Whether every culprit has its name in a row."""
        said = " ".join(f"{row.get('culprit', '')} {row.get('victim', '')}" for row in self.rows)
        return all(each in said for each in self.culprits)


def verdicts_of(rows: list[Row], host: str) -> frozenset[str]:
    return frozenset(row["verdict"] for row in rows if row["target_host"] == host)


def cpu_seconds() -> tuple[float, float]:
    """(all that any task had since the boot, of it this process, its descendants, and those that ended)."""
    own: set[int] = {os.getpid()}
    total = own_s = 0.0
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    total = (sum(map(int, words)) - int(words[3]) - int(words[4]) - int(words[7])) / TICK
    tasks = []
    for each in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = each.read_text()
        except OSError:
            continue
        fields = text.rpartition(")")[2].split()
        tasks.append((int(each.parent.name), int(fields[1]), sum(map(int, fields[11:15]))))
    for pid, parent, ticks in sorted(tasks):  # a child's number is nearly always above its parent's
        if pid in own or parent in own:
            own.add(pid)
            own_s += ticks / TICK
    return total, own_s


def observe(
    judge: Judge, host: str, names: tuple[str, ...], directory: Path, *, hasty: bool = False
) -> Outcome:
    """Make the faults; judge again and again until time is up, or (``hasty``) until it is right twice."""
    expected = frozenset(ALL[name].verdict for name in names)
    with ExitStack() as stack:
        total, own = cpu_seconds()
        judge.refresh(int((time.time() - WINDOW_S) * 1e6))
        culprits = tuple(stack.enter_context(ALL[name].make(directory)) for name in names)
        begun, seconds = time.monotonic(), float("inf")
        rows: list[Row] = []
        while (now := time.monotonic() - begun) < DEADLINE_S:
            time.sleep(POLL_S)
            # Never looks back beyond the fault: what was before is another run's.
            window = max(min(WINDOW_S, now + POLL_S), 5.0)
            rows = judge.rows(time.time_ns() // 1000, window, host)
            if verdicts_of(rows, host) == expected:
                if hasty and seconds < float("inf") and now >= HASTY_S:
                    break
                seconds = min(seconds, time.monotonic() - begun)
        after, own_after = cpu_seconds()
        background = (after - total - (own_after - own)) / (time.monotonic() - begun)
    return Outcome(names, culprits, expected, verdicts_of(rows, host), seconds, rows, background)


@contextmanager
def rig(config: Config) -> Iterator[Judge]:
    """All parts as processes on this machine; the judge is ready once figures arrive."""
    parts = supervise.parts_of(config)
    try:
        supervise.start(parts, lambda _: None)
        client = connect(config.clickhouse)
        wait_for_figures(client, config.host)
        yield Judge(client, config)
    finally:
        supervise.stop(parts, lambda _: None)


def wait_for_figures(client: Any, host: str, streams: tuple[str, ...] = ("pressure", "runq_latency")) -> None:
    end = time.monotonic() + 90
    seen: object = None
    while time.monotonic() < end:
        try:
            seen = [
                int(client.command(f"SELECT count() FROM {each} WHERE host = '{host}'")) for each in streams
            ]
            if min(seen) >= 8:
                return
        except Exception as error:
            seen = error
            if "UNKNOWN" not in str(error):
                raise
        time.sleep(0.3)
    raise AssertionError(f"no figures came: {seen}")


def settings(state: Path, ports: dict[str, int]) -> Config:
    """Settings of a whole bpfleet; children find them in the environment."""
    from schemas import config

    os.environ |= {
        "BPFLEET_STATE_DIR": str(state),
        "BPFLEET_KAFKA": f"127.0.0.1:{ports['kafka']}",
        "BPFLEET_CLICKHOUSE": f"http://127.0.0.1:{ports['store']}",
        "BPFLEET_STORE_PORT": str(ports["store"]),
        "BPFLEET_SINK_METRICS_PORT": str(ports["sink"]),
        "BPFLEET_COLLECTOR_METRICS_PORT": str(ports["collector"]),
    }
    return config.load(None)
