"""What becomes of flows when a ring changes, and what the program counts and samples meanwhile."""

import ipaddress
import os
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from balancing import CLIENT, OURS, TX, Bench, bench, vip
from scapy.all import IP, TCP, UDP, Ether, IPv6

from collector import bpf_sys
from collector.balancer import ledger, ring
from collector.balancer.explain import explain
from collector.balancer.flow import Flow
from collector.balancer.layout import REASON
from collector.balancer.state import State
from collector.ring import Ring
from schemas import declare, dtype
from schemas.errors import BpfleetError
from schemas.lb import Limits

E = Ether(dst=OURS, src=CLIENT)
VIP4, VIP6 = "198.51.100.1", "2001:db8::1"
FLOW_EVENT = dtype.event(declare.streams()["lb_flow"])
REALS = tuple(f"10.0.0.{number}" for number in range(1, 11))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("lb")) as made:
        yield made


@pytest.fixture
def lb(shared: Bench) -> Bench:
    shared.clear()
    return shared


def packet(port: int, flags: str = "A", *, host: str = VIP4, udp: bool = False, source: str = "") -> bytes:
    layer = UDP(sport=port, dport=80) if udp else TCP(sport=port, dport=80, flags=flags)
    if ":" in host:
        return bytes(E / IPv6(src=source or "2001:db8:f::1", dst=host) / layer)
    return bytes(E / IP(src=source or "192.0.2.1", dst=host) / layer)


def real(lb: Bench, raw: bytes) -> str:
    done = lb.run(raw)
    assert done.retval == TX
    return str(ipaddress.ip_address(done.data[30:34]))


def reals(lb: Bench, ports: range, flags: str = "A", **how: Any) -> dict[int, str]:
    return {port: real(lb, packet(port, flags, **how)) for port in ports}


def web(*addresses: str, drain: str = "", **settings: Any) -> dict[str, Any]:
    tree = vip(VIP4, 80, *addresses, **settings)
    for each in tree["reals"]:
        each["drain"] = each["address"] == drain
    return {"web": tree}


def changed(lb: Bench, before: dict[int, str], after: dict[int, str]) -> list[int]:
    return [port for port in before if before[port] != after[port]]


OLD, NEW = range(1000, 1400), range(2000, 2400)


def test_old_flows_stay_and_new_ones_move(lb: Bench) -> None:
    lb.apply(web(*REALS[:3]))
    before = reals(lb, OLD)
    lb.apply(web(*REALS[:4]))
    assert reals(lb, OLD) == before
    new = reals(lb, NEW, "S")
    assert "10.0.0.4" in new.values()
    assert reals(lb, NEW) == new
    counted = lb.reasons()
    assert {"former", "remembered", "table"} <= set(counted)
    moved = sum(each == "10.0.0.4" for each in new.values())
    assert counted["remembered"] == counted["table"] == moved
    lb.apply(web(*REALS[:5], drain="10.0.0.4"))
    lb.apply(web(*REALS[2:5], "10.0.0.1", "10.0.0.2"))
    assert reals(lb, OLD) == before
    assert reals(lb, NEW) == new


def test_a_drained_real_keeps_its_flows_and_gets_no_new_ones(lb: Bench) -> None:
    lb.apply(web(*REALS[:3]))
    before = reals(lb, OLD)
    lb.apply(web(*REALS[:3], drain="10.0.0.2"))
    assert reals(lb, OLD) == before
    assert "10.0.0.2" not in reals(lb, NEW, "S").values()


def test_a_removed_real_loses_only_its_own_flows(lb: Bench) -> None:
    lb.apply(web(*REALS[:3]))
    before = reals(lb, OLD)
    lb.apply(web(*REALS[1:3]))
    after = reals(lb, OLD)
    assert changed(lb, before, after) == [port for port in OLD if before[port] == "10.0.0.1"]


