"""Nanoseconds a packet of the balancer, by BPF_PROG_TEST_RUN, beside references in the same run.

Each round gives the program the packet as it was (bench/restore.bpf.c) and follows it to the verdict. The
references are a trivial pass and the least that an encapsulating program can do, through the same wrapper.
Katran's figures on a like machine, with its own references, are the yardstick: what is to be reached is a
multiple of the least encapsulation. With ``BPFLEET_BENCH_PEER=PIN,PIN_GUE`` a balancer pinned in bpffs
that knows the same VIPs (:data:`VIPS`) is measured in turns with ours, on the same packets.
BPF statistics, where another process has them on, add the same 65 ns to everything; the run then says so.
"""

import os
import struct
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scapy.all import IP, TCP, UDP, Ether, IPv6, Raw

from bench.common import Row, Times, cpu_seconds, in_turns, ratio, ratio_text
from bench.filter import rules
from collector import bpf_sys, loader, xdp
from collector.balancer import maglev
from collector.balancer.state import State
from collector.filter.host import Filter
from collector.filter.language import Document
from schemas import lb as model
from schemas.config import Config

REPEAT, ROUNDS = 400_000, 11
REALS = 100  # of each VIP
FRAME = np.dtype(
    [
        ("length", "<u4"),
        ("target", "<u4"),
        ("ipv6", "<u4"),
        ("flows", "<u4"),
        ("round", "<u8"),
        ("bytes", "u1", 128),
    ]
)
VIPS = {
    "tcp": ("10.0.0.1", "tcp", "10.1.0.{}", "ipip"),
    "udp": ("10.0.0.1", "udp", "10.1.0.{}", "ipip"),
    "gue": ("10.0.0.2", "tcp", "10.1.0.{}", "gue"),
    "tcp6": ("fd00::1", "tcp", "fd01::{}", "ipip"),
}
PASS, TX = 2, 3


@dataclass(frozen=True)
class Case:
    """A kind of packet, how many flows it comes in, and the most it may cost: against the least encapsulation
    (Katran's published figure with its own reference 41) and against a peer."""

    name: str
    packet: bytes
    flows: int
    verdict: int
    most: float | None
    share: float
    gue: bool = False


