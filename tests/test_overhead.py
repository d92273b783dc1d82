"""The overhead budget: a real probe over a tiny one goes step by step, others stay; and its arithmetic."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from collecting import CollectorProcess, read_topic, rows, wait_for

from collector.overhead import CALM, SUSTAINED, WARM_UP, Budget, Reading, bill
from collector.overhead_brake import STEPS, Step
from sinks.kafka_server import KafkaServer

QUICK = ("import collector.agent as a; a.HEALTH_S = 0.3; from fleet.cli import main; main()",)
PING_PONG = """
import os, time
a, b = os.pipe(), os.pipe()
if not os.fork():
    while os.read(a[0], 1):
        os.write(b[1], b"x")
end = time.monotonic() + 40
while time.monotonic() < end:
    os.write(a[1], b"x"); os.read(b[0], 1)
"""
SECOND_US = 1_000_000


@pytest.fixture
def switching() -> Iterator[None]:
    """Two processes that wake each other, on one CPU."""
    command = ["taskset", "-c", "0", sys.executable, "-c", PING_PONG]
    process = subprocess.Popen(command, start_new_session=True)
    yield
    os.killpg(process.pid, 9)
    process.wait()


def steps_of(kafka: KafkaServer, host: str) -> list[dict[str, Any]]:
    return [row for row in rows(read_topic(kafka.servers, "overhead_event", host)) if row["probe"]]


def test_a_probe_over_the_budget_is_slowed_then_detached_and_the_others_stay(
    kafka: KafkaServer, tmp_path: Path, switching: None
) -> None:
    host = f"budget-{os.getpid()}"
    collector = CollectorProcess(
        tmp_path, kafka.servers, host, budget_percent=0.5, kinds=[], probes=["runq_latency", "cgroup"]
    )

    try:
        collector.start(code=QUICK)
        wait_for(lambda: "runq_latency detached" in collector.said(), 40, "detached")
        time.sleep(1.5)  # some more intervals, in which it must not run
        wait_for(lambda: len(steps_of(kafka, host)) > STEPS, 60, "delivered")
    finally:
        collector.stop()
    found = steps_of(kafka, host)
    assert [each["action"] for each in found] == ["slowed"] * STEPS + ["detached"]
    assert {each["probe"] for each in found} == {"runq_latency"}, "cgroup names the others' rows"
    assert [each["value_after"] for each in found[:STEPS]] == [2000, 4000, 8000]
    for each in found:
        assert each["total_percent"] > each["budget_percent"] == 0.5
        assert each["probe_percent"] > 0 and each["ns_per_event"] > 10 and each["events_per_second"] > 1000
    health = [each for each in rows(read_topic(kafka.servers, "collector_health", host)) if each["program"]]
    runs = [each["runs"] for each in health if each["probe"] == "runq_latency"]
    assert max(runs) > 1000 and runs[-1] == 0, "it runs no more"
    assert any(each["probe"] == "cgroup" for each in health[-20:])


@dataclass
class Recorded:
    """A brake with two steps that remembers."""

    kind: str = "always_on"
    detached: bool = False
    level: int = 0
    said: list[str] = field(default_factory=list)

    def slow(self, why: str) -> Step | None:
        self.said.append(why)
        if self.level == 2:
            return None
        self.level += 1
        return Step(self.level, "samples", 8 >> (self.level - 1), 8 >> self.level)

    def restore(self) -> Step | None:
        if not self.level:
            return None
        self.level -= 1
        return Step(self.level, "samples", 8 >> (self.level + 1), 8 >> self.level)

    def detach(self, why: str) -> Step:
        self.detached = True
        return Step(self.level)


class Clockwork:
    """Intervals of a second on one CPU, in which probes take shares of it."""

    def __init__(self, percent: float, **brakes: Recorded) -> None:
        self.budget, self.brakes = Budget(percent, 1), brakes
        self.now, self.totals = SECOND_US, {("process", ""): {"cpu_us": 0}}

    def run(self, intervals: int, own: float = 0.0, **shares: float) -> list[tuple[str, str]]:
        made = []
        for _ in range(intervals):
            self.now += SECOND_US
            totals = {("process", ""): {"cpu_us": self.totals["process", ""]["cpu_us"] + int(own * 1e4)}}
            for name, share in shares.items():
                before = self.totals.get(("program", name, "hook"), {"run_ns": 0, "runs": 0})
                run = {"run_ns": before["run_ns"] + int(share * 1e7), "runs": before["runs"] + 1000}
                totals["program", name, "hook"] = run
            self.totals = totals
            made += [
                (row["probe"], row["action"])
                for row in self.budget.judge(Reading(self.now, totals, {}), self.brakes)
            ]
        return made


def test_only_what_lasts_counts_and_the_further_past_the_sooner() -> None:
    clockwork = Clockwork(1.0, a=Recorded(), b=Recorded())
    assert clockwork.run(WARM_UP, a=50.0, b=1.0) == []
    assert clockwork.run(SUSTAINED - 2, a=0.9, b=0.3) == []
    assert clockwork.run(1, a=0.1, b=0.1) == [], "a calm interval begins the count anew"
    assert clockwork.run(SUSTAINED - 2, a=0.9, b=0.3) == []
    assert clockwork.run(1, a=0.9, b=0.3) == [("a", "slowed")]
    assert clockwork.run(2, a=20.0, b=0.3) == [("a", "slowed")]
    assert clockwork.run(2, a=20.0, b=0.3) == [("a", "detached")]
    assert clockwork.run(2, own=20.0, a=0.0, b=0.3) == [("b", "slowed")]


def test_what_costs_nothing_and_what_has_no_brake_is_left_alone_and_said_once() -> None:
    clockwork = Clockwork(1.0, a=Recorded())
    clockwork.run(WARM_UP, a=0.0)
    assert clockwork.run(20, own=5.0, a=0.01, balancer=30.0) == [("", "over_budget")]
    assert not clockwork.brakes["a"].detached


def test_a_slowed_probe_recovers_in_calm_and_later_when_that_was_too_soon() -> None:
    clockwork = Clockwork(1.0, a=Recorded())
    clockwork.run(WARM_UP, a=0.0)
    assert clockwork.run(2, a=30.0) == [("a", "slowed")]
    assert clockwork.run(CALM - 1, a=0.2) == []
    assert clockwork.run(30, a=0.7) == [], "near the budget nothing is made dearer"
    assert clockwork.run(CALM, a=0.2) == [("a", "restored")]
    assert clockwork.run(2, a=30.0) == [("a", "slowed")]
    assert clockwork.run(2 * CALM - 1, a=0.2) == []
    assert clockwork.run(1, a=0.2) == [("a", "restored")]


def test_a_bill_has_programs_and_the_collector_s_work_on_their_rows() -> None:
    process = ("process", "")
    before = Reading(0, {process: {"cpu_us": 100}}, {"p": 1000, "q": 5})
    totals = {process: {"cpu_us": 1100}, ("program", "p", "tp"): {"run_ns": 500, "runs": 5}}
    made = bill(before, Reading(SECOND_US, totals, {"p": 4000, "q": 5}), 2)
    assert made.probes["p"].own_ns == 3000 and made.probes["q"].total_ns == 0
    assert made.probes["p"].total_ns == 3500
    assert made.total_percent == pytest.approx(100 * 1_000_500 / 2e9)