def test_random_changes_break_no_flow_of_a_real_that_stays(lb: Bench) -> None:
    """Flows opened at any time, ten changes in a row; only a flow whose real was removed may move."""
    source = random.Random(3)
    lb.apply(web(*REALS[:5]))
    flows: dict[int, str] = {}
    for step in range(12):
        opened = range(3000 + 100 * step, 3100 + 100 * step)
        flows |= reals(lb, opened, "S")
        chosen = source.sample(REALS[2:], source.randrange(1, 6))
        lb.apply(web(*sorted({*REALS[:2], *chosen, *flows.values()}), drain=source.choice(REALS[1:])))
        assert {port: real(lb, packet(port)) for port in flows} == flows
    assert lb.reasons().get("unremembered", 0) == 0


def talk(lb: Bench, ports: range, *, seconds: float) -> tuple[dict[int, str], float]:
    """Where flows go that speak for so long, and the longest silence of any of them."""
    last = begun = time.monotonic()
    longest = 0.0
    while last - begun < seconds:
        where = reals(lb, ports)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        time.sleep(0.1)
    return where, longest + 0.1


def test_a_slot_is_steady_again_after_silence(lb: Bench) -> None:
    for _ in range(10):  # until the machine lets us speak often enough
        lb.apply(web(*REALS[:2], idle_seconds=1))
        time.sleep(1.2)  # steady
        before = reals(lb, OLD)
        lb.apply(web(*REALS[:3], idle_seconds=1))
        kept, pause = talk(lb, OLD[:20], seconds=1.6)
        if pause < 0.8:
            break
    assert kept == {port: before[port] for port in OLD[:20]}  # each packet keeps its slot changed
    time.sleep(1.5)
    after = reals(lb, OLD)
    assert {after[port] for port in changed(lb, before, after)} == {"10.0.0.3"}
    slots = lb.state.plane.read_ring(1)
    assert slots is not None
    for port in OLD:
        slot = explain(lb.state, flow(packet(port))).slot
        assert tuple(slots[slot])[1:] == (0, 0)


def test_a_syn_flood_fills_nothing_and_moves_nobody(tmp_path: Path) -> None:
    with bench(tmp_path, flows=1024) as lb:
        lb.apply(web(*REALS[:2]))
        lb.apply(web(*REALS[:6]))
        flood = {
            (host, port): real(lb, packet(port, "S", source=f"192.0.2.{host}"))
            for host in range(1, 11)
            for port in range(1, 251)
        }
        counted = lb.reasons()
        assert counted["unremembered"] > 500
        assert counted["remembered"] <= 1024 // 2 + 200
        for (host, port), where in flood.items():  # the rest of each handshake goes where its SYN went
            assert real(lb, packet(port, "A", source=f"192.0.2.{host}")) == where


def test_udp_flows_are_learned_before_they_move(lb: Bench) -> None:
    udp = {"protocol": "udp", "udp_idle_seconds": 3}
    lb.apply(web(*REALS[:2], **udp))
    before = reals(lb, OLD, udp=True)
    lb.apply(web(*REALS[:3], **udp))
    assert reals(lb, OLD, udp=True) == before
    time.sleep(3.2)
    assert reals(lb, OLD, udp=True) == before
    assert "10.0.0.3" in reals(lb, NEW, udp=True).values()
    assert {"learned", "remembered", "table"} <= set(lb.reasons())


def test_untracked_vips_move_at_once(lb: Bench) -> None:
    lb.apply(web(*REALS[:2], untracked=True))
    before = reals(lb, OLD)
    lb.apply(web(*REALS[:3], untracked=True))
    assert changed(lb, before, reals(lb, OLD))
    assert lb.reasons() == {}


def test_source_hash_ignores_the_port(lb: Bench) -> None:
    lb.apply(web(*REALS, source_hash=True))
    assert len(set(reals(lb, OLD).values())) == 1
    assert len({real(lb, packet(1, source=f"192.0.2.{n}")) for n in range(1, 60)}) > 5


