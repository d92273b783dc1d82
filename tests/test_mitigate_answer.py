"""What a mitigator publishes, and what it leaves alone; over a real broker."""

import time
from ipaddress import IPv6Network

import numpy as np
import pytest
from sinking import delete_topics

from fleet.acknowledge import Answer
from fleet.desired import Board
from fleet.mitigate_answer import Published
from fleet.mitigate_case import Case, Rule
from fleet.mitigate_distill import tried
from fleet.mitigate_words import command, words
from fleet.samples import RECORD
from schemas.config import Config
from sinks.kafka_server import KafkaServer

FIELDS = {"protocol": "udp", "src_port": "53", "dst": "192.0.2.9/32", "length": "846-1395", "ttl": "39-60"}
NONE = np.empty(0, RECORD)


@pytest.fixture
def config(kafka: KafkaServer) -> Config:
    delete_topics(kafka.servers)
    made = Config(host="operator")
    made.kafka.servers = kafka.servers
    return made


def test_hands_off_what_people_changed(config: Config) -> None:
    """An operator at night removes a rule that hurts: it stays removed."""
    now, steps = time.time_ns() // 1000, []
    answers, board = Published(config, steps.append), Board(config)
    case = Case(IPv6Network("::ffff:192.0.2.9"), now, now, "enforce", ["dns amplification"])
    rules = [Rule(case.next_rule() + each, "dns amplification", tried(FIELDS, NONE, NONE), "suggested", now)
             for each in ("a", "b", "c")]  # fmt: skip
    try:
        for rule in rules:
            answers.publish(case, rule, "shadow")
            answers.publish(case, rule, "enforce")
        board.delete([f"filter/{rules[0].name}"], "it hurts")
        for rule in rules[:2]:
            answers.renew(case, rule)
        assert [each.stage for each in rules] == ["removed", "enforced", "enforced"]
        assert steps[-2]["event"] == "released" and "changed by" in steps[-2]["reason"]
        # What one host saw of a rule holds for all of them.
        said = Answer(
            "h1", f"filter/{rules[2].name}", rules[2].revision, "refused", "drops connections", 0, 0, 0
        )
        answers._heard(case, rules[2], said, now)
        assert rules[2].stage == "held" and steps[-1]["event"] == "rolled_back"
        published = answers.published()
        modes = {name: each.spec["rule"]["mode"] for name, each in published.items()}
        assert modes == {rules[1].name: "enforce", rules[2].name: "shadow"}
        assert published[rules[1].name].comment.startswith("dns amplification on 192.0.2.9/32")
    finally:
        answers.close()
        board.close()


def test_words_and_the_command_to_type() -> None:
    assert words(FIELDS) == "UDP from port 53 to 192.0.2.9, 846-1395 bytes, TTL 39-60"
    syn = {
        "protocol": "tcp",
        "state": "new",
        "dst": "2001:db8::/64",
        "tcp_flags": "syn/syn+ack",
        "src": "2001:db8:1::/48",
    }
    assert words(syn) == "TCP from 2001:db8:1::/48 to 2001:db8::/64, flags syn, of no known connection"
    assert words({"fragment": "first,later", "dst": "192.0.2.9/32"}) == "fragments to 192.0.2.9"
    assert command(FIELDS, "x").startswith("bpfleet drop add --field protocol=udp --field src_port=53 ")
