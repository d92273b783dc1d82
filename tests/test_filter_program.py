"""The whole program: modes, times to live, limits, sets, the allow-list, exact counters, fair samples."""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from filtering import frames
from scapy.all import IP, TCP, UDP, Dot1Q, Ether, IPv6, Raw

from collector import bpf_sys
from collector.filter.assembler import R0, Assembler
from collector.filter.host import Filter
from collector.filter.language import Document, Rule
from collector.filter.layout import NO_RULE
from collector.ring import Ring
from schemas import declare, dtype
from schemas.errors import UsageError

DROP, PASS = 1, 2
HEAD = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
EVENT = dtype.event(declare.load()["packet_sample"].streams[0])


def udp(source: str = "203.0.113.5", port: int = 9999, size: int = 20) -> bytes:
    return bytes(HEAD / IP(src=source, dst="192.0.2.1") / UDP(sport=1000, dport=port) / Raw(b"x" * size))


def rule(name: str, match: str, **how: object) -> Rule:
    return Rule(name, ttl=str(how.pop("ttl", "1h")), match=match, mode=str(how.pop("mode", "enforce")), **how)  # type: ignore[arg-type]


class Bench:
    """A filter that is attached nowhere; :meth:`send` is a frame's verdict."""

    def __init__(self, host: Filter) -> None:
        self.host = host

    def apply(self, *rules: Rule, allow: tuple[str, ...] = (), **sets: list[str]) -> None:
        self.host.apply(Document(rules=list(rules), allow=list(allow), sets=sets))

    @property
    def fd(self) -> int:
        return next(iter(self.host.programs.values())).fd

    def send(self, frame: bytes, repeat: int = 1) -> int:
        return bpf_sys.prog_test_run(self.fd, frame, repeat=repeat).retval

    def count(self, name: str, verdict: str) -> int:
        return next(
            each.packets for each in self.host.counts() if (each.rule, each.verdict) == (name, verdict)
        )

    def samples(self) -> np.ndarray:
        ring = Ring(self.host.maps["packet_sample"], EVENT)
        try:
            return ring.read(1_000_000)
        finally:
            ring.close()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("filter")


@pytest.fixture
def bench(compiled: Path) -> Iterator[Bench]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        with Filter(compiled) as host:
            yield Bench(host)
    finally:
        os.sched_setaffinity(0, before)


def test_no_rules_pass_everything(bench: Bench) -> None:
    bench.apply()
    assert bench.send(udp()) == PASS
    assert bench.count("", "pass") == 1


def test_first_enforced_rule_decides(bench: Bench) -> None:
    bench.apply(
        rule("keep", "udp dst port 53 and src host 198.51.100.1", action="pass"),
        rule("dns", "udp dst port 53"),
    )
    assert bench.send(udp(port=53)) == DROP
    assert bench.send(udp("198.51.100.1", 53)) == PASS
    assert bench.send(udp(port=54)) == PASS
    assert (bench.count("keep", "pass"), bench.count("dns", "drop"), bench.count("", "pass")) == (1, 1, 1)


def test_shadow_counts_and_lets_later_rules_decide(bench: Bench) -> None:
    bench.apply(rule("tried", "udp", mode="shadow"), rule("dns", "udp dst port 53"))
    assert [bench.send(udp(port=port)) for port in (53, 54)] == [DROP, PASS]
    assert (bench.count("tried", "shadow"), bench.count("dns", "drop")) == (2, 1)


def test_modes_change_without_a_new_program(bench: Bench) -> None:
    bench.apply(rule("dns", "udp dst port 53", mode="shadow"))
    fd = bench.fd
    assert bench.send(udp(port=53)) == PASS
    bench.apply(rule("dns", "udp dst port 53"))
    assert bench.fd == fd
    assert bench.send(udp(port=53)) == DROP


def test_time_to_live_ends_in_the_kernel(bench: Bench) -> None:
    bench.apply(rule("brief", "udp", ttl="1s"))
    assert bench.send(udp()) == DROP
    time.sleep(1.05)
    assert bench.send(udp()) == PASS
    assert bench.count("brief", "drop") == 1


