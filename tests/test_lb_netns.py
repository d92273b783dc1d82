"""The balancer on real packets: client, balancer and three reals in namespaces, XDP on veth."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lb_net import Network, network

from collector import xdp

PEER = str(Path(__file__).with_name("lb_peer.py"))
R4, R6 = [f"10.9.0.{n}" for n in (11, 12, 13)], [f"fd09::{n}" for n in (11, 12, 13)]
PAIRS = {
    "4in4": ("198.51.100.1", R4, "ipip"),
    "4in6": ("198.51.100.2", R6, "ipip"),
    "6in4": ("2001:db8::1", R4, "ipip"),
    "6in6": ("2001:db8::2", R6, "ipip"),
    "4gue4": ("198.51.100.3", R4, "gue"),
    "6gue6": ("2001:db8::3", R6, "gue"),
}
UDP = {"udp4": ("198.51.100.4", R4, "ipip"), "udp6": ("2001:db8::4", R6, "ipip")}
DECAPSULATE = (
    "from collector import xdp; from collector.balancer import decapsulate\n"
    "decapsulate.apply('eth0', ['10.254.0.0/16', 'fd00:254::/96'], place=xdp.PINS / {!r})"
)


class Peer:
    """The client process: one line in, one line of JSON out."""

    def __init__(self, net: Network) -> None:
        self.process = net.start(
            "client", sys.executable, PEER, "client", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def say(self, *words: object) -> None:
        assert self.process.stdin
        self.process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        assert "error" not in answer, answer
        return answer

    def ask(self, *words: object) -> dict[str, Any]:
        self.say(*words)
        return self.hear()


class Balanced:
    """The network with a balancer in it, driven by the command line as an operator would."""

    def __init__(self, net: Network, folder: Path) -> None:
        self.net, self.folder = net, folder
        self.instance = f"test-{net.prefix}-lb"
        self.config = folder / "bpfleet.yaml"
        self.config.write_text(yaml.safe_dump({"state_dir": str(folder / "state")}))

    def command(self, *words: str) -> list[str]:
        main = "from fleet.cli import main; main()"
        return [
            sys.executable,
            "-c",
            main,
            "--config",
            str(self.config),
            "lb",
            "--instance",
            self.instance,
            *words,
        ]

    def lb(self, *words: str) -> str:
        return self.net.run("balancer", *self.command(*words))

    def apply(self, tree: dict[str, Any]) -> str:
        file = self.folder / "lb.yaml"
        file.write_text(yaml.safe_dump(tree))
        return self.lb("apply", str(file))


def tree(weights: tuple[int, ...] = (100, 100, 100), **change: Any) -> dict[str, Any]:
    """The configuration: the first reals have these weights; a negative weight drains."""
    vips = {}
    for name, (address, reals, encapsulation) in (PAIRS | UDP).items():
        vips[name] = {
            "address": address,
            "port": 0,
            "protocol": "udp" if name in UDP else "tcp",
            "encapsulation": encapsulation,
            "udp_idle_seconds": 2,
            "reals": [
                {"address": real, "weight": abs(weight), "drain": weight < 0}
                for real, weight in zip(reals, weights, strict=False)
            ],
        }
    limits = {"vips": 15, "backends": 127, "flows": 65_536}
    return {"interfaces": ["eth0"], "mode": "native", "limits": limits, "vips": vips, **change}


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balanced]:
    with network() as net:
        made = Balanced(net, tmp_path_factory.mktemp("lb"))
        places = [f"test-{net.prefix}-real{number}" for number in (1, 2, 3)]
        try:
            for number, place in enumerate(places, 1):
                net.python(f"real{number}", DECAPSULATE.format(place))
                server = net.start(
                    f"real{number}", sys.executable, PEER, "server", f"real{number}", stdout=subprocess.PIPE
                )
                assert server.stdout
                assert server.stdout.readline() == b"ready\n"
            made.apply(tree())
            yield made
        finally:
            for place in [*places, made.instance]:
                for pin in sorted((xdp.PINS / place).glob("*")):
                    pin.unlink()
                if (xdp.PINS / place).exists():
                    (xdp.PINS / place).rmdir()


@pytest.fixture
def peer(balanced: Balanced) -> Iterator[Peer]:
    balanced.apply(tree())
    one = Peer(balanced.net)
    yield one
    one.process.kill()
    one.process.wait()


def fetch(balanced: Balanced, host: str, *, size: int = 0, post: int = 0) -> tuple[str, int]:
    """(server, bytes) of one HTTP transfer by the VIP, from another process each time."""
    text = (
        "import http.client\n"
        f"c = http.client.HTTPConnection({host!r}, 80, timeout=20)\n"
        f"c.request('POST', '/', b'y' * {post}) if {post} else c.request('GET', '/{size}')\n"
        "r = c.getresponse(); b = r.read(); print(r.headers['Server'], int(b) if {} else len(b))"
    ).format(post)
    server, count = balanced.net.python("client", text).split()
    return server, int(count)


@pytest.mark.parametrize("pair", PAIRS)
def test_http_through_the_vip(balanced: Balanced, pair: str) -> None:
    host = PAIRS[pair][0]
    assert fetch(balanced, host, size=300_000)[1] == 300_000
    # What goes up does not fit with an outer header at first: the client must be told, and shrink.
    assert fetch(balanced, host, post=300_000)[1] == 300_000


def test_every_real_serves(balanced: Balanced, peer: Peer) -> None:
    hosts = [each[0] for each in PAIRS.values()]
    peer.ask("open", 120, *hosts)
    assert peer.ask("ping") == {"answered": 120}
    owners = peer.ask("held")
    assert {"real1", "real2", "real3"} < set(owners)
    shown = json.loads(balanced.lb("show", "--json"))
    for pair in PAIRS:
        assert all(real["packets"] > 0 for real in shown["vips"][pair]["reals"])
    assert sum(real["flows"] for vip in PAIRS for real in shown["vips"][vip]["reals"]) >= 120


@pytest.mark.parametrize("address", ["198.51.100.1", "2001:db8::1"])
def test_ping(balanced: Balanced, address: str) -> None:
    text = (
        "import socket; open('/proc/sys/net/ipv4/ping_group_range', 'w').write('0 0')\n"
        f"six = ':' in {address!r}\n"
        "family, protocol = (socket.AF_INET6, 58) if six else (socket.AF_INET, 1)\n"
        "s = socket.socket(family, socket.SOCK_DGRAM, protocol); s.settimeout(5)\n"
        f"s.connect(({address!r}, 0)); s.send(bytes([128 if six else 8]) + bytes(7) + b'hello')\n"
        "print(s.recv(100)[8:].decode())"
    )
    assert balanced.net.python("client", text).strip() == "hello"


def test_a_thousand_connections_survive_every_change(balanced: Balanced, peer: Peer) -> None:
    hosts = [each[0] for each in PAIRS.values()]
    balanced.apply(tree((100, 100)))
    assert peer.ask("open", 1000, *hosts)["held"] == 1000
    assert peer.ask("udp", 100, *(each[0] for each in UDP.values()))["held"] == 1100
    everything = {"answered": 1100}
    assert peer.ask("ping") == everything
    steps = [
        (100, 100, 100),
        (-100, 100, 100),
        (100, 30, 100),
        (100, 100, -100),
        (1, 100, 50),
        (-100, 100, -100),
    ]
    for weights in steps:
        peer.say("surge", 120, *hosts)
        balanced.apply(tree(weights))
        assert peer.hear() == {"ok": 120, "failed": 0}
        assert peer.ask("ping") == everything
    time.sleep(2.5)  # UDP flows have been learned; unknown ones are new from now on
    assert peer.ask("ping") == everything
    gone = peer.ask("close", "real1")["closed"]
    assert gone > 100
    only = tree((100, 100, 100))
    for name in PAIRS:
        only["vips"][name]["reals"] = only["vips"][name]["reals"][1:]
    balanced.apply(only)
    assert peer.ask("ping") == {"answered": 1100 - gone}


APPLY_FOREVER = """
import random, sys, yaml
from collector import xdp
from collector.balancer import model
from collector.balancer.state import State
from schemas import config
tree = yaml.safe_load(open(sys.argv[1]))
while True:
    for vip in tree["vips"].values():
        for real in vip["reals"]:
            real["weight"] = random.randrange(1, 200)
    with State.open(config.load(sys.argv[2]), xdp.PINS / sys.argv[3]) as state:
        state.apply(model.parse(tree))
