"""End to end: three hosts, real collectors, Kafka, sink and store; attacks while people download."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import StoreProcess
from siege import HOSTS, Fleet, siege
from sinking import Place, delete_topics, eventually

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
    frames, target = fleet.frames(name)
    sent_before, again_before = fleet.retransmitted()
    attack = fleet.attack(frames)
    try:
        in_force = fleet.step("in_force", target)
    finally:
        attack.stop()
    assert in_force["hosts"] == len(HOSTS)
    before = fleet.dropped()
    second = fleet.attack(frames, 1500, 4500)
    second.join(20)
    sent = second.sent * len(HOSTS)
    exactly = fleet.dropped() - before
    sent_after, again_after = fleet.retransmitted()
    lost, legitimate = again_after - again_before, sent_after - sent_before
    print(
        f"\n{name}: detected → in force on {in_force['hosts']} hosts {in_force['after_us'] / 1e6:.2f} s; then"
        f" {exactly / sent:.2%} of {sent:,} dropped; {lost} of {legitimate:,} legitimate segments lost"
    )
    assert 0.99 * sent <= exactly <= sent == 13_500
    assert lost <= 0.001 * legitimate
    assert in_force["after_us"] < 4e6
    assert all(each.is_alive() and not each.broken for each in fleet.clients)
    if name == PATTERNS[-1]:
        record(fleet, target)


def record(fleet: Fleet, target: str) -> None:
    """What `bpfleet attacks` says of it afterwards."""
    over = fleet.step("over", target, 40)
    shown = eventually(lambda: found if (found := json.loads(
        fleet.run_command("attacks", "show", over["attack"], "--json")))["state"] == "over" else None, 20)  # fmt: skip
    print(fleet.run_command("attacks", "list"))
    assert shown["share_dropped"] >= 0.99 and shown["seconds_to_drop"] < 4 and len(shown["hosts"]) == 3
    assert shown["legitimate_lost"] == 0 and shown["sources"] and shown["rules"]
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
    took = []
    for number in range(5):
        begun = time.monotonic()
        fleet.run_command("drop", "add", f"udp dst port {40_000 + number}", "--ttl", "1m", "--enforce", "--wait",
                          "--id", f"by-hand-{number}")  # fmt: skip
        took.append(time.monotonic() - begun)
    print(f"\n`bpfleet drop add --wait`, three hosts: worst {max(took):.2f} s, best {min(took):.2f} s")
    assert max(took) <= 6, took