def test_age_counts_from_creation(bench: Bench) -> None:
    bench.apply(rule("old", "udp", ttl="10s", created=int(time.time()) - 60))
    assert bench.send(udp()) == PASS


@pytest.mark.parametrize(("prefix", "passed"), [(32, 6), (24, 2)])
def test_limit_per_source(bench: Bench, prefix: int, passed: int) -> None:
    bench.apply(rule("limited", "udp", action=f"limit 1 pps per source /{prefix}"))
    begin = time.monotonic()
    verdicts = [bench.send(udp(f"203.0.113.{host}")) for host in (1, 2, 3) for _ in range(10)]
    more = int(time.monotonic() - begin) * (3 if prefix == 32 else 1)  # a second lets one more through
    assert passed <= verdicts.count(PASS) <= passed + more
    assert bench.count("limited", "pass") + bench.count("limited", "drop") == 30


def test_limit_lets_its_rate_through(bench: Bench) -> None:
    bench.apply(rule("limited", "udp", action="limit 200 pps per source /32"))
    begin, passed, due, expected = time.monotonic(), 0, 0.0, 0
    while (now := time.monotonic()) < begin + 1:
        if max(due, now) - now <= 0.1:  # what the rule means, however often this process is stopped
            due, expected = max(due, now) + 1 / 200, expected + 1
        passed += bench.send(udp()) == PASS
    assert abs(passed - expected) <= 0.05 * expected + 5
    assert expected > 20


def test_allow_list_comes_first(bench: Bench) -> None:
    bench.apply(rule("all", "ip or ip6"), allow=("198.51.100.0/24", "2001:db8:7::/48"))
    assert bench.send(udp("198.51.100.77")) == PASS
    assert bench.send(udp("198.51.101.77")) == DROP
    pairs = (("2001:db8:7::1", "fe80::1"), ("fe80::1", "2001:db8:7::9"), ("fe80::1", "2001:db8:8::9"))
    six = [bytes(HEAD / IPv6(src=a, dst=b) / UDP() / Raw(b"x" * 9)) for a, b in
           pairs]  # fmt: skip
    assert [bench.send(each) for each in six] == [PASS, PASS, DROP]
    assert bench.host.allowed() == 3
    assert bench.count("all", "drop") == 2  # what is allowed was never matched


def test_sets_behind_vlan_tags_and_of_both_families(bench: Bench) -> None:
    bench.apply(rule("bots", "src in @bots"), bots=["203.0.113.0/28", "2001:db8:bad::/56"])
    tagged = [bytes(HEAD / Dot1Q(vlan=7) / IP(src=each) / TCP()) for each in ("203.0.113.9", "203.0.113.16")]
    assert [bench.send(each) for each in tagged] == [DROP, PASS]
    six = [bytes(HEAD / IPv6(src=each) / TCP()) for each in ("2001:db8:bad:ff::1", "2001:db8:bad:100::1")]
    assert [bench.send(each) for each in six] == [DROP, PASS]


def test_sets_change_without_a_new_program(bench: Bench) -> None:
    bench.apply(rule("bots", "src in @bots"), bots=["203.0.113.0/24"])
    fd = bench.fd
    assert bench.send(udp()) == DROP
    bench.apply(rule("bots", "src in @bots"), bots=["198.51.100.0/24"])
    assert bench.fd == fd
    assert [bench.send(udp()), bench.send(udp("198.51.100.5"))] == [PASS, DROP]