"""


def test_the_controlling_process_may_be_killed_at_any_moment(balanced: Balanced, peer: Peer) -> None:
    hosts = [each[0] for each in PAIRS.values()]
    assert peer.ask("open", 600, *hosts)["held"] == 600
    assert peer.ask("ping") == {"answered": 600}
    words = [str(balanced.folder / "lb.yaml"), str(balanced.config), balanced.instance]
    for _ in range(6):
        controller = balanced.net.start("balancer", sys.executable, "-c", APPLY_FOREVER, *words)
        peer.say("surge", 60, *hosts)
        time.sleep(0.7 + random.random() * 0.7)
        controller.kill()
        controller.wait()
        assert peer.hear() == {"ok": 60, "failed": 0}
        assert peer.ask("ping") == {"answered": 600}
    before = json.loads(balanced.lb("show", "--json"))
    changes = balanced.net.run(
        "balancer", *balanced.command("diff", str(balanced.folder / "lb.yaml")), check=False
    )
    assert "~ real 10.9.0.11 of vip 4in4: weight" in changes
    after = json.loads(balanced.lb("show", "--json"))
    for name in PAIRS:
        assert [each["slots"] for each in before["vips"][name]["reals"]] == [
            each["slots"] for each in after["vips"][name]["reals"]
        ]
    assert peer.ask("ping") == {"answered": 600}


def test_explain_tells_where_packets_go(balanced: Balanced) -> None:
    said = balanced.lb("explain", "tcp 10.9.0.1:40000 -> 198.51.100.1:7000")
    text = (
        "import socket\n"
        "s = socket.create_connection(('198.51.100.1', 7000), source_address=('10.9.0.1', 40000))\n"
        "s.sendall(b'x\\n'); print(s.makefile().readline().strip())"
    )
    owner = balanced.net.python("client", text).strip()
    assert f"10.9.0.1{owner[-1]}" in said
    assert "4in4" in said
