"""The balancer in a small network, driven by the command line, and the client that tries it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
CLEAR = """
from collector import xdp_chain
place = xdp_chain.place_of("eth0")
for pin in place.glob("*"):
    pin.unlink()
if place.exists():
    place.rmdir()
"""


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
        self.servers: dict[int, subprocess.Popen[bytes]] = {}
        self.config = folder / "bpfleet.yaml"
        tree = {"state_dir": str(folder / "state"), "collector": {"lb_pins": self.instance}}
        self.config.write_text(yaml.safe_dump(tree))

    def command(self, *words: str) -> list[str]:
        main = "from fleet.cli import main; main()"
        changing = ["local"] if words[0] in ("apply", "diff", "vip", "real") else []
        return [sys.executable, "-c", main, "--config", str(self.config), "lb", *changing, *words]

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
            "udp_idle_seconds": 6,
            "reals": [
                {"address": real, "weight": abs(weight), "drain": weight < 0}
                for real, weight in zip(reals, weights, strict=False)
            ],
        }
    limits = {"vips": 15, "backends": 127, "flows": 65_536}
    return {"interfaces": ["eth0"], "mode": "native", "limits": limits, "vips": vips, **change}


def serve(net: Network, number: int) -> "subprocess.Popen[bytes]":
    """The server of a real, ready."""
    server = net.start(
        f"real{number}", sys.executable, PEER, "server", f"real{number}", stdout=subprocess.PIPE
    )
    assert server.stdout
    assert server.stdout.readline() == b"ready\n"
    return server


@contextmanager
def running(folder: Path, *, apply: bool = True) -> Iterator[Balanced]:
    """Everything up: servers on the reals, the balancer applied (unless not); all gone afterwards."""
    with network() as net:
        made = Balanced(net, folder)
        places = [f"test-{net.prefix}-real{number}" for number in (1, 2, 3)]
        try:
            for number, place in enumerate(places, 1):
                net.python(f"real{number}", DECAPSULATE.format(place))
                made.servers[number] = serve(net, number)
            if apply:
                made.apply(tree())
            yield made
        finally:
            for place in [*places, made.instance]:
                for pin in sorted((xdp.PINS / place).glob("*")):
                    pin.unlink()
                for folder_of_pins in (xdp.PINS / place, xdp.PINS / xdp.OWNERS / place):
                    if folder_of_pins.exists():
                        folder_of_pins.rmdir()
            for who in ("balancer", "real1", "real2", "real3"):
                net.python(who, CLEAR)
