"""Finding attacks in stored samples: each named pattern, hidden among hosts and prefixes; and no surge."""

import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from attacking import ATTACKS, TARGET, Frames, backup, crowd, scan, syn
from conftest import StoreProcess
from mitigating import STREAMS, Samples, columns

from fleet import samples as stored
from fleet.mitigate import Mitigator
from fleet.mitigate_answer import Told
from schemas import filter_fields
from schemas.filter_expression import Judge
from schemas.rows import columns as columns_of

HOSTS = ("h1", "h2", "h3")


class Scene:
    """A fleet of three hosts at a time of its own, its samples in a store."""

    def __init__(self, url: str) -> None:
        self.samples = Samples(url)
        self.config = self.samples.config
        self.client = stored.reader(self.config.clickhouse)
        self.told = Told()
        self.now = time.time() - 7200
        self.dice = random.Random(7)
        self.mitigator = Mitigator(self.config, self.client, self.told, lambda: self.now)

    def put(
        self,
        frames: Any,
        begin: float,
        seconds: float,
        weight: int = 1,
        known: Any = False,
        hosts: Any = HOSTS,
    ) -> None:
        """Frames, evenly over the hosts and the time."""
        frames = frames if isinstance(frames, dict) else columns(frames)
        count = len(frames["raw"])
        ts = np.sort((begin + np.random.default_rng(1).random(count) * seconds) * 1e6).astype(np.int64)
        known = np.broadcast_to(np.asarray(known), count)
        for at, host in enumerate(hosts):
            part = {name: value[at :: len(hosts)] for name, value in frames.items()}
            self.samples.put(host, part, ts[at :: len(hosts)], weight, established=known[at :: len(hosts)])

    def people(self, begin: float, seconds: float, clients: int = 30) -> None:
        made = crowd(self.dice, clients)
        self.put([frame for frame, _ in made], begin, seconds, known=[known for _, known in made])

    def look(self, at: float) -> None:
        self.now = at
        self.mitigator.step()

    def events(self, name: str) -> list[dict[str, Any]]:
        return [each for each in self.told.steps if each["event"] == name]

    def close(self) -> None:
        self.client.close()
        self.samples.close()


@pytest.fixture
def scene(store: StoreProcess) -> Iterator[Scene]:
    made = Scene(store.url)
    yield made
    made.close()


@pytest.mark.parametrize("name", ATTACKS)
def test_a_named_attack_is_found_and_described(scene: Scene, name: str) -> None:
    """600 packets a second on each of three hosts, where one alone is no attack; people go on meanwhile."""
    make: Frames = ATTACKS[name]
    begin = scene.now
    scene.people(begin - 60, 63, 60)
    scene.put(make(scene.dice, 900), begin, 2, weight=4)
    scene.look(begin + 2.2)
    (found,) = scene.events("detected")
    vectors = {each for case in scene.mitigator.cases for each in case.vectors}
    assert name in vectors, vectors
    (case,) = scene.mitigator.cases
    (rule,) = case.rules
    assert found["target"] == str(case.row(0)["target"])
    assert rule.pattern.covers >= 0.99 and rule.pattern.matched == 0, rule.pattern
    # Packets that it has not seen, of the same attack and of people.
    judge = Judge(rule.pattern.expression)
    later, dice = columns(make(random.Random(99), 2000)), random.Random(98)
    others = columns([frame for frame, _ in crowd(dice, 100)])
    hit = [judge.select(*(each[column] for column in ("raw", "captured", "length", "source", "destination")),
                        np.zeros(len(each["raw"]), bool)).mean() for each in (later, others)]  # fmt: skip
    assert hit[0] >= 0.99 and hit[1] == 0, (rule.pattern.fields, hit)
    filter_fields.parse(rule.pattern.fields)
    print(f"{name}: {hit[0]:.2%} of what follows; {rule.pattern.fields}")


def test_a_slow_ramp_is_found_before_it_is_loud(scene: Scene) -> None:
    begin = scene.now
    scene.people(begin - 60, 150, 60)
    rates = [10 * second for second in range(1, 90)]
    for second in range(0, len(rates), 3):
        scene.put(syn(scene.dice, sum(rates[second : second + 3])), begin + second, 3)
    for second in range(6, 90, 6):
        scene.look(begin + second + 0.5)
        if scene.mitigator.cases:
            break
    (case,) = scene.mitigator.cases
    assert "slow ramp" in case.vectors and "syn flood" in case.vectors
    assert rates[second] < scene.config.mitigate.floor_pps, "no second was above the floor"
    print(f"slow ramp: found after {second} s at {rates[second]} packets per second, of a floor of 1,000")


