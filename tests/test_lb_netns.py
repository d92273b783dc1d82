"""The balancer on real packets: client, balancer and three reals in namespaces, XDP on veth."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from lb_balanced import PAIRS, UDP, Balanced, Peer, running, tree


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balanced]:
    with running(tmp_path_factory.mktemp("lb")) as made:
        yield made


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
    time.sleep(6.5)  # UDP flows have been learned; unknown ones are new from now on
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
from schemas import lb as model
from collector.balancer.state import State
from schemas import config
tree = yaml.safe_load(open(sys.argv[1]))
while True:
    for vip in tree["vips"].values():
        for real in vip["reals"]:
            real["weight"] = random.randrange(1, 200)
    with State.open(config.load(sys.argv[2]), xdp.PINS / sys.argv[3]) as state:
        state.apply(model.parse(tree))
    print("once", flush=True)
"""


def test_the_controlling_process_may_be_killed_at_any_moment(balanced: Balanced, peer: Peer) -> None:
    hosts = [each[0] for each in PAIRS.values()]
    assert peer.ask("open", 600, *hosts)["held"] == 600
    assert peer.ask("ping") == {"answered": 600}
    words = [str(balanced.folder / "lb.yaml"), str(balanced.config), balanced.instance]
    for _ in range(6):
        controller = balanced.net.start(
            "balancer", sys.executable, "-c", APPLY_FOREVER, *words, stdout=subprocess.PIPE
        )
        peer.say("surge", 60, *hosts)
        assert controller.stdout.readline() == b"once\n"
        time.sleep(random.random() * 0.7)
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
    said = balanced.lb("explain", "tcp 10.9.0.1:20123 -> 198.51.100.1:7000")
    text = (
        "import socket\n"
        "s = socket.create_connection(('198.51.100.1', 7000), source_address=('10.9.0.1', 20123))\n"
        "s.sendall(b'x\\n'); print(s.makefile().readline().strip())"
    )
    owner = balanced.net.python("client", text).strip()
    assert f"10.9.0.1{owner[-1]}" in said
    assert "4in4" in said
