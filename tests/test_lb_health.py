"""Health checks through the tunnel: a dead real leaves the ring within its fall time and comes back."""

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from lb_balanced import PAIRS, Balanced, Peer, running, serve, tree

from collector.balancer.health import Target
from schemas.lb import parse

CHECK = {"port": 7000, "interval_seconds": 0.2, "timeout_seconds": 0.5, "rise": 2, "fall": 2}


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balanced]:
    with running(tmp_path_factory.mktemp("lb")) as made:
        name = made.net.name("balancer")
        for family, gateway in (("-4", "10.9.0.1"), ("-6", "fd09::1")):
            command = ["ip", "-n", name, family, "route", "add", "default", "via", gateway]
            subprocess.run(command, check=True)
        yield made


def checked() -> dict[str, Any]:
    """Every TCP VIP checked, half by HTTP."""
    made = tree()
    for at, name in enumerate(PAIRS):
        made["vips"][name]["check"] = {**CHECK, "kind": "http", "path": "/5", "port": 80} if at % 2 else CHECK
    return made


def transitions(watch: "subprocess.Popen[bytes]", count: int) -> list[dict[str, Any]]:
    assert watch.stdout
    return [json.loads(watch.stdout.readline()) for _ in range(count)]


def shares(balanced: Balanced) -> dict[str, list[bool]]:
    shown = json.loads(balanced.lb("show", "--json"))["vips"]
    return {name: [real["slots"] > 0 for real in shown[name]["reals"]] for name in PAIRS}


def test_a_dead_real_leaves_the_ring_and_returns(balanced: Balanced) -> None:
    balanced.apply(checked())
    hosts = [each[0] for each in PAIRS.values()]
    watch = balanced.net.start("balancer", *balanced.command("watch"), stdout=subprocess.PIPE)
    peer = Peer(balanced.net)
    try:
        peer.ask("open", 300, *hosts)
        time.sleep(2.5)
        assert shares(balanced) == {name: [True, True, True] for name in PAIRS}
        balanced.servers[3].kill()
        balanced.servers[3].wait()
        begun = time.monotonic()
        down = transitions(watch, len(PAIRS))
        assert time.monotonic() - begun < 8  # fall time 0.4 to 1.2 s; twelve children share two cores
        assert {(each["vip"], each["real"][-1], each["up"]) for each in down} == {
            (name, "3", False) for name in PAIRS
        }
        assert all("refused" in each["reason"] for each in down)
        assert shares(balanced) == {name: [True, True, False] for name in PAIRS}
        assert peer.ask("surge", 150, *hosts) == {"ok": 150, "failed": 0}
        assert peer.ask("ping").get("moved", 0) == 0
        balanced.servers[3] = serve(balanced.net, 3)
        up = transitions(watch, len(PAIRS))
        assert all(each["up"] for each in up)
        assert shares(balanced) == {name: [True, True, True] for name in PAIRS}
        assert peer.ask("surge", 150, *hosts) == {"ok": 150, "failed": 0}
    finally:
        watch.kill()
        watch.wait()
        peer.process.kill()
        peer.process.wait()


def test_all_down_means_none_is_taken_out(balanced: Balanced) -> None:
    broken = checked()
    for name in PAIRS:
        broken["vips"][name]["check"] = {**CHECK, "kind": "http", "path": "/nonsense", "port": 80, "fall": 1}
    balanced.apply(broken)
    watch = balanced.net.start("balancer", *balanced.command("watch"), stdout=subprocess.PIPE)
    try:
        transitions(watch, 3 * len(PAIRS))
        assert shares(balanced) == {name: [True, True, True] for name in PAIRS}
    finally:
        watch.kill()
        watch.wait()


def test_rise_and_fall() -> None:
    vip = {
        "address": "198.51.100.1",
        "port": 80,
        "check": {"rise": 2, "fall": 3},
        "reals": [{"address": "10.0.0.1"}],
    }
    target = Target("web", parse({"vips": {"web": vip}}).vips["web"], "10.0.0.1", 1, up=True)
    results = ["", "no", "no", "", "no", "no", "no", "no", "", "no", "", "", ""]
    turned = [target.judge(each) for each in results]
    assert [at for at, each in enumerate(turned) if each] == [6, 11]
    assert target.up