def test_an_hour_of_surges_makes_no_rule(scene: Scene) -> None:
    """A flash crowd, a backup, a monitoring scan, over an hour's clock; looked at each few seconds of it."""
    begin = scene.now
    networks = [f"10.9.{at}.{host}" for at in range(2) for host in range(1, 120)]
    looked = 0
    for minute in range(60):
        start = begin + 60 * minute
        if minute % 6 == 0:
            scene.people(start, 60, 100)
        if minute % 12 == 3:  # up to 2,500 new connections in a second, seen at one in eight
            made = crowd(scene.dice, 900)
            scene.put([frame for frame, _ in made], start, 3, weight=8, known=[known for _, known in made])
        if minute % 12 == 6:
            scene.put(backup(scene.dice, 1500), start, 3, weight=16, known=True)
        if minute % 12 == 8:  # to a host that only forwards: nobody knows its connections
            scene.put(backup(scene.dice, 1500, target="10.9.0.7"), start, 3, weight=16)
        if minute % 12 == 10:
            scene.put(scan(scene.dice, 4500, targets=networks), start, 3)
        if minute % 3 == 0:
            for second in (2.5, 4.0):
                scene.look(start + second)
                looked += 1
    assert looked == 40 and scene.mitigator.cases == [] and scene.told.steps == []


def test_a_flash_crowd_does_not_hide_an_attack(scene: Scene) -> None:
    begin = scene.now
    made = crowd(scene.dice, 900)
    scene.put([frame for frame, _ in made], begin - 1, 3, weight=8, known=[known for _, known in made])
    scene.put(syn(scene.dice, 4000), begin, 2, weight=8)
    scene.look(begin + 2.2)
    (case,) = scene.mitigator.cases
    assert case.vectors == ["syn flood"] and case.rules[0].pattern.matched == 0


def test_what_is_usual_is_no_attack(scene: Scene) -> None:
    """Memcached answers at 2,000 a second, at this hour of the last days too: this target lives with them."""
    make = ATTACKS["memcached amplification"]
    frames = columns(make(scene.dice, 600))
    for day in range(1, 4):
        for part in range(6):
            scene.put(frames, scene.now - day * 86_400 + (part - 3) * 250, 240, weight=800)
    scene.put(frames, scene.now, 2, weight=6)
    scene.look(scene.now + 2.2)
    assert scene.mitigator.watch.baseline.of("memcached amplification", f"::ffff:{TARGET}") > 1000
    assert scene.mitigator.cases == []
    scene.put(frames, scene.now + 10, 2, weight=60)
    scene.look(scene.now + 12.2)
    assert [case.vectors for case in scene.mitigator.cases] == [["memcached amplification"]]


def test_a_rule_that_legitimate_traffic_matches_is_held(scene: Scene) -> None:
    """The same packets came an hour ago, few and harmless: nobody can tell them apart."""
    make = ATTACKS["gre flood"]
    begin = scene.now
    scene.put(make(scene.dice, 300), begin - 900, 600)
    scene.put(make(scene.dice, 900), begin, 2, weight=4)
    scene.look(begin + 2.2)
    (refused,) = scene.events("refused")
    assert refused["legitimate"] > 0 and scene.mitigator.cases[0].rules[0].stage == "held"
    assert not scene.events("suggested")


def test_an_attack_outlives_its_mitigator(scene: Scene) -> None:
    """Killed in the midst of it: another goes on with the same record, once nobody writes it any more."""
    begin = scene.now
    scene.people(begin - 60, 63, 60)
    scene.put(ATTACKS["dns amplification"](scene.dice, 900), begin, 2, weight=4)
    scene.look(begin + 2.2)
    (before,) = scene.mitigator.cases
    row = columns_of(STREAMS["attack"], [before.row(int(scene.now * 1e6))])
    scene.samples.rows("attack", "operator", row, 1)
    scene.told = Told()
    scene.mitigator = Mitigator(scene.config, scene.client, scene.told, lambda: scene.now)
    scene.look(begin + 13)
    assert not scene.events("resumed")
    scene.look(begin + 60)
    assert [each["attack"] for each in scene.events("resumed") + scene.events("over")] == [before.id] * 2
    record = scene.told.records[-1]
    assert (record["id"], record["state"], record["expression"]) == (
        before.id, "over", before.row(0)["expression"],
    )  # fmt: skip


@pytest.mark.parametrize("name", ["memcached amplification", "syn flood"])
def test_an_attack_older_than_the_service(scene: Scene, name: str) -> None:
    """Begun a minute and a half ago, when nobody looked: it is found, and is not taken for what is usual."""
    begin, make = scene.now, ATTACKS[name]
    scene.people(begin - 60, 160, 60)
    scene.put(make(scene.dice, 9000), begin, 92, weight=20)
    scene.look(begin + 90.2)
    (case,) = scene.mitigator.cases
    assert abs(case.began / 1e6 - begin) <= 10 and case.rules[0].pattern.matched == 0
    assert scene.events("suggested")[0]["reason"].startswith("dry run") or not scene.events("suggested")


def test_what_nobody_saw_begin_is_for_people_to_judge(scene: Scene) -> None:
    """Memcached answers as long as there are samples: an attack, or this host's own cache."""
    scene.put(ATTACKS["memcached amplification"](scene.dice, 3000), scene.now - 60, 62, weight=40)
    scene.look(scene.now)
    (suggested,) = scene.events("suggested")
    assert "nobody saw it begin" in suggested["reason"] and "bpfleet drop add" in suggested["reason"]
    scene.look(scene.now + 1)
    assert len(scene.events("suggested")) == 1
