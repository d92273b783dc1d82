"""Address lists: large ones change quickly, and at once for every packet."""

import random
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest
from scapy.all import UDP, IPv6, Raw
from test_filter_program import DROP, HEAD, PASS, Bench, rule, udp

from collector.filter.host import Filter
from collector.filter.language import Document
from collector.filter.lists import Lists
from fleet.drop_edit import set_drafts
from schemas.desired import Document as Published
from schemas.desired import Scope
from schemas.filter import MAX_PREFIXES

MILLION = 1_000_000


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Filter(tmp_path_factory.mktemp("filter")) as host:
        yield Bench(host)


def many(count: int) -> list[str]:
    """Distinct IPv4 addresses, 203.0.113.0/24 not among them."""
    numbers = random.Random(4).sample(range(0x0B000000, 0xC8000000), count)
    return [f"{n >> 24}.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in numbers]


def many6(count: int) -> list[str]:
    """Distinct IPv6 addresses, 2001:db8::/32 not among them."""
    numbers = random.Random(4).sample(range(1 << 48), count)
    return [f"2a02:{n >> 32:x}:{n >> 16 & 0xFFFF:x}:{n & 0xFFFF:x}::1" for n in numbers]


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_one_of_a_million_prefixes_changes_in_half_a_second(bench: Bench, family: str) -> None:
    """The parts are those in which `bpfleet drop set` publishes them."""
    four = family == "IPv4"
    prefixes, other = (many(MILLION), "203.0.113.5") if four else (many6(MILLION), "2001:db8::5")
    drafts, _ = set_drafts({}, "big", prefixes, Scope(), None)
    parts = {each.id: each.spec["set"]["prefixes"] for each in drafts}
    assert sum(map(len, parts.values())) == MILLION and max(map(len, parts.values())) <= MAX_PREFIXES
    lists, document = Lists(), Document(rules=[rule("bots", "src in @big")])
    bench.host.apply(document, lists.parsed({"big": parts}))
    frames = [(udp if four else frame6)(source) for source in (prefixes[0], prefixes[-1], other)]
    assert [*map(bench.send, frames)] == [DROP, DROP, PASS]

    known = {
        each.id: Published(kind="filter", id=each.id, revision=1, created=0, spec=each.spec)
        for each in drafts
    }
    drafts, stale = set_drafts(known, "big", [other, *prefixes[1:]], Scope(), None)
    assert len(drafts) in (1, 2) and not stale  # not the others
    begin, cpu = time.monotonic(), time.thread_time()
    changed = {f"{each.id} changed": each.spec["set"]["prefixes"] for each in drafts}
    kept = {name: each for name, each in parts.items() if f"{name} changed" not in changed}
    bench.host.apply(document, lists.parsed({"big": kept | changed}))
    took, used = time.monotonic() - begin, time.thread_time() - cpu
    print(f"\none prefix of a million: {took:.2f} s, {used:.2f} s of CPU")
    assert [*map(bench.send, frames)] == [PASS, DROP, DROP]
    assert used <= 0.5


def frame6(source: str) -> bytes:
    return bytes(HEAD / IPv6(src=source, dst="2001:db8::1") / UDP(dport=9) / Raw(b"x" * 20))


def drawn(dice: random.Random) -> list[str]:
    """3000 prefixes of IPv6."""
    pairs = [(dice.randrange(1 << 16), dice.randrange(1 << 16)) for _ in range(3000)]
    return [f"2001:db8:{a:x}:{b:x}::/{dice.choice([52, 64, 128])}" for a, b in pairs]


def test_ipv6_sets_change_at_once(bench: Bench) -> None:
    """What is in the set before and after a change is never found outside of it."""
    stays = "2001:db8:aaaa::/48"
    others = [drawn(random.Random(seed)) for seed in (1, 2)]
    bench.apply(rule("six", "src in @six"), six=[stays, *others[0]])
    frame, stop = frame6("2001:db8:aaaa::7"), threading.Event()
    fd, sent, passed, turn = bench.fd, 0, 0, 0

    def flood() -> None:
        nonlocal sent, passed
        while not stop.is_set():
            passed += bench.send(frame, 2000) != DROP
            sent += 2000

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        while turn < 8 or (sent <= 10_000 and turn < 500):
            turn += 1
            bench.apply(rule("six", "src in @six"), six=[stays, *others[turn % 2]])
    finally:
        stop.set()
        thread.join()
    assert (bench.fd, passed) == (fd, 0)
    assert bench.count("six", "drop") == sent > 10_000
    networks = [ip_network(each, strict=False) for each in (stays, *others[turn % 2])]
    dice = random.Random(3)
    for _ in range(100):
        source = ip_address(int(dice.choice(networks).network_address) + dice.choice([0, 1, 1 << 66]))
        inside = any(source in each for each in networks)
        assert bench.send(frame6(str(source))) == (DROP if inside else PASS), source
