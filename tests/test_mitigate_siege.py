"""End to end: three hosts, real collectors, Kafka, sink and store; attacks while people download."""

import json
import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import StoreProcess
from siege import HOSTS, Fleet, siege
from sinking import Place, delete_topics, eventually

from fleet.desired import Draft
from schemas.filter import FILTER
from sinks.kafka_server import KafkaServer

PATTERNS = ("syn flood", "dns amplification", "carpet bombing")


@pytest.fixture(scope="module")
def fleet(
    kafka: KafkaServer, store: StoreProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    delete_topics(kafka.servers)
    folder = tmp_path_factory.mktemp("siege")
    place = Place(kafka.servers, store.url, f"siege{time.monotonic_ns()}", folder)
    try:
        with siege(place, folder) as made:
            yield made
    finally:
        place.close()


@pytest.mark.parametrize("name", PATTERNS)
def test_an_attack_is_dropped_on_every_host(fleet: Fleet, name: str) -> None:
    blow = fleet.strike(name)
    print(f"\n{blow}")
    assert blow.hosts == len(HOSTS) and blow.broken == 0
    assert 0.99 * blow.sent <= blow.dropped <= blow.sent
    assert blow.lost <= 0.001 * blow.legitimate
    assert blow.seconds < 4
    if name == PATTERNS[-1]:
        record(fleet, blow.target)


def record(fleet: Fleet, target: str) -> None:
    """What `bpfleet attacks` says of it afterwards."""
    over = fleet.step("over", target, 40)

    def recorded() -> dict[str, Any] | None:
        found: dict[str, Any] = json.loads(fleet.run_command("attacks", "show", over["attack"], "--json"))
        return found if found["state"] == "over" else None

    shown = eventually(recorded)
    print(fleet.run_command("attacks", "list"))
    log = fleet.run_command("drop", "log", shown["rules"][0], "--since", "1h", "--json").splitlines()
    print(fleet.run_command("drop", "log"))
    told = {(row["host"], row["event"]) for row in map(json.loads, log)}
    assert {(host, event) for host in shown["hosts"] for event in ("added", "enforced")} <= told
    assert shown["share_dropped"] >= 0.99 and shown["seconds_to_drop"] < 4 and len(shown["hosts"]) == 3
    assert shown["legitimate_lost"] == 0 < shown["legitimate"] and shown["sources"] and shown["rules"]
    steps = [each["event"] for each in shown["steps"]]
    for each in (
        "detected",
        "distilled",
        "backtested",
        "published",
        "confirmed",
        "enforced",
        "in_force",
        "over",
    ):
        assert each in steps, steps


def test_what_people_write_is_everywhere_soon(fleet: Fleet) -> None:
    """Expressions, which each host compiles, and the members of a set, which it does not."""
    rules, lists = [], []
    lists.append(
        fleet.publish([Draft(FILTER, "set:bots", {"set": {"name": "bots", "prefixes": ["192.0.2.1"]}})])
    )
    for number in range(6):
        rule = {"match": f"udp dst port {40_000 + number} and src in @bots", "mode": "enforce"}
        rules.append(fleet.publish([Draft(FILTER, f"by-hand-{number}", {"rule": rule}, ttl_s=60)]))
        bots = {"name": "bots", "prefixes": [f"192.0.2.{number}", "198.51.100.0/24"]}
        lists.append(fleet.publish([Draft(FILTER, "set:bots", {"set": bots})]))
    print(f"\nrule → enforced on three hosts: {statistics.median(rules):.2f} s, worst {max(rules):.2f} s;"
          f" list: {statistics.median(lists):.2f} s, worst {max(lists):.2f} s")  # fmt: skip
    assert max(rules) <= 2 and statistics.median(lists) <= 0.5
