"""Filter and balancer on one interface, in one pass: either order, each alone, replaced under traffic."""

import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from lb_balanced import PAIRS, UDP, Balanced, Peer, running, tree

from collector import bpf_sys, xdp, xdp_chain
from collector.balancer import ledger
from collector.filter.assembler import R0, Assembler
from schemas.errors import BpfleetError

HOSTS = [each[0] for each in PAIRS.values()]
DATAGRAMS = [each[0] for each in UDP.values()]
FILTER = """
from pathlib import Path
from collector import xdp
from collector.filter.host import Filter
from collector.filter.language import Document, Rule
rule = Rule("udp", ttl="1h", match="udp dst port 7000", mode="enforce")
strangers = "tcp[tcpflags] & tcp-syn = 0 and state new"
place = dict(pins=xdp.pin_directory({pins!r}), balancer=xdp.PINS / {balancer!r})
with Filter(Path({folder!r}), ["eth0"], mode="native", **place) as host:
    {action}
    print(sum(each.packets for each in host.counts() if each.verdict == "drop"))
"""


class Filtered:
    """The filter that drops datagrams, on the balancer's interface."""

    def __init__(self, balanced: Balanced, folder: Path) -> None:
        self._balanced, self._folder = balanced, str(folder)
        self._pins = f"test-{uuid.uuid4().hex[:8]}-filter"

    def _run(self, action: str) -> int:
        text = self._text(action)
        return int(self._balanced.net.python("balancer", text) or 0)

    def _text(self, action: str) -> str:
        balancer = self._balanced.instance
        return FILTER.format(folder=self._folder, pins=self._pins, balancer=balancer, action=action)

    def install(self) -> None:
        self._run("host.apply(Document(rules=[rule]))")

    def keep_out_strangers(self, mode: str) -> None:
        self._run(
            f"host.apply(Document(rules=[Rule('strangers', ttl='1h', match=strangers, mode={mode!r})]))"
        )

    def dropped(self) -> int:
        return self._run("pass")

    def remove(self) -> None:
        text = self._text("host.detach()")
        self._balanced.net.python("balancer", text.rsplit("    print", 1)[0])


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balanced]:
    with running(tmp_path_factory.mktemp("lb")) as made:
        yield made


@pytest.fixture
def filtered(balanced: Balanced, tmp_path: Path) -> Iterator[Filtered]:
    made = Filtered(balanced, tmp_path)
    yield made
    made.remove()


@pytest.fixture
def peer(balanced: Balanced) -> Iterator[Peer]:
    one = Peer(balanced.net)
    yield one
    one.process.kill()
    one.process.wait()


def datagrams(balanced: Balanced) -> int:
    """How many of ten datagrams from one socket each are answered."""
    text = (
        "import socket\n"
        f"got = 0\nfor host in {DATAGRAMS * 5}:\n"
        "    s = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET, socket.SOCK_DGRAM)\n"
        "    s.settimeout(0.06); s.connect((host, 7000)); s.send(b'x')\n"
        "    try: s.recv(100); got += 1\n"
        "    except OSError: pass\nprint(got)"
    )
    return int(balanced.net.python("client", text))


def test_the_filter_comes_and_goes_over_a_running_balancer(
    balanced: Balanced, filtered: Filtered, peer: Peer
) -> None:
    everything = {"answered": 120}
    peer.ask("open", 120, *HOSTS)
    assert datagrams(balanced) == 10
    peer.say("surge", 200, *HOSTS)
    filtered.install()
    assert peer.hear() == {"ok": 200, "failed": 0}
    assert peer.ask("ping") == everything
    assert (datagrams(balanced), filtered.dropped()) == (0, 10)
    balanced.apply(tree((100, 10, 100)))  # maps change under both
    assert peer.ask("ping") == everything
    peer.say("surge", 200, *HOSTS)
    filtered.remove()
    assert peer.hear() == {"ok": 200, "failed": 0}
    assert peer.ask("ping") == everything
    assert datagrams(balanced) == 10


def test_an_upgraded_balancer_takes_its_place_behind_the_filter(
    balanced: Balanced, filtered: Filtered, peer: Peer
) -> None:
    filtered.install()
    peer.ask("open", 60, *HOSTS)
    file = balanced.folder / "state" / "balancer" / f"{balanced.instance}.json"
    known = ledger.read(file)
    known.program = "another"
    ledger.write(known, file)
    program = xdp.PINS / balanced.instance / "program"
    before = bpf_sys.prog_info(bpf_sys.obj_get(program)).id
    peer.say("surge", 200, *HOSTS)
    balanced.apply(tree((100, 10, 100)))
    assert bpf_sys.prog_info(bpf_sys.obj_get(program)).id != before
    assert peer.hear() == {"ok": 200, "failed": 0}
    assert peer.ask("ping") == {"answered": 60}
    assert datagrams(balanced) == 0


