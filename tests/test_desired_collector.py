"""The whole collector as a process: what is published reaches it, and its answer comes back soon."""

import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from collecting import CollectorProcess, wait_for

from fleet.acknowledge import Watch, live_hosts
from fleet.desired import Board, Draft
from schemas.config import Config
from schemas.desired import Kind, Scope
from sinks.kafka_server import KafkaServer

NONESUCH = Kind("nonesuch")  # no collector has a handler for it: each says so


@pytest.fixture
def collector(kafka: KafkaServer, tmp_path: Path) -> Iterator[CollectorProcess]:
    made = CollectorProcess(
        tmp_path, kafka.servers, "desired-host", labels={"role": "edge"}, probes=["runq_latency"]
    )
    made.start()
    yield made
    made.kill()


def test_publish_to_acknowledged_by_a_real_collector(collector: CollectorProcess, kafka: KafkaServer) -> None:
    config = Config(host="operator")
    config.kafka.servers = kafka.servers
    wait_for(lambda: live_hosts(config).get("desired-host") == {"role": "edge"}, 30, "its heartbeat")
    board, watch = Board(config), Watch(config)
    took = []
    try:
        for number in range(10):
            time.sleep(0.05)
            begun = time.monotonic()
            draft = Draft(NONESUCH, "x", {"say": number}, Scope(("desired-*",)), ttl_s=60)
            answers = watch.wait(board.publish([draft]), {"desired-host": {}}, 10)
            took.append(time.monotonic() - begun)
            answer = answers["nonesuch/x", "desired-host"]
            assert answer is not None and answer.state == "refused" and "knows no kind" in answer.reason
        board.delete(["nonesuch/x"])
    finally:
        board.close()
        watch.close()
    p50, worst = statistics.median(took[1:]) * 1000, max(took[1:]) * 1000
    print(f"\npublish → acknowledged by `bpfleet collect`: median {p50:.0f} ms, worst {worst:.0f} ms")
    assert p50 <= 500
    assert collector.process is not None
    process = psutil.Process(collector.process.pid)
    before, begun = process.cpu_times(), time.monotonic()
    time.sleep(3)
    after = process.cpu_times()
    share = (after.user + after.system - before.user - before.system) / (time.monotonic() - begun)
    print(f"collector: {process.memory_info().rss / 1e6:.0f} MB, {share:.2%} of a core when idle")
    assert collector.stop() == 0
    assert not re.search(r"Traceback|fault of our own", collector.said()), collector.said()
