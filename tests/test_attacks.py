"""`bpfleet attacks`: records, steps, captures; `bpfleet mitigate --once --dry-run` as operators type it."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv6Network
from pathlib import Path

import numpy as np
import pytest
from attacking import ATTACKS, TARGET
from conftest import StoreProcess
from mitigating import STREAMS, Samples, columns
from scapy.all import IP, UDP, rdpcap

from fleet.mitigate_case import Case, Rule
from fleet.mitigate_distill import tried
from fleet.mitigate_vectors import BY_NAME
from fleet.samples import RECORD
from schemas.rows import columns as columns_of
from sinks.kafka_server import KafkaServer

FRAMES = ATTACKS["ntp amplification"](random.Random(3), 300)


class Place:
    """Samples of one attack and of others, its record, and the command line to ask."""

    def __init__(self, url: str, servers: str) -> None:
        self.samples = Samples(url)
        self.now = time.time_ns() // 1000
        config = self.samples.config.clickhouse
        self.environment = {"BPFLEET_CLICKHOUSE": url, "BPFLEET_CLICKHOUSE_DATABASE": config.database,
                            "BPFLEET_KAFKA": servers, "BPFLEET_MITIGATE_FLOOR_PPS": "500"}  # fmt: skip

    def run(self, *words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "fleet", *words]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def place(store: StoreProcess, kafka: KafkaServer) -> Iterator[Place]:
    made = Place(store.url, kafka.servers)
    yield made
    made.samples.close()


def test_before_there_is_anything(place: Place) -> None:
    assert json.loads(place.run("attacks", "list", "--json")) == []
    assert "there is no attack x" in place.run("attacks", "show", "x", code=2)


@pytest.fixture(scope="module")
def attack(place: Place) -> str:
    """An attack of ten seconds, ten minutes ago; its id."""
    begin = place.now - 600_000_000
    times = begin + np.arange(300) * 33_000
    place.samples.put("h1", FRAMES[:100], times[:100], weight=8)
    place.samples.put("h2", FRAMES[100:], times[100:], weight=8, verdict="drop", rule="mitigate-x-1")
    place.samples.put("h2", FRAMES[:50], times[:50], verdict="shadow", rule="mitigate-x-1")
    other = ATTACKS["syn flood"](random.Random(4), 50)
    place.samples.put("h1", other, times[:50], weight=1)
    place.samples.put("h1", FRAMES[:20], begin - 3_600_000_000 + np.arange(20))
    target = IPv6Network(f"::ffff:{TARGET}")
    case = Case(target, begin, begin + 1_000_000, "enforce", ["ntp amplification"])
    fields = dict(BY_NAME["ntp amplification"].fields) | {"dst": f"{TARGET}/32", "length": "482"}
    pattern = tried(fields, np.empty(0, RECORD), np.empty(0, RECORD))
    case.rules.append(Rule(case.next_rule(), "ntp amplification", pattern, "lapsed", begin))
    case.tally.packets, case.tally.after, case.tally.after_dropped = 2400, 1700, 1690
    case.tally.first_drop, case.tally.sources = (
        begin + 2_500_000,
        json.dumps({"198.51.100.7": 80, "203.0.113.1": 90}),
    )
    steps = [case.event("detected", begin + 1_000_000, pps=800), case.event("over", begin + 20_000_000)]
    for revision in (begin + 2_000_000, begin + 20_000_000):
        if revision > begin + 2_000_000:
            case.ended = begin + 10_000_000
        place.samples.rows("attack", "operator", columns_of(STREAMS["attack"], [case.row(revision)]), 1)
    place.samples.rows("attack_event", "operator", columns_of(STREAMS["attack_event"], steps), 2)
    return case.id


def test_list_and_show(place: Place, attack: str) -> None:
    (one,) = json.loads(place.run("attacks", "list", "--since", "1h", "--json"))
    assert (one["id"], one["state"], one["target"], one["vectors"]) == (
        attack,
        "over",
        f"{TARGET}/32",
        ["ntp amplification"],
    )
    assert one["seconds_to_drop"] == 1.5 and one["share_dropped"] == pytest.approx(1690 / 1700)
    assert list(one["sources"]) == ["203.0.113.1", "198.51.100.7"]
    assert json.loads(place.run("attacks", "list", "--since", "1m", "--json")) == []
    shown = json.loads(place.run("attacks", "show", attack[:-2], "--json"))
    assert [(each["event"], each["after_us"]) for each in shown["steps"]] == [
        ("detected", 0),
        ("over", 19_000_000),
    ]
    table = place.run("attacks", "list", "--since", "1h")
    assert "1.50 s" in table and "99.41%" in table and attack in table
    assert "detected" in place.run("attacks", "show", attack)


def test_a_capture_that_others_open(place: Place, attack: str, tmp_path: Path) -> None:
    file = tmp_path / "f.pcap"
    said = place.run("attacks", "pcap", attack, "-o", str(file))
    packets = rdpcap(str(file))
    assert len(packets) == 300 and "300 samples" in said, (
        "not the shadow samples, nor what came an hour before"
    )
    assert all(each[UDP].sport == 123 and each[IP].dst == TARGET and each.wirelen == 482 for each in packets)
    assert [float(each.time) for each in packets] == sorted(float(each.time) for each in packets)
    assert {bytes(each)[:128] for each in packets} == {each[:128] for each in FRAMES}
    (tmp_path / "d").mkdir()
    assert "choose another" in place.run("attacks", "pcap", attack, "-o", str(tmp_path / "d"), code=1)


def test_backtest_knows_the_attack(place: Place, attack: str) -> None:
    told = json.loads(place.run("drop", "backtest", "udp and src port 123", "--since", "2h", "--json"))
    assert told["attacks"] == {attack: 2400} and told["legitimate"]["packets"] == 20


def test_once_and_dry(place: Place) -> None:
    """Somebody is attacked now: it says what it would do, and does nothing."""
    assert "nobody" in subprocess.run(
        [sys.executable, "-m", "fleet", "mitigate", "--once", "--dry-run"], env=place.environment,
        capture_output=True, text=True, timeout=60, check=True,
    ).stderr  # fmt: skip
    frames = columns(ATTACKS["memcached amplification"](random.Random(5), 3000))

    def attacked() -> None:
        """From a second ago on, for nine seconds: however long the command takes to start."""
        begin = time.time_ns() // 1000 - 1_000_000
        place.samples.put("h1", frames, begin + np.arange(3000) * 3_000, weight=4)

    attacked()
    said = place.run("mitigate", "--once", "--dry-run")
    assert "detected" in said and "memcached amplification" in said and "dry run" in said
    attacked()
    steps = [json.loads(line) for line in place.run("mitigate", "--once", "--dry-run", "--json").splitlines()]
    assert [each["event"] for each in steps] == ["detected", "distilled", "backtested", "suggested"]
    assert json.loads(place.run("attacks", "list", "--since", "5m", "--json")) == []
    assert "not one of" in place.run("mitigate", "--policy", "panic", code=2)