def test_the_balancer_comes_and_goes_behind_a_running_filter(
    balanced: Balanced, filtered: Filtered, peer: Peer
) -> None:
    balanced.lb("remove", "--yes")
    assert datagrams(balanced) == 0
    filtered.install()
    before = filtered.dropped()
    datagrams(balanced)
    assert filtered.dropped() == before + 10  # alone
    balanced.apply(tree())
    peer.ask("open", 60, *HOSTS)
    assert peer.ask("ping") == {"answered": 60}
    assert (datagrams(balanced), filtered.dropped()) == (0, before + 20)
    balanced.lb("remove", "--yes")
    datagrams(balanced)
    assert filtered.dropped() == before + 30  # the filter's program survived
    balanced.apply(tree())
    filtered.remove()
    assert datagrams(balanced) == 10
    assert json.loads(balanced.lb("show", "--json"))["interfaces"] == ["eth0"]


def test_a_flood_of_segments_to_a_vip_is_dropped_and_people_go_on(
    balanced: Balanced, filtered: Filtered, peer: Peer
) -> None:
    hosts = [each for each in HOSTS if "." in each]  # tcp[…] is IPv4's
    peer.ask("open", 60, *hosts)
    filtered.keep_out_strangers("shadow")
    for _ in range(2):
        assert peer.ask("ping") == {"answered": 60}
    filtered.keep_out_strangers("enforce")
    assert peer.ask("ping") == {"answered": 60}
    before = filtered.dropped()
    flooded = balanced.net.python("client", FLOOD.format(hosts=hosts, count=600))
    assert peer.ask("surge", 200, *hosts) == {"ok": 200, "failed": 0}
    balanced.apply(tree((100, 10, 100)))
    assert peer.ask("ping") == {"answered": 60}
    assert filtered.dropped() - before == int(flooded) == 600


FLOOD = """
import random, socket
from scapy.all import IP, TCP
dice = random.Random(4).randrange
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for number in range({count}):
    host = {hosts}[number % {hosts!r}.__len__()]
    tcp = TCP(sport=dice(1024, 65536), dport=7000, flags="A", seq=dice(2**32), ack=dice(2**32))
    raw.sendto(bytes(IP(src="192.0.2.%d" % dice(1, 255), dst=host) / tcp), (host, 0))
print({count})
"""


def test_a_second_balancer_or_a_strangers_program_is_refused(balanced: Balanced) -> None:
    text = (
        "import sys\nfrom collector import bpf_sys, xdp, xdp_chain\n"
        f"program = bpf_sys.obj_get(xdp.PINS / {balanced.instance!r} / 'program')\n"
        "try: xdp_chain.put_next('other', program, 'eth0')\n"
        "except Exception as error: print(error)"
    )
    assert (
        balanced.net.python("balancer", text) == f"eth0 already has {balanced.instance}; remove that first\n"
    )


def test_an_interface_that_went_leaves_nothing(tmp_path: Path) -> None:
    name = f"bpf{uuid.uuid4().hex[:6]}.7"  # as of a VLAN: bpffs takes no dots
    program = _passing()
    run(f"ip link add {name} type veth peer name {name}p")
    xdp_chain.put_next("test", program, name, mode="generic")
    assert xdp_chain.interfaces("test") == [name]
    run(f"ip link del {name}")
    xdp_chain.sweep()
    assert xdp_chain.interfaces("test") == []
    with pytest.raises(BpfleetError, match="there is no interface"):
        xdp_chain.put_next("test", program, name)


def test_a_driver_that_will_not_for_jumbo_frames_leaves_it_to_the_stack() -> None:
    name = f"bpf{uuid.uuid4().hex[:6]}"
    run(f"ip link add {name} mtu 9000 type veth peer name {name}p mtu 9000")
    try:
        with pytest.raises(BpfleetError, match="try mode generic"):
            xdp.attach(_passing(), name, mode="native")
        xdp.attach(_passing(), name).detach()
    finally:
        run(f"ip link del {name}")


def run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True)


def _passing() -> int:
    code = Assembler()
    code.constant(R0, 2)
    code.leave()
    return bpf_sys.prog_load(bpf_sys.ProgType.XDP, code.finish(), "passing")
