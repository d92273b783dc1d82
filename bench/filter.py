"""The XDP filter beside xdp-filter, nanoseconds a packet by BPF_PROG_TEST_RUN on one CPU.

Needs root and xdp-filter (package xdp-tools), which runs in a network namespace of its own.
"""

import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from scapy.all import IP, TCP, UDP, Ether, Raw

from bench.common import Row, Times, in_turns, ratio, ratio_text
from collector import bpf_sys
from collector.bpf_sys import ProgType
from collector.filter.assembler import R0, Assembler
from collector.filter.host import Filter
from collector.filter.language import Document, Rule
from collector.filter.layout import WINDOW_MS, Config
from collector.ring import Ring
from schemas import declare, dtype

ROUNDS, REPEAT = 15, 200_000
ENDLESS = 1 << 30  # jiffies, or samples
PEER, PEER_DROP, SET = "xdp-filter ip, pass", "xdp-filter ip, drop", "64 rules + set of 10,000"
TABLE = "64 rules of fields"
SAMPLED = ", sampling 1/1000"
SPACE = "bpfleet-bench"
PLAIN = bytes(Ether() / IP(src="99.1.2.3", dst="99.7.7.7") / UDP(sport=1500, dport=9999) / Raw(b"a" * 18))
HIT = bytes(Ether() / IP(src="99.1.2.3", dst="99.7.7.7") / UDP(sport=1500, dport=53) / Raw(b"a" * 18))
BLOCKED = bytes(Ether() / IP(src="198.18.0.1", dst="99.7.7.7") / TCP(sport=1500, dport=80) / Raw(b"a" * 10))


@dataclass
class Case:
    """One thing measured, and the verdict it must come to."""

    name: str
    fd: int
    packet: bytes
    expected: int


def rule(number: int, dice: random.Random) -> Rule:
    """A rule that PLAIN does not match, of one of five shapes."""
    net = f"{dice.randrange(11, 90)}.{dice.randrange(256)}.{dice.randrange(256)}"
    shapes = (
        f"udp and dst port {dice.randrange(1, 9000)} and len > {dice.randrange(100, 1400)}",
        f"src net {net}.0/24 and tcp",
        f"tcp dst port {dice.randrange(60_000)} and tcp[tcpflags] & (tcp-syn|tcp-ack) = tcp-syn",
        f"udp src port {dice.randrange(1, 60_000)} and udp[8:4] = {dice.randrange(1 << 32)}",
        f"host {net}.3 and ip[8] < {dice.randrange(20, 60)}",
    )
    return Rule(f"rule-{number}", ttl="1h", match=shapes[number % len(shapes)], mode="enforce")


def rules(count: int, seed: int = 1) -> list[Rule]:
    """``count`` rules, the same for the same seed."""
    dice = random.Random(seed)
    return [rule(number, dice) for number in range(count)]


def fields(number: int) -> Rule:
    """A rule of fields that PLAIN does not match, though it is of the protocol and not of one port alone."""
    asked = {"protocol": "udp", "src_port": str(number + 1), "length": "200-1500", "ttl": "1-63"}
    return Rule(f"fields-{number}", ttl="1h", fields=asked, mode="enforce", sample=0)


def prefixes(count: int) -> list[str]:
    """Distinct prefixes, PLAIN's addresses not among them."""
    dice = random.Random(2)
    drawn = (
        f"{dice.randrange(100, 200)}.{dice.randrange(256)}.{dice.randrange(256)}.0/24" for _ in iter(int, 1)
    )
    found: set[str] = set()
    while len(found) < count:
        found.add(next(drawn))
    return sorted(found)


def trivial() -> int:
    """A program that drops."""
    code = Assembler()
    code.constant(R0, 1)
    code.leave()
    return bpf_sys.prog_load(ProgType.XDP, code.finish(), "trivial")


