"""`bpfleet drop backtest`: what an expression would have dropped, told from stored samples by libpcap."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import StoreProcess
from filtering import compilable, expressions, frames
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mitigating import Samples, columns
from scapy.all import IP, TCP, UDP, Ether, Raw

from fleet import samples as stored
from fleet.backtest import backtest
from fleet.backtest_where import prefilter
from schemas.columns import Dictionary
from schemas.errors import UsageError
from schemas.filter_expression import Judge
from schemas.pcap import Program

HEAD = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")  # or scapy asks the network for addresses
DICE = random.Random(6)
FRAMES = frames(DICE, 1500)
SIMPLE = [
    "udp", "tcp", "icmp", "icmp6", "ip", "ip6", "src port 53", "udp dst port 53", "port 80", "tcp port 443",
    "len > 500", "greater 100", "less 90", "len = 60", "src host 10.1.2.3", "src net 10.1.0.0/16",
    "dst net 2001:db8::/32", "ip proto 17", "ip6 proto 6", "ip proto 0x2f", "src net 10", "dst host fe80::9",
]  # fmt: skip
NOW = time.time_ns() // 1000


@pytest.fixture(scope="module")
def samples(store: StoreProcess) -> Iterator[Samples]:
    made = Samples(store.url)
    yield made
    made.close()


@pytest.fixture(scope="module")
def mixed(store: StoreProcess) -> Iterator[Samples]:
    """Frames of every sort, whole, cut and scrambled, each a sample of weight 1."""
    made = Samples(store.url)
    made.put("h1", FRAMES, NOW - np.arange(len(FRAMES)) * 1000)
    yield made
    made.close()


def judged(expression: str) -> int:
    program = Program(expression)
    return sum(program.matches(each[:128], len(each)) for each in FRAMES)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.sampled_from(SIMPLE), expressions()), min_size=1, max_size=3))
def test_the_answer_is_libpcaps_whatever_sql_rules_out(mixed: Samples, parts: list[str]) -> None:
    expression = " and ".join(each for each in parts if each) or "ip"
    if not compilable([expression]):
        return
    client = stored.reader(mixed.config.clickhouse)
    try:
        result = backtest(client, mixed.config.clickhouse, expression, 3600)
    finally:
        client.close()
    assert result.legitimate.samples == judged(expression), prefilter(expression)
    assert result.attack.samples == 0 and result.samples == len(FRAMES)


def test_sql_rules_out_what_it_can(mixed: Samples) -> None:
    client = stored.reader(mixed.config.clickhouse)
    result = backtest(client, mixed.config.clickhouse, "udp and src port 53 and len > 500", 3600)
    assert 0 < result.legitimate.samples <= result.examined < len(FRAMES) / 4
    client.close()


def test_vlan_and_or_are_left_to_libpcap() -> None:
    for text in (
        "vlan and udp",
        "udp or tcp",
        "not udp",
        "udp[8:2] = 1",
        "(udp)",
        "src port 53 or 54 and udp",
    ):
        assert prefilter(text) == ("1", {}), text
    assert "protocol" in prefilter("udp and (src port 1 or 2)")[0]


def test_sets_and_states() -> None:
    block = np.zeros(4, stored.RECORD)
    made = columns([
        bytes(HEAD / IP(src=source, dst="10.9.0.1") / TCP(sport=1, dport=80))
        for source in ("10.0.0.1", "10.0.1.1", "192.0.2.1", "10.0.0.255")
    ])  # fmt: skip
    for name in ("length", "captured", "raw"):
        block[name] = made[name]
    for name in ("source", "destination"):
        block[name] = np.ascontiguousarray(made[name]).view("S16").reshape(-1)
    block["established"] = [1, 0, 1, 0]

    def hits(text: str) -> list[int]:
        sets = {"bots": ["10.0.0.0/24", "192.0.2.1"], "none": [], "ours": ["10.9.0.0/16"]}
        return np.flatnonzero(stored.judge(Judge(text, sets), block)).tolist()

    assert (
        hits("src in @bots") == [0, 2, 3] and hits("dst in @bots") == [] and hits("in @ours") == [0, 1, 2, 3]
    )
    assert hits("tcp and state new") == [1, 3] and hits("state established and not src in @bots") == []
    assert hits("src in @bots and state established and src net 10.0.0.0/8") == [0]
    assert hits("src in @none") == [] and hits("not src in @none or udp") == [0, 1, 2, 3]
    for wrong in ("src in @missing", "state odd", "@bots", "udp and", "udp\0"):
        with pytest.raises(UsageError):
            Judge(wrong, {"bots": ["10.0.0.0/8"]})


def flood(count: int, source: str = "198.51.100.{}", length: int = 600) -> dict[str, np.ndarray]:
    made = []
    for at in range(count):
        answer = b"\0\1\x81\x80" + bytes(length - 46)
        ip = IP(src=source.format(1 + at % 250), dst="10.9.0.1", ttl=50)
        made.append(bytes(HEAD / ip / UDP(sport=53, dport=1000 + at % 60_000) / Raw(answer)))
    return columns(made)


def test_attack_and_legitimate_apart(samples: Samples) -> None:
    begin = NOW - 600_000_000
    samples.put("h1", flood(400), begin + np.arange(400) * 25_000, weight=64)
    samples.put("h2", flood(100), begin + np.arange(100) * 100_000, weight=16, verdict="drop", rule="r")
    samples.put("h2", flood(50), begin + np.arange(50) * 100_000, weight=16, verdict="shadow", rule="s")
    samples.put("h1", flood(40, "10.3.0.{}"), begin - 3_600_000_000 + np.arange(40) * 1_000_000, weight=4)
    attack = dict.fromkeys(
        ("ts", "revision", "began", "detected", "ended", "first_drop", "peak_pps", "peak_bps", "packets",
         "dropped", "after", "after_dropped", "legitimate", "legitimate_lost", "source_count"), 0,
    )  # fmt: skip
    attack |= {"ts": begin, "revision": 1, "began": begin, "detected": begin + 1, "ended": begin + 10_000_000}
    texts = {"id": "a1", "state": "over", "target": "10.9.0.0/24", "vectors": "dns", "hosts": "",
             "sources": "{}", "rules": "", "policy": "", "expression": "udp and src port 53"}  # fmt: skip
    row: dict[str, object] = {name: np.array([value], np.int64) for name, value in attack.items()}
    row |= {name: Dictionary([text], np.zeros(1, np.uint32)) for name, text in texts.items()}
    samples.rows("attack", "operator", row, 1)
    client = stored.reader(samples.config.clickhouse)
    result = backtest(client, samples.config.clickhouse, "udp and src port 53 and len > 500", 7200)
    client.close()
    assert (result.attack.samples, result.attack.packets) == (500, 400 * 64 + 100 * 16), (
        "shadow is no traffic"
    )
    assert (result.legitimate.samples, result.legitimate.packets) == (40, 160)
    assert result.attacks == {"a1": 27_200} and result.legitimate_share == 1.0
    assert result.attack.peak_pps == 40 * 64 + 10 * 16 and result.attack.mean_pps == pytest.approx(2720, 0.1)
    assert set(result.legitimate.top("sources")) == {f"10.3.0.{n}" for n in range(1, 6)}


def test_the_command(samples: Samples, tmp_path: Path) -> None:
    environment = {"BPFLEET_CLICKHOUSE": samples.config.clickhouse.url,
                   "BPFLEET_CLICKHOUSE_DATABASE": samples.config.clickhouse.database}  # fmt: skip
    command = [sys.executable, "-m", "fleet", "drop", "backtest"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more], env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    done = run("udp and src port 53", "--json", "--since", "2h")
    answer = json.loads(done.stdout)
    assert answer["attack"]["packets"] == 27_200 and answer["legitimate"]["samples"] == 40, done.stderr
    none = json.loads(run("tcp and src port 1", "--json", "--since", "2h").stdout)
    mean = none["packets"] / none["samples"]
    assert none["legitimate"]["packets"] == 0 and none["legitimate"]["error"] == round(3 * mean) > 0
    table = run("udp and src port 53", "--since", "2h").stdout
    assert "of attack a1: 27,200 packets" in table and "legitimate" in table
    wrong = run("udp and nonsense")
    assert wrong.returncode != 0 and "Traceback" not in wrong.stderr and "nonsense" in wrong.stderr
    assert "no address set @bots" in run("src in @bots").stderr
    row: dict[str, object] = {
        name: np.array([1], np.int64) for name in ("ts", "revision", "deleted", "expires")
    }
    row |= {"deleted": np.zeros(1, np.uint8), "expires": np.zeros(1, np.int64), "ts": np.array([NOW])}
    spec = json.dumps({"set": {"name": "bots", "prefixes": ["10.3.0.0/29"]}})
    texts = {"kind": "filter", "id": "set-bots", "spec": spec}
    row |= {name: Dictionary([text], np.zeros(1, np.uint32)) for name, text in texts.items()}
    samples.rows("desired", "operator", row, 1)
    fleets = json.loads(run("src in @bots", "--since", "2h", "--json").stdout)
    assert fleets["legitimate"]["samples"] == 7 and fleets["attack"]["samples"] == 0
    file = tmp_path / "bots.txt"
    file.write_text("# ours\n10.3.0.0/28\n")
    given = json.loads(run("src in @bots", "--set", f"bots={file}", "--since", "2h", "--json").stdout)
    assert given["legitimate"]["samples"] == 15


def test_a_million_samples(store: StoreProcess) -> None:
    """As many as a host makes in a quarter of an hour of flood: timed."""
    made = Samples(store.url)
    try:
        few = columns(FRAMES[:1000])
        many = {name: np.concatenate([value] * 200) for name, value in few.items()}
        for at in range(5):
            made.put("h1", many, NOW - at * 1_000_000 - np.arange(200_000))
        client = stored.reader(made.config.clickhouse)
        begun = time.monotonic()
        whole = backtest(client, made.config.clickhouse, "udp[0:2] = 53 or tcp[13] & 2 != 0", 3600)
        took = time.monotonic() - begun
        begun = time.monotonic()
        narrow = backtest(client, made.config.clickhouse, "udp and src port 53 and len > 500", 3600)
        print(
            f"1,000,000 samples: {took:.1f} s; with a filter SQL understands {time.monotonic() - begun:.2f} s"
        )
        client.close()
        assert whole.examined == whole.samples == 1_000_000 and whole.legitimate.samples % 1000 == 0
        assert narrow.examined < 300_000 and took < 60
    finally:
        made.close()


def test_what_is_said_to_be_uncertain_covers_the_truth(store: StoreProcess) -> None:
    """A hundred thousand packets, sampled at two rates, twenty times: the truth lies outside of ± seldom."""
    made, dice = Samples(store.url), np.random.default_rng(4)
    frame = columns([bytes(HEAD / IP(src="10.0.0.1", dst="10.9.0.1") / UDP(sport=1, dport=port))
                     for port in range(1, 21)])  # fmt: skip
    truth = 2500
    try:
        for rate, host in ((8, "h1"), (128, "h2")):
            counts = dice.binomial(truth, 1 / rate, 20)
            rows = np.repeat(np.arange(20), counts)
            made.put(
                host, {name: value[rows] for name, value in frame.items()}, NOW - np.arange(len(rows)), rate
            )
        client = stored.reader(made.config.clickhouse)
        within = 0
        for port in range(1, 21):
            found = backtest(client, made.config.clickhouse, f"udp dst port {port}", 3600).legitimate
            within += abs(found.packets - 2 * truth) <= 1.96 * found.error2**0.5
        client.close()
        assert within >= 17, f"{within} of 20, of which one may miss"
    finally:
        made.close()