def flow(raw: bytes) -> Flow:
    frame = Ether(raw)
    head = frame[IP] if IP in frame else frame[IPv6]
    name, layer = ("udp", frame[UDP]) if UDP in frame else ("tcp", frame[TCP])
    ends = [ipaddress.ip_address(head.src), ipaddress.ip_address(head.dst)]
    return Flow(name, ends[0], layer.sport, ends[1], layer.dport)


def test_explain_agrees_with_the_program(lb: Bench) -> None:
    vips = web(*REALS) | {"web6": vip(VIP6, 80, *REALS), "any": vip("198.51.100.2", 0, *REALS)}
    lb.apply(vips)
    old = [packet(port, host=host) for port in range(50, 90) for host in (VIP4, VIP6, "198.51.100.2")]
    new = [packet(port, "S", host=host) for port in range(150, 190) for host in (VIP4, VIP6)]
    sources = set()
    for _ in range(2):
        for each in old:
            found = explain(lb.state, flow(each))
            sources.add(found.source)
            assert found.real == real(lb, each)
        vips = {name: {**each, "reals": each["reals"][3:]} for name, each in vips.items()}
        vips["web"]["reals"] = vips["web6"]["reals"] = vip("", 0, *REALS, "10.0.0.11", "10.0.0.12")["reals"]
        lb.apply(vips)
    for each in new:
        where = real(lb, each)
        found = explain(lb.state, flow(each))
        sources.add(found.source)
        assert found.real == where
    assert sources == {"ring", "former", "table"}
    assert "no VIP" in explain(lb.state, Flow.parse("tcp [::1]:1 -> [::2]:2")).why


def test_explain_agrees_on_any_flow(lb: Bench) -> None:
    """Every kind of VIP, random clients, before and after changes; UDP after its learning time, too."""
    source = random.Random(5)
    udp = {"protocol": "udp", "udp_idle_seconds": 0.1}
    kinds = {
        "net": (("198.51.101.0/24", 0), {}),
        "net6": (("2001:db8:7::/48", 80), udp),
        "routes": ((VIP4, 81), {"source_routes": {"192.0.2.128/25": REALS[0]}}),
        "hash": ((VIP4, 82), {"source_hash": True}),
        "udp": ((VIP4, 80), udp),
        "any": ((VIP6, 0), {"encapsulation": "gue"}),
    }
    for step in range(4):
        chosen = [REALS[0], *source.sample(REALS[1:], 6)]
        lb.apply({name: vip(*place, *chosen, **how) for name, (place, how) in kinds.items()})
        time.sleep(0.2)  # UDP is learned
        for _ in range(120):
            host = source.choice([VIP4, "198.51.101.7", VIP6, "2001:db8:7::9"])
            raw = packet_to(source, host, source.choice([80, 81, 82]))
            found = explain(lb.state, flow(raw))
            done = lb.run(raw)
            where = str(ipaddress.ip_address(done.data[30:34])) if done.retval == TX else None
            assert found.real == where, (step, flow(raw), found)


def packet_to(source: random.Random, host: str, port: int) -> bytes:
    layer = source.choice([TCP(flags="A"), UDP()])
    layer.sport, layer.dport = source.randrange(1, 1 << 16), port
    low = source.randrange(1, 255)
    head = IPv6(src=f"2001:db8:f::{low}", dst=host) if ":" in host else IP(src=f"192.0.2.{low}", dst=host)
    return bytes(E / head / layer)


def test_a_returning_collector_finds_everything(lb: Bench) -> None:
    lb.apply(web(*REALS[:3]))
    before = reals(lb, OLD)
    lb.apply(web(*REALS[:4]))
    new = reals(lb, NEW, "S")
    program, slots = lb.state.plane.program, lb.state.plane.read_ring(1)
    counters = lb.packets()
    start = time.monotonic()
    lb.reopen()
    assert time.monotonic() - start < 0.5  # nothing was compiled
    assert lb.state.changes(lb.state.applied) == []
    lb.state.apply(lb.state.applied)
    assert np.array_equal(lb.state.plane.read_ring(1), slots)
    assert (lb.packets(), program > 0) == (counters, True)
    assert reals(lb, OLD) == before
    assert reals(lb, NEW) == new