def test_sets_agree_with_a_plain_search(bench: Bench) -> None:
    dice = random.Random(5)
    lists = {
        name: [
            f"{dice.choice([10, 11])}.{dice.randrange(4)}.{dice.randrange(256)}.{dice.randrange(256)}/{bits}"
            for bits in dice.choices([16, 18, 23, 24, 29, 32], weights=[1, 2, 20, 50, 50, 90], k=500)
        ]
        for name in ("one", "two")
    }
    bench.apply(rule("one", "src in @one", mode="shadow"), rule("two", "dst in @two"), **lists)
    from ipaddress import ip_address, ip_network

    networks = {name: [ip_network(each, strict=False) for each in texts] for name, texts in lists.items()}
    seen = {"one": 0, "two": 0}
    for _ in range(300):
        source, target = (
            f"{dice.choice([10, 11, 192])}.{dice.randrange(4)}.{dice.randrange(256)}.{dice.randrange(256)}"
            for _ in "ab"
        )
        inside = {"one": any(ip_address(source) in each for each in networks["one"]),
                  "two": any(ip_address(target) in each for each in networks["two"])}  # fmt: skip
        verdict = bench.send(bytes(HEAD / IP(src=source, dst=target) / UDP() / Raw(b"x" * 20)))
        assert verdict == (DROP if inside["two"] else PASS), (source, target)
        seen = {name: seen[name] + inside[name] for name in seen}
        assert (bench.count("one", "shadow"), bench.count("two", "drop")) == (seen["one"], seen["two"])
    assert min(seen.values()) > 10


def test_a_set_outgrows_its_map(bench: Bench) -> None:
    bench.apply(rule("bots", "src in @bots"), bots=["203.0.113.5"])
    many = [f"{a}.{b}.{c}.0/25" for a in (20, 21, 22) for b in range(256) for c in range(256)]
    begin = time.monotonic()
    bench.apply(rule("bots", "src in @bots"), bots=many)
    assert time.monotonic() - begin < 5
    assert [bench.send(udp(each)) for each in ("203.0.113.5", "21.7.9.127", "21.7.9.128")] == [
        PASS,
        DROP,
        PASS,
    ]


def test_hundreds_of_rules_with_exact_counters(bench: Bench) -> None:
    dice = random.Random(3)
    rules = [
        rule(f"port-{n}", f"udp dst port {n}", mode=dice.choice(["shadow", "enforce"]), sample=0)
        for n in range(500)
    ]
    bench.apply(*rules)
    sent: dict[int, int] = {}
    for _ in range(400):
        port = dice.randrange(600)
        sent[port] = sent.get(port, 0) + 1
        bench.send(udp(port=port))
    for each in rules:
        number = int(each.id.removeprefix("port-"))
        assert bench.count(each.id, "drop" if each.mode == "enforce" else "shadow") == sent.get(number, 0)
    passed = sum(count for port, count in sent.items() if port >= 500 or rules[port].mode == "shadow")
    assert bench.count("", "pass") == passed


def test_a_frame_that_very_many_rules_match(bench: Bench) -> None:
    bench.apply(
        *(rule(f"s{n}", f"len > {n % 60}", mode="shadow", sample=0) for n in range(700)), rule("last", "udp")
    )
    assert bench.send(udp(size=40)) == DROP
    assert bench.send(udp(size=40)) == DROP
    assert {bench.count(f"s{n}", "shadow") for n in range(700)} == {2}


def test_counters_stay_when_other_rules_change(bench: Bench) -> None:
    bench.apply(rule("a", "udp"), rule("b", "tcp"))
    bench.send(udp())
    bench.apply(rule("c", "icmp"), rule("a", "udp"))
    bench.send(udp())
    assert bench.count("a", "drop") == 2
    bench.apply(rule("a2", "udp"))
    assert bench.count("a2", "drop") == 0


def test_wrong_documents_change_nothing(bench: Bench) -> None:
    bench.apply(rule("a", "udp"))
    for wrong in (
        Document(rules=[rule("a", "udp and and")]),
        Document(rules=[rule("a", "udp"), rule("a", "tcp")]),
        Document(rules=[rule("a", "src in @none")]),
        Document(rules=[], allow=["10.0.0.0/33"]),
        Document(rules=[rule("a", "src in @x")], sets={"x": ["10.0.0.1.1/8"]}),
    ):
        with pytest.raises(UsageError):
            bench.host.apply(wrong)
        assert bench.send(udp()) == DROP


