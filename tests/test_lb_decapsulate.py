"""Decapsulation on reals: what the balancer put on comes off, and nothing else is touched."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from balancing import CLIENT, DROP, OURS, PASS, TX, bench, vip
from scapy.all import IP, TCP, UDP, Dot1Q, Ether, IPv6, Raw

from collector import bpf_sys, loader, xdp
from collector.balancer import decapsulate
from collector.loader import Loaded
from schemas.errors import BpfleetError, UsageError

E = Ether(dst=OURS, src=CLIENT)
INNER4 = IP(src="192.0.2.1", dst="198.51.100.1") / TCP(dport=80) / Raw(b"data")
INNER6 = IPv6(src="2001:db8:f::1", dst="2001:db8::1") / TCP(dport=80) / Raw(b"data")
B4, B6 = "10.254.7.7", "fd00:254::7"


@pytest.fixture(scope="module")
def program() -> Iterator[Loaded]:
    result = loader.load([loader.Source("decapsulate", decapsulate.SOURCE, attach=False)])
    assert not result.failed
    loaded = result.loaded["decapsulate"]
    for prefix in ("10.254.0.0/16", "fd00:254::/96"):
        loaded.maps["balancers"].update(decapsulate.prefix_key(prefix), bytes(4))
    for prefix in ("198.51.100.0/24", "2001:db8::/64"):
        loaded.maps["vips"].update(decapsulate.prefix_key(prefix), bytes(4))
    yield loaded
    loaded.close()


TAKEN_OFF = [
    ("4 in 4", IP(src=B4, dst="10.0.0.1") / INNER4, INNER4),
    ("6 in 4", IP(src=B4, dst="10.0.0.1", proto=41) / INNER6, INNER6),
    ("4 in 6", IPv6(src=B6, dst="fd00::1", nh=4) / INNER4, INNER4),
    ("6 in 6", IPv6(src=B6, dst="fd00::1", nh=41) / INNER6, INNER6),
    ("GUE, 4 in 4", IP(src=B4) / UDP(sport=40000, dport=6080) / Raw(bytes(INNER4)), INNER4),
    ("GUE, 6 in 4", IP(src=B4) / UDP(sport=40000, dport=6080) / Raw(bytes(INNER6)), INNER6),
    ("GUE, 6 in 6", IPv6(src=B6) / UDP(sport=40000, dport=6080) / Raw(bytes(INNER6)), INNER6),
]
LEFT_ALONE = [
    ("plain", INNER4),
    ("plain IPv6", INNER6),
    ("a stranger's", IP(src="10.1.1.1", dst="10.0.0.1") / INNER4),
    ("a stranger's IPv6", IPv6(src="fd01::1", nh=41) / INNER6),
    ("for another address of the host", IP(src=B4) / IP(src="192.0.2.1", dst="10.0.0.1") / TCP()),
    ("for loopback", IPv6(src=B6, nh=41) / IPv6(src="2001:db8:f::1", dst="::1") / TCP()),
    ("another tunnel inside", IP(src=B4) / IP(src=B4, dst="10.0.0.1") / INNER4),
    ("another UDP port", IP(src=B4) / UDP(dport=6081) / Raw(bytes(INNER4))),
    ("GUE with something else inside", IP(src=B4) / UDP(dport=6080) / Raw(b"\0" * 40)),
    ("GUE without anything inside", IP(src=B4) / UDP(dport=6080)),
    ("a fragment", IP(src=B4, flags="MF") / INNER4),
    ("a tag", Dot1Q() / IP(src=B4) / INNER4),
    ("nothing but Ethernet", Raw(b"\0" * 4)),
]


@pytest.mark.parametrize(("what", "packet", "inner"), TAKEN_OFF, ids=[each[0] for each in TAKEN_OFF])
def test_taken_off(program: Loaded, what: str, packet: Any, inner: Any) -> None:
    done = bpf_sys.prog_test_run(program.programs[0].fd, bytes(E / packet))
    assert (done.retval, done.data) == (PASS, bytes(E / inner))


@pytest.mark.parametrize(("what", "packet"), LEFT_ALONE, ids=[each[0] for each in LEFT_ALONE])
def test_left_alone(program: Loaded, what: str, packet: Any) -> None:
    raw = bytes(E / packet)
    done = bpf_sys.prog_test_run(program.programs[0].fd, raw)
    assert (done.retval, done.data) == (PASS, raw)


def test_an_outer_header_with_nothing_behind_is_dropped(program: Loaded) -> None:
    raw = bytes(E / IP(src=B4, proto=4) / Raw(b"abc"))
    assert bpf_sys.prog_test_run(program.programs[0].fd, raw).retval == DROP


def test_what_the_balancer_sends_comes_off(program: Loaded, tmp_path: Path) -> None:
    with bench(tmp_path) as lb:
        lb.apply(
            {
                "a": vip("198.51.100.1", 80, "10.0.0.1"),
                "b": vip("2001:db8::1", 80, "fd00::1", encapsulation="gue"),
            }
        )
        for inner in (INNER4, INNER6):
            sent = lb.run(bytes(E / inner))
            assert sent.retval == TX
            done = bpf_sys.prog_test_run(program.programs[0].fd, sent.data)
            assert (done.retval, done.data[14:]) == (PASS, bytes(inner))


def test_random_bytes(program: Loaded) -> None:
    for _ in range(1500):
        raw = bytearray(bytes(E / TAKEN_OFF[os.urandom(1)[0] % 7][1]))
        for _ in range(3):
            raw[12 + os.urandom(1)[0] % 40] = os.urandom(1)[0]
        cut = bytes(raw[: 14 + os.urandom(1)[0] % len(raw)])
        assert bpf_sys.prog_test_run(program.programs[0].fd, cut).retval in (PASS, DROP)


def test_on_an_interface() -> None:
    name, place = f"dc{uuid.uuid4().hex[:6]}", xdp.PINS / f"test-{uuid.uuid4().hex[:8]}"
    ip = ["ip", "link"]
    subprocess.run([*ip, "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True)
    try:
        decapsulate.apply(name, ["10.254.0.0/16"], place=place)
        decapsulate.apply(name, ["10.253.0.0/16", "fd00::/8"], ["198.51.100.0/24"], place=place)
        assert set(decapsulate.counts(place)) == {
            "decapsulated",
            "not_encapsulated",
            "stranger",
            "not_vip",
            "broken",
        }
        with pytest.raises(UsageError, match="host bits"):
            decapsulate.apply(name, ["10.254.0.1/16"], place=place)
        with pytest.raises(BpfleetError, match="no interface"):
            decapsulate.apply("nosuch0", ["10.254.0.0/16"], place=place)
        shown = subprocess.run([*ip, "show", name], capture_output=True, text=True, check=True).stdout
        assert "xdp" in shown
        decapsulate.remove(name, place)
        assert not place.exists()
    finally:
        subprocess.run([*ip, "del", name], check=False)
        if place.exists():
            decapsulate.remove(name, place)


def test_the_command_helps() -> None:
    text = "from fleet.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", text, "lb", "decapsulate", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "apply" in done.stdout