def shell(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def in_space(*command: str) -> str:
    return shell("nsenter", f"--net=/run/netns/{SPACE}", *command)


def xdp_filter(features: str, *settings: tuple[str, ...]) -> int:
    """The program that xdp-filter puts on an interface of the namespace; its descriptor."""
    name = f"xf{features.replace(',', '')[:8]}"
    in_space("ip", "link", "add", name, "type", "veth", "peer", "name", name + "p")
    in_space("xdp-filter", "load", name, "-f", features, "-p", "allow", "-m", "skb")
    for each in settings:
        in_space("xdp-filter", *each)
    shown = in_space("ip", "-d", "link", "show", name)
    number = int(shown.split("prog/xdp id ")[1].split()[0])
    return bpf_sys.fd_by_id(bpf_sys.Command.PROG_FD_BY_ID, number)


def ours(directory: Path, document: Document, sampled: bool) -> tuple[Filter, int]:
    """A filter with a document; ``sampled``: one passed frame in 1024, else none."""
    host = Filter(directory)
    host.apply(document)
    fd = next(iter(host.programs.values())).fd
    config = host.tables.config()
    host.tables.put(replace(config, budget=0))
    if sampled:
        hold_rate(host, fd, config)
    return host, fd


def hold_rate(host: Filter, fd: int, config: Config) -> None:
    """Have one frame in 1024 sampled from now on, whatever the traffic.

    The rate follows the packets of the last window. A run fills but a part of one, and its neighbours in the
    round fill the rest; so a window is made that had 700 packets for each sample, and the next never ends.
    """
    host.tables.put(replace(config, budget=1))
    bpf_sys.prog_test_run(fd, PLAIN)
    bpf_sys.prog_test_run(fd, PLAIN, repeat=700)
    time.sleep(2 * WINDOW_MS / 1000)
    host.tables.put(replace(config, budget=1, window=ENDLESS))
    bpf_sys.prog_test_run(fd, PLAIN)
    host.tables.put(replace(config, budget=ENDLESS, window=ENDLESS))
    drain([host])
    bpf_sys.prog_test_run(fd, PLAIN, repeat=REPEAT)
    rate = REPEAT / drain([host])
    assert 900 < rate < 1150, f"one frame in {rate:.0f} is sampled, not one in 1024"


def drain(hosts: list[Filter]) -> int:
    """Read what was sampled, as the collector does, so that no ring is full. How many there were."""
    read = 0
    for ring in [Ring(host.maps["packet_sample"], EVENT) for host in hosts]:
        while count := len(ring.read(100_000)):
            read += count
        ring.close()
    return read


EVENT = dtype.event(declare.read(declare.DIRECTORY / "packet_sample.avsc").streams[0])


def change(directory: Path) -> float:
    """Seconds from a document with a hundred other rules to the first packet that meets them."""
    with Filter(directory) as host:
        host.apply(Document(rules=rules(64)))
        dns = Rule("dns", ttl="1h", match="udp and dst port 53", mode="enforce")
        begin = time.monotonic()
        host.apply(Document(rules=[*rules(100, seed=9), dns]))
        fd = next(iter(host.programs.values())).fd
        assert bpf_sys.prog_test_run(fd, HIT).retval == 1
        return time.monotonic() - begin


def change_fields(directory: Path) -> float:
    """The same for one rule of fields more, beside a thousand expressions."""
    with Filter(directory) as host:
        before = rules(1000)
        host.apply(Document(rules=before))
        dns = Rule("dns", ttl="1h", fields={"protocol": "udp", "dst_port": "53"}, mode="enforce")
        begin = time.monotonic()
        host.apply(Document(rules=[*before, dns]))
        fd = next(iter(host.programs.values())).fd
        assert bpf_sys.prog_test_run(fd, HIT).retval == 1
        return time.monotonic() - begin


def documents() -> dict[str, Document]:
    """What is compared."""
    dns = Rule("dns", ttl="1h", match="udp and dst port 53", mode="enforce", sample=0)
    bots = Rule("bots", ttl="1h", match="src in @bots", mode="enforce", sample=0)
    return {
        "10 rules": Document(rules=rules(10)),
        "64 rules": Document(rules=rules(64)),
        "64 rules + set of 10,000": Document(rules=[*rules(64), bots], sets={"bots": prefixes(10_000)}),
        TABLE: Document(rules=[fields(n) for n in range(64)]),
        "1,000 rules": Document(rules=rules(1000)),
        "drop by a rule": Document(rules=[*rules(63), dns]),
    }


def cases_of(place: Path, hosts: list[Filter]) -> list[Case]:
    """Everything that is measured; filters that were made go to ``hosts``."""
    ip = xdp_filter("ipv4", ("ip", "198.18.0.1", "-m", "src"))
    cases = [
        Case("trivial DROP", trivial(), PLAIN, 1),
        Case(PEER, ip, PLAIN, 2),
        Case(PEER_DROP, ip, BLOCKED, 1),
        Case("xdp-filter all, pass", xdp_filter("tcp,udp,ipv6,ipv4,ethernet"), PLAIN, 2),
    ]
    for name, document in documents().items():
        for label in (name, name + SAMPLED) if name == SET else (name,):
            host, fd = ours(place, document, label != name)
            hosts.append(host)
            dropped = "drop" in name
            cases.append(Case(label, fd, HIT if dropped else PLAIN, 1 if dropped else 2))
    for case in cases:
        got = bpf_sys.prog_test_run(case.fd, case.packet).retval
        assert got == case.expected, f"{case.name}: verdict {got}, not {case.expected}"
    return cases


def run() -> list[Row]:
    """The figures, each beside its peer of the same run."""
    hosts: list[Filter] = []
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    shell("ip", "netns", "add", SPACE)
    try:
        with tempfile.TemporaryDirectory() as place:
            cases = cases_of(Path(place), hosts)
            jobs: dict[str, Callable[[], float]] = {each.name: partial(once, each, hosts) for each in cases}
            times = in_turns(jobs, ROUNDS)
            return rows(times, change(Path(place)), change_fields(Path(place)))
    finally:
        os.sched_setaffinity(0, before)
        for host in hosts:
            host.close()
        unload = ("nsenter", f"--net=/run/netns/{SPACE}", "xdp-filter", "unload", "-a")
        subprocess.run(unload, check=False, capture_output=True)
        with suppress(OSError):  # not empty: somebody else's
            Path("/sys/fs/bpf/xdp").rmdir()
        shell("ip", "netns", "del", SPACE)


def once(case: Case, hosts: list[Filter]) -> float:
    """Nanoseconds a packet."""
    taken = bpf_sys.prog_test_run(case.fd, case.packet, repeat=REPEAT).ns
    drain(hosts)
    return taken


def rows(times: dict[str, Times], seconds: float, table_seconds: float) -> list[Row]:
    """What is shown."""
    ten, thousand = times["10 rules"], times["1,000 rules"]
    bare, sampled = times[SET], times[SET + SAMPLED]
    extra = sampled.least - bare.least

    def row(name: str, ours: Times, other: str, target: str, most: float | None) -> Row:
        share = ratio(ours, times[other])
        met = None if most is None else share[0] <= most
        text = ratio_text(ours, times[other])
        return Row(name, ours.text("ns"), f"{other} {times[other].text('ns')}", text, target, met)

    return [
        row("64 rules + 10,000 prefixes + sampling 1/1000, no match", sampled, PEER, "≤ 1", 1.0),
        row("1,000 rules, no match", thousand, "10 rules", "≤ 2", 2.0),
        Row(
            "sampling at 1/1000", f"{extra:+.0f} ns", f"without {bare.text('ns')}", "", "≤ +3 ns", extra <= 3
        ),
        Row("100 other rules, from command to enforced", f"{seconds:.2f} s", "", "", "≤ 2 s", seconds <= 2),
        row("64 rules, no match", times["64 rules"], PEER, "", None),
        row("64 rules of fields, no match", times[TABLE], PEER, "", None),
        Row("a rule of fields, from command to enforced", f"{1e3 * table_seconds:.1f} ms", "", "", "", None),
        row("10 rules, no match", ten, "trivial DROP", "", None),
        row("drop by one of 64 rules, counted", times["drop by a rule"], PEER_DROP, "", None),
        row("xdp-filter with all features, pass", times["xdp-filter all, pass"], PEER, "", None),
    ]