def test_samples_say_what_was_seen(bench: Bench) -> None:
    bench.apply(rule("dns", "udp dst port 53"))
    frame = udp("203.0.113.9", 53, 200)
    bench.send(frame)
    bench.send(udp(port=80))
    dropped, passed = bench.samples()
    assert bytes(dropped["raw"]) == frame[:128]
    assert bytes(dropped["source"])[12:] == bytes([203, 0, 113, 9])
    assert (dropped["destination_port"], dropped["source_port"], dropped["protocol"]) == (53, 1000, 17)
    assert (dropped["verdict"], dropped["length"], dropped["captured"], dropped["weight"]) == (
        1,
        len(frame),
        128,
        1,
    )
    assert (passed["verdict"], passed["slot"], passed["captured"]) == (0, NO_RULE, len(udp(port=80)))


@pytest.mark.parametrize(("rate", "seconds"), [(2000, 2), (50, 3)])
def test_weights_estimate_the_truth_and_a_flood_costs_no_more(
    bench: Bench, rate: int, seconds: float
) -> None:
    bench.apply(rule("dns", "udp dst port 53", sample=rate))
    sent = estimate = records = most = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for frame, repeat in ((udp(port=53), 40_000), (udp(port=80), 3000)):
            bench.send(frame, repeat)
        sent += 40_000
        samples = bench.samples()
        dropped = samples[samples["verdict"] == 1]
        estimate += int(dropped["weight"].sum())
        records += len(dropped)
        most = max(most, int(dropped["weight"].max(initial=0)))
    assert bench.count("dns", "drop") == sent
    assert 0.25 * rate * seconds < records < 1.5 * rate * seconds + 30
    assert abs(estimate - sent) < 0.005 * sent + 1.5 * most, (estimate, sent, records)  # but for the last gap


def test_pulses_are_not_underestimated(bench: Bench) -> None:
    """What a pulse leaves behind at its end, samples of the next one stand for."""
    bench.apply(rule("dns", "udp dst port 53", sample=50))
    bench.samples()
    sent = estimate = 0
    for number in range(36):
        count = 4_000 if number % 2 else 120_000
        bench.send(udp(port=53), count)
        sent += count
        time.sleep(0.105)
        estimate += int(bench.samples()["weight"].sum())
    assert abs(estimate / sent - 1) < 0.04, (estimate, sent)


def test_heavy_hitters_name_who_sends_most(bench: Bench) -> None:
    bench.apply(rule("dns", "udp dst port 53", sample=5000))
    for _ in range(20):
        bench.send(udp("198.51.100.7", 53), 20_000)
        bench.send(udp("203.0.113.200", 80), 2000)
    tops = bench.host.top()
    dropped = {each.kind: each for each in reversed(tops) if each.verdict == "drop"}
    assert {kind: each.item for kind, each in dropped.items()} == {
        "source": "198.51.100.7", "source_net": "198.51.100.0/24", "destination": "192.0.2.1",
        "port": "53", "length": str(len(udp(port=53))), "ttl": "64",
    }  # fmt: skip
    assert all(abs(each.packets / 400_000 - 1) < 0.25 for each in dropped.values())
    assert ("port", "pass", "80") in {(each.kind, each.verdict, each.item) for each in tops}
    assert bench.host.top() == []


def test_what_passes_goes_on_to_the_next_program(bench: Bench) -> None:
    bench.apply(rule("dns", "udp dst port 53"))
    code = Assembler()
    code.constant(R0, 3)  # XDP_TX
    code.leave()
    following = bpf_sys.prog_load(bpf_sys.ProgType.XDP, code.finish(), "following")
    try:
        table = next(iter(bench.host.programs.values())).next
        table.update(bytes(4), following.to_bytes(4, "little"))
        assert [bench.send(udp(port=port)) for port in (53, 54)] == [DROP, 3]
        table.delete(bytes(4))
        assert bench.send(udp(port=54)) == PASS
    finally:
        os.close(following)


def test_random_bytes_never_abort(bench: Bench) -> None:
    limited = rule("c", "ip6", action="limit 5 pps per source /32")
    bench.apply(rule("a", "udp", mode="shadow"), rule("b", "src in @x or tcp"), limited,
                allow=("10.1.2.4",), x=["192.0.2.0/24", "2001:db8::/32"])  # fmt: skip
    dice = random.Random(11)
    for frame in frames(dice, 1500):
        assert bench.send(frame) in (DROP, PASS), frame.hex()