def _packet(head: Any, layer: Any) -> bytes:
    raw = bytes(Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:03") / head / layer)
    return raw + bytes(Raw(b"x" * (86 - len(raw)))) if len(raw) < 86 else raw


def _tcp(host: str, flags: str = "A") -> bytes:
    head = IPv6(src="fd02::1", dst=host) if ":" in host else IP(src="192.168.1.1", dst=host)
    return _packet(head, TCP(sport=1000, dport=80, flags=flags) / Raw(b"x" * 32))


def _udp(host: str) -> bytes:
    return _packet(IP(src="192.168.1.1", dst=host), UDP(sport=1000, dport=80) / Raw(b"x" * 44))


KATRAN_LEAST = 41
CASES = [
    Case("one hot flow", _tcp("10.0.0.1"), 0, TX, 135 / KATRAN_LEAST, 0.60),
    Case("1 M flows", _tcp("10.0.0.1"), 1 << 20, TX, 352 / KATRAN_LEAST, 0.40),
    Case("GUE", _tcp("10.0.0.2"), 0, TX, 315 / KATRAN_LEAST, 0.50, gue=True),
    Case("SYN flood of 16 M flows", _tcp("10.0.0.1", "S"), 1 << 24, TX, 195 / KATRAN_LEAST, 0.60),
    Case("VIP miss", _tcp("10.0.0.9"), 0, PASS, 70 / KATRAN_LEAST, 1.0),
    Case("IPv6", _tcp("fd00::1"), 0, TX, 142 / 48, 0.75),
    Case("UDP", _udp("10.0.0.1"), 0, TX, None, 1.0),
]  # fmt: skip


def configuration() -> model.Balancer:
    """The VIPs, each with :data:`REALS` reals."""
    vips = {
        name: {
            "address": address, "port": 80, "protocol": protocol, "encapsulation": encapsulation,
            "reals": [{"address": real.format(number)} for number in range(1, REALS + 1)],
        }
        for name, (address, protocol, real, encapsulation) in VIPS.items()
    }  # fmt: skip
    return model.parse({"vips": vips, "next_hop": "02:00:00:00:00:99"})


@contextmanager
def balancer() -> Iterator[State]:
    """A balancer with these VIPs, pinned under a name of its own, gone afterwards."""
    wanted = configuration()
    with tempfile.TemporaryDirectory() as folder:
        place = xdp.PINS / f"bench-{uuid.uuid4().hex[:8]}"
        with State.open(Config(state_dir=folder), place, wanted.limits) as state:
            try:
                state.apply(wanted)
                yield state
            finally:
                state.remove()


@contextmanager
def filtering(state: State) -> Iterator[tuple[int, int]]:
    """Two filters with ten rules that nothing matches: alone, and with the balancer behind it."""
    with tempfile.TemporaryDirectory() as folder:
        alone, both = Filter(Path(folder)), Filter(Path(folder))
        try:
            for each in (alone, both):
                each.apply(Document(rules=rules(10)))
            following = next(iter(both.programs.values())).next
            following.update(bytes(4), struct.pack("=I", state.plane.program))
            yield next(iter(alone.programs.values())).fd, next(iter(both.programs.values())).fd
        finally:
            alone.close()
            both.close()


class Harness:
    """The wrapper and the programs it calls, by number."""

    def __init__(self) -> None:
        file = Path(__file__).with_name("restore.bpf.c")
        result = loader.load([loader.Source("restore", file, attach=False)])
        if result.failed:
            raise SystemExit(f"bench: {result.failed['restore']}")
        self._loaded = result.loaded["restore"]
        self._programs = 0
        self._rounds: dict[tuple[str, int], int] = {}  # packets that a program had of a case

    def add(self, program: int) -> int:
        """A program's number."""
        number = self._programs
        self._loaded.maps["targets"].update(struct.pack("=I", number), struct.pack("=I", program))
        self._programs += 1
        return number

    def reference(self, name: str) -> int:
        """The number of a reference in the wrapper's source."""
        return self.add(self._loaded.program(name).fd)

    def run(self, case: Case, target: int, verdict: int) -> float:
        """Nanoseconds a packet."""
        frame = np.zeros((), FRAME)
        frame["length"], frame["target"], frame["flows"] = len(case.packet), target, case.flows
        frame["ipv6"] = case.packet[12:14] == b"\x86\xdd"
        frame["round"] = self._rounds.get((case.name, target), 0)  # so that all flows have their turn
        self._rounds[case.name, target] = int(frame["round"]) + REPEAT
        frame["bytes"][: len(case.packet)] = np.frombuffer(case.packet, np.uint8)
        self._loaded.maps["frames"].update(bytes(4), frame.tobytes())
        done = bpf_sys.prog_test_run(self._loaded.program("restore").fd, case.packet, repeat=REPEAT)
        if done.retval != verdict:
            raise SystemExit(f"bench: {case.name}: verdict {done.retval}, not {verdict}")
        return float(done.ns)

    def timed(self) -> bool:
        """Whether the kernel timed our runs, which costs time."""
        return bpf_sys.prog_info(self._loaded.program("restore").fd).run_count > 0

    def close(self) -> None:
        self._loaded.close()


def _peers(harness: Harness) -> tuple[int, int] | None:
    """Numbers of the peer's programs, without and with GUE."""
    pins = os.environ.get("BPFLEET_BENCH_PEER")
    if not pins:
        return None
    plain, gue = (harness.add(bpf_sys.obj_get(pin)) for pin in pins.split(","))
    return plain, gue


def run() -> list[Row]:
    """Measure everything."""
    harness = Harness()
    try:
        with balancer() as state, filtering(state) as chained:
            return [*_speed(harness, state, chained), _ring()]
    finally:
        harness.close()


def _speed(harness: Harness, state: State, chained: tuple[int, int]) -> list[Row]:
    trivial, least, ours = (
        harness.reference("trivial"),
        harness.reference("least"),
        harness.add(state.plane.program),
    )
    alone, both = (harness.add(each) for each in chained)
    peers = _peers(harness)
    hot = CASES[0]
    jobs: dict[str, Callable[[], float]] = {
        "trivial": partial(harness.run, hot, trivial, PASS),
        "least": partial(harness.run, hot, least, TX),
        "filter": partial(harness.run, hot, alone, PASS),
        "filter and balancer": partial(harness.run, hot, both, TX),
    }
    for case in CASES:
        jobs[case.name] = partial(harness.run, case, ours, case.verdict)
        if peers:
            jobs[f"peer: {case.name}"] = partial(harness.run, case, peers[case.gue], case.verdict)
    times = in_turns(jobs, ROUNDS)
    rows = [
        Row(
            "trivial pass, least encapsulation",
            times["trivial"].text("ns"),
            times["least"].text("ns"),
            "",
            "",
            None,
        )
    ]
    return rows + [_row(case, times) for case in CASES] + [_together(times)]


def _together(times: dict[str, Times]) -> Row:
    """One pass through both beside the sum of each alone.

    Each figure holds the wrapper and the test run's own time once, which is what a trivial pass takes; the
    sum would hold them twice, so they are taken off once. Minima and medians are summed each for itself.
    """
    both, alone, balancer, wrapper = (
        times[name] for name in ("filter and balancer", "filter", CASES[0].name, "trivial")
    )
    least = alone.least + balancer.least - wrapper.least
    median = alone.median + balancer.median - wrapper.median
    ratios = both.least / least, both.median / median
    return Row(
        "filter (10 rules), then balancer", both.text("ns"),
        f"{alone.text('filter')} + {balancer.text('balancer')} − {wrapper.text('wrapper')}"
        f" = {least:.3g}/{median:.3g} ns",
        f"{ratios[0]:.3g}/{ratios[1]:.3g}", "≤ 1", ratios[0] <= 1,
    )  # fmt: skip


def _row(case: Case, times: dict[str, Times]) -> Row:
    ours, least, peer = times[case.name], times["least"], times.get(f"peer: {case.name}")
    if peer:
        met = ratio(ours, peer)[0] <= case.share
        return Row(
            case.name,
            ours.text("ns"),
            peer.text("ns, peer"),
            ratio_text(ours, peer),
            f"≤ {case.share:.2f}",
            met,
        )
    if case.most is None:
        return Row(case.name, ours.text("ns"), least.text("ns, least"), ratio_text(ours, least), "", None)
    most = case.most * case.share
    met = ratio(ours, least)[0] <= most
    return Row(
        case.name, ours.text("ns"), least.text("ns, least"), ratio_text(ours, least), f"≤ {most:.2f}", met
    )


def _ring() -> Row:
    names = [f"10.2.{number >> 8}.{number & 255}" for number in range(500)]
    weights = [1 + number % 9 for number in range(500)]
    times = Times(tuple(cpu_seconds(lambda: maglev.ring(names, weights)) for _ in range(7)))
    return Row("ring of 500 weighted reals", times.text("ms", 1e3), "", "", "≤ 100 ms", times.least <= 0.1)