def test_an_upgrade_replaces_the_program_and_keeps_the_rest(lb: Bench) -> None:
    lb.apply(web(*REALS[:3]))
    before, counters = reals(lb, OLD), lb.packets()
    lb.apply(web(*REALS[:4]))
    identity = bpf_sys.prog_info(lb.state.plane.program).id
    lb.state.ledger.program = "another"
    ledger.write(lb.state.ledger, lb.state.file)
    lb.reopen()
    assert bpf_sys.prog_info(lb.state.plane.program).id != identity
    lb.state.apply(lb.state.applied)
    assert lb.packets() == counters
    assert reals(lb, OLD) == before


def test_other_limits_are_refused(lb: Bench) -> None:
    lb.apply(web(*REALS[:3]))
    lb.state.ledger.program = "another"
    ledger.write(lb.state.ledger, lb.state.file)
    lb.state.__exit__(None, None, None)
    with pytest.raises(BpfleetError, match="made with other limits"):
        State.open(lb.config, lb.place, Limits(vips=7, backends=511, flows=4096))
    lb.state = State.open(lb.config, lb.place)


def test_numbers_rest_before_they_are_given_again(tmp_path: Path) -> None:
    with bench(tmp_path, backends=4) as lb:
        small = {"limits": {"vips": 31, "backends": 4, "flows": 4096}}
        lb.apply(web(*REALS[:4]), **small)
        lb.apply(web(*REALS[:3]), **small)
        with pytest.raises(Exception, match="no number is free"):
            lb.apply(web(*REALS[:3], REALS[5]), **small)
        assert [real.address for real in lb.state.applied.vips["web"].reals] == list(REALS[:3])


def test_counters_are_exact(lb: Bench) -> None:
    lb.apply(web(*REALS[:3]))
    raw = packet(5, "S")
    for _ in range(23):
        lb.run(raw)
    counters = lb.state.plane.read_counters()
    totals = [int(counters[name].sum()) for name in ("packets", "bytes", "flows")]
    assert totals == [23, 23 * (len(raw) - 14), 23]


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """Samples are taken of each CPU's packets."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


@pytest.mark.usefixtures("one_cpu")
def test_samples(lb: Bench) -> None:
    lb.apply(web(*REALS[:1], sample=4))
    samples = Ring(lb.state.plane.maps["lb_flow"], FLOW_EVENT)
    for port in range(100, 140):
        lb.run(packet(port, "S"))
    events = samples.read()
    samples.close()
    assert len(events) == 10
    one = events[0]
    assert (one["weight"], one["source_port"], one["destination_port"]) == (4, 103, 80)
    assert one["source_address"].tobytes()[12:] == bytes([192, 0, 2, 1])
    assert one["real_address"].tobytes()[12:] == bytes([10, 0, 0, 1])
    assert (one["protocol"], one["tcp_flags"], one["bytes"]) == (6, 2, 40)
    assert abs(int(one["ts"]) - time.monotonic_ns()) < 60e9
    assert {"sample_lost"} & set(lb.reasons()) == set()


def test_lost_samples_are_counted(lb: Bench) -> None:
    lb.apply(web(*REALS[:1], sample=1))
    room = lb.state.plane.maps["lb_flow"].max_entries // (FLOW_EVENT.itemsize + 8)
    for _ in range(0, room + 100, 100):
        for _ in range(100):
            lb.run(packet(9))
    assert lb.reasons()["sample_lost"] == lb.packets() - room


def test_ticks_are_the_programs() -> None:
    assert ring.ticks(300) == round(300e9) >> 26
    assert struct.calcsize("=Q") == 8
    assert REASON["former"].verdict == "forward"
