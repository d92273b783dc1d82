"""Ways to reals: behind a router, by another interface, many at once; reals that cannot be reached."""

import ast
import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from lb_balanced import DECAPSULATE, Balanced, Peer, running, tree
from lb_net import NO_OFFLOAD, ip

VIP, FAR, ROUTED = "198.51.100.5", "10.8.0.2", "10.8.9.9"


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balanced]:
    with running(tmp_path_factory.mktemp("lb")) as made:
        yield made


def web(*reals: str, **more: Any) -> dict[str, Any]:
    made = tree()
    vip = {"address": VIP, "port": 0, "reals": [{"address": each} for each in reals]}
    return {**made, "vips": {"web": vip | more}}


def owners(balanced: Balanced, count: int = 40) -> set[str]:
    peer = Peer(balanced.net)
    try:
        peer.ask("open", count, VIP)
        assert peer.ask("ping") == {"answered": count}
        return {name for name in peer.ask("held") if name.startswith("real")}
    finally:
        peer.process.kill()
        peer.process.wait()


def test_a_real_behind_a_router(balanced: Balanced) -> None:
    """The frame goes to the router's address; real2 stands for it and for what is behind."""
    name = balanced.net.name("balancer")
    ip("-n", name, "route", "add", f"{ROUTED}/32", "via", "10.9.0.12")
    balanced.apply(web(ROUTED))
    assert owners(balanced) == {"real2"}


def test_a_route_by_another_router_is_another_way(balanced: Balanced) -> None:
    """Though the former router is still there, and known."""
    name = balanced.net.name("balancer")
    asks = f"from collector.balancer.next_hop import in_force; print(in_force(['{ROUTED}', '10.9.0.77']))"

    def said() -> dict[str, tuple[int, bytes]]:
        found: dict[str, tuple[int, bytes]] = ast.literal_eval(balanced.net.python("balancer", asks))
        return found

    for router, other in (("10.9.0.12", "02:00:00:00:00:12"), ("10.9.0.13", "02:00:00:00:00:13")):
        ip("-n", name, "neigh", "replace", router, "lladdr", other, "dev", "eth0", "nud", "permanent")
        ip("-n", name, "route", "replace", f"{ROUTED}/32", "via", router)
        assert {each: mac.hex(":") for each, (_, mac) in said().items()} == {ROUTED: other}
    for router in ("10.9.0.12", "10.9.0.13"):
        ip("-n", name, "neigh", "del", router, "dev", "eth0")
    ip("-n", name, "route", "replace", f"{ROUTED}/32", "via", "10.9.0.12")


def test_a_real_by_another_interface(balanced: Balanced) -> None:
    """real3 is on a link of its own with the balancer: packets come in by eth0 and leave by eth1."""
    net = balanced.net
    ends = ("netns", net.name("balancer"), "type", "veth", "peer", "name", "eth1", "netns", net.name("real3"))
    ip("link", "add", "eth1", *ends)
    for who, address in (("balancer", "10.8.0.1/24"), ("real3", f"{FAR}/24")):
        ip("-n", net.name(who), "addr", "add", address, "dev", "eth1")
        ip("-n", net.name(who), "link", "set", "eth1", "up")
        net.python(who, NO_OFFLOAD.replace("eth0", "eth1"))
    place = f"test-{net.prefix}-real3"
    net.python("real3", DECAPSULATE.format(place).replace("'eth0'", "'eth1'"))
    balanced.apply(web(FAR))
    assert owners(balanced) == {"real3"}
    balanced.apply(web(FAR, "10.9.0.11", encapsulation="gue"))
    assert owners(balanced) == {"real1", "real3"}


def test_who_cannot_be_reached_is_refused_and_the_rest_stays(balanced: Balanced) -> None:
    balanced.apply(web("10.9.0.11"))
    file = balanced.folder / "lb.yaml"
    for address, reason in (
        ("10.9.0.200", "10.9.0.200 on eth0 does not answer, the way to real 10.9.0.200; set next_hop"),
        ("192.0.2.1", "no route to real 192.0.2.1; add one or set next_hop"),
    ):
        file.write_text(json.dumps(web("10.9.0.11", address)))
        command = balanced.net.inside("balancer", *balanced.command("apply", str(file)))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.strip()) == (1, f"bpfleet: {reason}")
        reals = json.loads(balanced.lb("show", "--json"))["vips"]["web"]["reals"]
        assert [(each["address"], each["slots"]) for each in reals] == [("10.9.0.11", 65537)]
    assert owners(balanced) == {"real1"}


def test_a_change_among_five_hundred_reals_is_soon_made(balanced: Balanced) -> None:
    """All of them behind one router; one question for all ways, one for all neighbours."""
    ip("-n", balanced.net.name("balancer"), "route", "add", "10.7.0.0/16", "via", "10.9.0.12")
    addresses = [f"10.7.{number >> 8}.{number & 255}" for number in range(1, 501)]
    wanted = {**web(*addresses), "limits": None}
    del wanted["limits"]
    balanced.lb("remove", "--yes")
    balanced.apply(wanted)
    begun = time.monotonic()
    balanced.lb("real", "set", "web", addresses[7], "weight=10")
    assert time.monotonic() - begun < 6  # a process, 500 ways, a ring; on a busy machine
    assert owners(balanced) == {"real2"}


def test_a_neighbour_with_a_new_address_is_found_again(balanced: Balanced) -> None:
    """Another machine takes over the router's address: the next change asks the kernel anew."""
    balanced.apply({**web(ROUTED), "limits": {}})
    name = balanced.net.name("real2")
    ip("-n", name, "link", "set", "eth0", "address", "02:00:00:00:12:34")
    ip("-n", balanced.net.name("balancer"), "neigh", "flush", "all")
    balanced.apply({**web(ROUTED, encapsulation="gue"), "limits": {}})
    assert owners(balanced) == {"real2"}
