"""Rules of fields: the kernel's tables say what libpcap says of the same rule as an expression."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
from filtering import NETS, PORTS, SOURCES, SOURCES6, frames
from scapy.all import IP, TCP, UDP, Dot1Q, Ether, IPv6, Raw
from test_filter_program import DROP, PASS, Bench, rule

from collector import bpf_sys
from collector.filter import figures
from collector.filter.host import Filter
from collector.filter.language import Document, Rule
from schemas.errors import UsageError
from schemas.filter_expression import Judge
from schemas.filter_fields import check_possible, expression, parse

HEAD = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
SETS = {"one": ["10.1.2.0/31", "2001:db8::/48"], "two": ["192.0.2.0/25", "198.51.100.9"]}
TAGS = (b"\x81\x00", b"\x88\xa8")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Filter(tmp_path_factory.mktemp("filter")) as host:
        yield Bench(host)


def some_fields(dice: random.Random) -> dict[str, str]:
    """Fields as a mitigation or an operator would give them, at random."""
    port = lambda: dice.choice([str(dice.choice(PORTS)), f"{dice.choice(PORTS)},1024-40000", "0-52"])  # noqa: E731
    side = lambda: dice.choice(  # noqa: E731
        [*SOURCES, *SOURCES6, *NETS, "@one", "!@two", "@two"]
    )
    choices = {
        "ip": lambda: dice.choice("46"),
        "protocol": lambda: dice.choice(["udp", "tcp", "icmp", "udp,tcp", "1-40", "icmp6"]),
        "src": side, "dst": side, "src_port": port, "dst_port": port,
        "length": lambda: dice.choice(["60-200", "0-90", "54", "100-65535", "42,54,60-80"]),
        "ttl": lambda: dice.choice(["64", "0-63", "200-255", "1,64,128"]),
        "tcp_flags": lambda: dice.choice(["syn/syn+ack", "ack/ack", "/fin+syn+rst", "rst"]),
        "fragment": lambda: dice.choice(["no", "first,later", "later", "no,first"]),
        "payload": lambda: dice.choice(["0:78", "0:00..78", "2:7878", "4:00", "0:0..".replace("0..", "00")]),
        "state": lambda: dice.choice(["new", "established"]),
    }  # fmt: skip
    names = dice.sample(list(choices), k=dice.choice([1, 1, 2, 2, 3, 4]))
    return {name: choices[name]() for name in names}


def possible(fields: dict[str, str]) -> bool:
    try:
        check_possible(parse(fields))
    except UsageError:
        return False
    return True


def untagged(frame: bytes) -> bytes:
    """Without up to two VLAN tags."""
    for _ in range(2):
        if frame[12:14] in TAGS:
            frame = frame[:12] + frame[16:]
    return frame


def judged(judges: list[Judge], frame: bytes) -> set[int]:
    """The rules that libpcap finds matching, by their numbers; none for what is no whole IP header."""
    plain = untagged(frame)
    shortest = {b"\x08\x00": 34, b"\x86\xdd": 54}.get(plain[12:14])
    if shortest is None or len(plain) < shortest:
        return set()
    if shortest == 34:
        source, target = (bytes(10) + b"\xff\xff" + plain[at : at + 4] for at in (26, 30))
    else:
        source, target = plain[22:38], plain[38:54]
    rows = [np.frombuffer(each, np.uint8).reshape(1, -1) for each in (plain, source, target)]
    sizes = np.array([len(plain)]), np.array([len(frame)])
    none = np.zeros(1, np.bool_)
    return {at for at, judge in enumerate(judges) if judge.select(rows[0], *sizes, *rows[1:], none)[0]}


def hits(host: Filter, frame: bytes) -> set[int]:
    before = figures.figures(host.maps, host.state.slots)
    bpf_sys.prog_test_run(next(iter(host.programs.values())).fd, frame)
    after = figures.figures(host.maps, host.state.slots)
    return {int(name[1:]) for name, each in after.items() if sum(each.packets) != sum(before[name].packets)}


@pytest.mark.parametrize("seed", range(4))
def test_libpcap_agrees(bench: Bench, seed: int) -> None:
    dice = random.Random(seed)
    asked = [each for each in (some_fields(dice) for _ in range(200)) if possible(each)][:64]
    texts = [expression(parse(each)) for each in asked]
    judges = [Judge(each, SETS) for each in texts]
    rules = [Rule(f"r{n}", "1h", fields=each, mode="shadow", sample=0) for n, each in enumerate(asked)]
    bench.host.apply(Document(rules=rules, sets=SETS))
    seen: set[int] = set()
    for frame in frames(dice, 250):
        found = hits(bench.host, frame)
        assert found == judged(judges, frame), (
            frame.hex(),
            [(asked[n], texts[n]) for n in found ^ judged(judges, frame)],
        )
        seen |= found
    assert len(seen) > 25


def test_rules_change_without_a_new_program(bench: Bench) -> None:
    bench.apply()
    fd = bench.fd
    ntp = bytes(HEAD / IP(src="192.0.2.7") / UDP(sport=123, dport=9) / Raw(b"\x17\x00\x03\x2a" + bytes(60)))
    tagged = bytes(
        HEAD / Dot1Q(vlan=5) / IP(src="192.0.2.7") / UDP(sport=123) / Raw(b"\x17\x00\x03\x2a" + bytes(60))
    )
    other = bytes(HEAD / IP(src="192.0.2.7") / UDP(sport=123, dport=9) / Raw(b"\x17\x00\x02\x2a" + bytes(60)))
    fields = {"protocol": "udp", "src_port": "123", "length": "80-1500", "payload": "0:17..032a"}
    bench.apply(rule("ntp", "", fields=fields))
    assert bench.fd == fd
    assert [bench.send(each) for each in (ntp, tagged, other)] == [DROP, DROP, PASS]
    bench.apply(rule("ntp", "", fields=fields | {"src": "@mine"}), mine=["192.0.2.0/24"])
    assert bench.send(ntp) == DROP
    bench.apply(rule("ntp", "", fields=fields | {"src": "!@mine"}), mine=["192.0.2.0/24"])
    assert [bench.send(ntp), bench.fd] == [PASS, fd]
    bench.apply(rule("ntp", "", fields=fields, mode="shadow"))
    assert [bench.send(ntp), bench.count("ntp", "shadow")] == [PASS, 1]
    bench.apply()
    assert [bench.send(ntp), bench.fd] == [PASS, fd]


def test_allow_list_and_passing_rules_come_first(bench: Bench) -> None:
    syn = bytes(HEAD / IPv6(src="2001:db8::7") / TCP(dport=443, flags="S"))
    flood = rule("syn", "", fields={"tcp_flags": "syn/syn+ack", "dst_port": "443"})
    friend = rule("friend", "", fields={"src": "2001:db8::/64"}, action="pass")
    bench.apply(flood)
    assert bench.send(syn) == DROP
    bench.apply(flood, friend)
    assert [bench.send(syn), bench.count("friend", "pass")] == [PASS, 1]
    bench.apply(flood, allow=("2001:db8::/32",))
    assert bench.send(syn) == PASS


def test_no_more_than_its_places(bench: Bench) -> None:
    many = [rule(f"r{n}", "", fields={"dst_port": str(n)}) for n in range(65)]
    bench.apply(*many[:64])
    with pytest.raises(UsageError, match="64"):
        bench.apply(*many)
    frame = bytes(HEAD / IP() / UDP(dport=63))
    assert bench.send(frame) == DROP
    bench.apply(*many[1:])
    assert [bench.send(bytes(HEAD / IP() / UDP(dport=port))) for port in (0, 1, 64)] == [PASS, DROP, DROP]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "at least one"), ({"port": "53"}, "port"),
        ({"src_port": "70000"}, "65535"), ({"ttl": "9-3"}, "ttl"),
        ({"src": "10.0.0.0/40"}, "prefix"), ({"src": "@"}, "prefix"), ({"tcp_flags": "syn/ack"}, "among"),
        ({"tcp_flags": "sin"}, "syn/syn"),
        ({"payload": "8180"}, "OFFSET"), ({"payload": "0:...."}, "nothing"),
        ({"payload": "0:" + "00" * 17}, "16"), ({"fragment": "maybe"}, "no, first, later"),
        ({"ip": "5"}, "4 or 6"),
        ({"length": ",".join(["1"] * 65)}, "ranges"), ({"state": "old"}, "established or new"),
    ],
)  # fmt: skip
def test_refused_with_the_reason(fields: dict[str, str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        parse(fields)
    assert "\n" not in str(caught.value)
