"""Mitigation: three hosts under each named attack while clients download, end to end.

Real collectors in namespaces of their own, Kafka, sink, store and `bpfleet mitigate`; see tests/siege.py.
Every attack goes on until the rule is in force everywhere, then a counted volley follows.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from attacking import ATTACKS
from conftest import StoreProcess
from siege import Blow, Fleet, siege
from sinking import Place

from bench.common import Row, free_port, percentile
from fleet.desired import Draft
from fleet.mitigate_vectors import RAMP
from schemas.filter import FILTER
from sinks.kafka_server import KafkaServer

ROUNDS, RULES = 2, 25


def run() -> list[Row]:
    """Every pattern in turn, then rules and lists written by hand."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        store, kafka = StoreProcess(folder / "store"), KafkaServer(folder / "kafka", free_port())
        try:
            store.start()
            kafka.start()
            kafka.wait_ready()
            place = Place(kafka.servers, store.url, f"siege{time.monotonic_ns()}", folder)
            try:
                with siege(place, folder) as fleet:
                    return rows(fleet)
            finally:
                place.close()
        finally:
            store.kill()
            kafka.kill()


def rows(fleet: Fleet) -> list[Row]:
    """The figures."""
    fleet.publish([_bots(0)])
    rules = [fleet.publish([_by_hand(number)]) for number in range(RULES)]
    lists = [fleet.publish([_bots(number)]) for number in range(RULES)]
    made = [_delay("hand-written rule → enforced on three hosts", rules, 2.0, "p99"),
            _delay("list changed → in force on three hosts", lists, 0.5, "p99")]  # fmt: skip
    blows: list[Blow] = []
    for name in [*list(ATTACKS) * ROUNDS, RAMP]:
        blows.append(fleet.strike(name))
        print(blows[-1], flush=True)
    seconds = [each.seconds for each in blows]
    made += [_delay("detected → dropped on three hosts", seconds, 2.0, "p50"),
             _delay("detected → dropped on three hosts", seconds, 4.0, "p99")]  # fmt: skip
    for name in [*ATTACKS, RAMP]:
        made.append(_pattern([each for each in blows if each.name == name]))
    return made


def _by_hand(number: int) -> Draft:
    rule = {"match": f"udp dst port {40_000 + number} and not src in @bots", "mode": "enforce"}
    return Draft(FILTER, f"by-hand-{number}", {"rule": rule}, ttl_s=600)


def _bots(number: int) -> Draft:
    return Draft(FILTER, "set:bots", {"set": {"name": "bots", "prefixes": [f"192.0.2.{number}"]}})


def _delay(name: str, seconds: list[float], target: float, which: str) -> Row:
    value = statistics.median(seconds) if which == "p50" else percentile(seconds, 0.99)
    text = f"{which} {value:.2f} s (p50 {statistics.median(seconds):.2f}, n = {len(seconds)})"
    return Row(name, text, "", "", f"{which} ≤ {target} s", value <= target)


def _pattern(blows: list[Blow]) -> Row:
    sent, dropped = sum(each.sent for each in blows), sum(each.dropped for each in blows)
    lost, legitimate = sum(each.lost for each in blows), sum(each.legitimate for each in blows)
    broken = sum(each.broken for each in blows)
    ours = (
        f"{dropped / sent:.3%} of {sent:,} dropped; {lost} of {legitimate:,} legitimate lost; {broken} broken"
    )
    met = dropped >= 0.99 * sent and lost <= 0.001 * legitimate and not broken
    return Row(blows[0].name, ours, "", "", "≥ 99 %, ≤ 0.1 %, 0", met)
