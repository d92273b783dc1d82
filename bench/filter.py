"""Nanoseconds a packet of the filter, beside its peers, in rounds taken in turns: python bench/filter.py

Needs root and xdp-filter (package xdp-tools). Everything runs by BPF_PROG_TEST_RUN on one CPU in a network
namespace of its own; the last line is the time from a change of a hundred rules to its being enforced.
"""

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from scapy.all import IP, TCP, UDP, Ether, Raw

from collector import bpf_sys
from collector.bpf_sys import ProgType
from collector.filter.assembler import R0, Assembler
from collector.filter.host import Filter
from collector.filter.language import Document, Rule
from collector.ring import Ring
from schemas import declare, dtype

ROUNDS, REPEAT = 15, 200_000
SPACE = "bpfleet-bench"
PLAIN = bytes(Ether() / IP(src="99.1.2.3", dst="99.7.7.7") / UDP(sport=1500, dport=9999) / Raw(b"a" * 18))
HIT = bytes(Ether() / IP(src="99.1.2.3", dst="99.7.7.7") / UDP(sport=1500, dport=53) / Raw(b"a" * 18))
BLOCKED = bytes(Ether() / IP(src="198.18.0.1", dst="99.7.7.7") / TCP(sport=1500, dport=80) / Raw(b"a" * 10))


@dataclass
class Case:
    """One thing measured; ``after`` runs between rounds, unmeasured."""

    name: str
    fd: int
    packet: bytes
    expected: int
    times: list[int] = field(default_factory=list)


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


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def in_space(*command: str) -> str:
    return run("nsenter", f"--net=/run/netns/{SPACE}", *command)


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


def ours(directory: Path, document: Document, budget: int) -> tuple[Filter, int]:
    """A filter with a document; ``budget``: samples of passed traffic in a window, 0 for none."""
    host = Filter(directory)
    host.apply(document)
    half, flags = host.tables.config()[3], host.tables.config()[0]
    host.tables.put(half, flags, host.tables.config()[1], budget)
    return host, next(iter(host.programs.values())).fd


def drain(hosts: list[Filter]) -> None:
    """Read what was sampled, as the collector does, so that no ring is full."""
    for ring in [Ring(host.maps["packet_sample"], EVENT) for host in hosts]:
        while len(ring.read(100_000)):
            pass
        ring.close()


EVENT = dtype.event(declare.load()["packet_sample"].streams[0])


def measure(cases: list[Case], hosts: list[Filter]) -> None:
    for case in cases:
        got = bpf_sys.prog_test_run(case.fd, case.packet).retval
        assert got == case.expected, f"{case.name}: verdict {got}, not {case.expected}"
    for turn in range(ROUNDS + 1):
        for case in cases:
            taken = bpf_sys.prog_test_run(case.fd, case.packet, repeat=REPEAT).ns
            if turn:
                case.times.append(taken)
        drain(hosts)


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


def documents() -> dict[str, Document]:
    """What is compared."""
    dns = Rule("dns", ttl="1h", match="udp and dst port 53", mode="enforce", sample=0)
    bots = Rule("bots", ttl="1h", match="src in @bots", mode="enforce", sample=0)
    return {
        "10 rules": Document(rules=rules(10)),
        "64 rules": Document(rules=rules(64)),
        "64 rules + set of 10,000": Document(rules=[*rules(64), bots], sets={"bots": prefixes(10_000)}),
        "1,000 rules": Document(rules=rules(1000)),
        "drop by a rule": Document(rules=[*rules(63), dns]),
    }


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    hosts: list[Filter] = []
    run("ip", "netns", "add", SPACE)
    try:
        with tempfile.TemporaryDirectory() as place:
            ip = xdp_filter("ipv4", ("ip", "198.18.0.1", "-m", "src"))
            everything = xdp_filter("tcp,udp,ipv6,ipv4,ethernet")
            cases = [
                Case("trivial DROP", trivial(), PLAIN, 1), Case("xdp-filter ip, pass", ip, PLAIN, 2),
                Case("xdp-filter ip, drop", ip, BLOCKED, 1), Case("xdp-filter all, pass", everything, PLAIN,
                2),
            ]  # fmt: skip
            for name, document in documents().items():
                for sampling in (0, SAMPLING) if "set" in name else (0,):
                    host, fd = ours(Path(place), document, sampling)
                    hosts.append(host)
                    dropped = "drop" in name
                    label = name + (", sampling 1/1000" if sampling else "")
                    cases.append(Case(label, fd, HIT if dropped else PLAIN, 1 if dropped else 2))
            measure(cases, hosts)
            report(cases)
            print(f"change of 100 rules, to enforced: {change(Path(place)):.2f} s")
    finally:
        for host in hosts:
            host.close()
        subprocess.run(["nsenter", f"--net=/run/netns/{SPACE}", "xdp-filter", "unload", "-a"], check=False)
        run("ip", "netns", "del", SPACE)


SAMPLING = 2200  # samples in a window of 0.1 s: about one in a thousand at the speed of a test run


def report(cases: list[Case]) -> None:
    base = next(each for each in cases if each.name == "xdp-filter ip, pass")
    print(f"{'':42}{'min':>6}{'median':>8}   to xdp-filter ip, pass (median)")
    for case in cases:
        middle = statistics.median(case.times)
        ratio = middle / statistics.median(base.times)
        print(f"{case.name:42}{min(case.times):6d}{middle:8.0f}{ratio:8.2f}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
