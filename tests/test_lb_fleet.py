"""The whole way: published over Kafka, applied by a collector, packets in network namespaces, events back."""

import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from collecting import wait_for
from lb_balanced import PAIRS, UDP, Peer, tree
from lb_fleet import Fleet, fleet

from sinks.kafka_server import KafkaServer

HOSTS = [each[0] for each in PAIRS.values()]


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


CHECK = {"port": 7000, "interval_seconds": 0.2, "timeout_seconds": 0.5, "rise": 2, "fall": 2}


@pytest.fixture(scope="module")
def balanced(kafka: KafkaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(kafka.servers, tmp_path_factory.mktemp("lb")) as made:
        yield made


@pytest.fixture
def peer(balanced: Fleet) -> Iterator[Peer]:
    one = Peer(balanced.net)
    yield one
    one.process.kill()
    one.process.wait()


def sampled(weights: tuple[int, ...] = (100, 100, 100)) -> dict[str, Any]:
    made = tree(weights)
    for vip in made["vips"].values():
        vip["sample"] = 4
        vip["udp_idle_seconds"] = 120  # a flow that is silent for longer may move: not on a busy machine
    return made


def test_a_thousand_connections_survive_changes_and_the_collectors_death(balanced: Fleet, peer: Peer) -> None:
    said = balanced.apply(sampled((100, 100)))
    assert "applied" in said
    assert peer.ask("open", 1000, *HOSTS)["held"] == 1000
    assert peer.ask("udp", 60, *(each[0] for each in UDP.values()))["held"] == 1060
    everything = {"answered": 1060}
    assert peer.ask("ping") == everything

    def change(*words: str, wait: bool = True) -> None:
        peer.say("surge", 120, *HOSTS)
        balanced.lb(*words, wait=wait)
        assert peer.hear() == {"ok": 120, "failed": 0}
        assert peer.ask("ping") == everything

    change("real", "add", "4in4", "10.9.0.13")
    change("real", "add", "6in6", "fd09::13")
    balanced.collector.kill()
    assert peer.ask("ping") == everything  # nobody is there, packets flow
    change("real", "drain", "4in4", "10.9.0.11", wait=False)
    balanced.start()
    wait_for(lambda: real(balanced, "4in4", "10.9.0.11")["drain"], 20, "the drain of before its start")
    assert peer.ask("ping") == everything
    peer.say("surge", 120, *HOSTS)
    balanced.apply(sampled((100, 30, 100)))
    balanced.collector.kill()
    balanced.start()
    assert peer.hear() == {"ok": 120, "failed": 0}
    assert peer.ask("ping") == everything
    gone = peer.ask("close", "real1")["closed"]
    assert gone > 100
    without = sampled((100, 100, 100))
    for name in PAIRS:
        without["vips"][name]["reals"] = without["vips"][name]["reals"][1:]
    balanced.apply(without)
    assert peer.ask("ping") == {"answered": 1060 - gone}


def real(balanced: Fleet, vip: str, address: str) -> dict[str, Any]:
    found: dict[str, Any] = next(
        each for each in balanced.shown()["vips"][vip]["reals"] if each["address"] == address
    )
    return found


def test_sums_of_events_are_the_kernels_counters(balanced: Fleet, peer: Peer) -> None:
    """Exactly; after the kills of the test before as well."""
    peer.ask("surge", 200, *HOSTS)

    def compared() -> bool:
        """Neighbours speak now and then: looked at again until nobody does in between."""
        sums, kernel = balanced.sums(), balanced.kernel()
        return {key: sums[key] for key in kernel} == dict(kernel)

    wait_for(compared, 20, "equal sums")
    kernel = balanced.kernel()
    assert sum(count for key, count in kernel.items() if key[3] == "packets") > 5000
    assert {"former", "not_vip"} <= {key[2] for key in kernel}
    found = balanced.rows("lb_stats")
    sums, last = balanced.sums(found), {(each["vip"], each["real"], each["reason"]): each for each in found}
    assert {key: sums[(*key, "packets")] for key in last} == {
        key: each["packets_total"] for key, each in last.items()
    }


def test_a_returning_collector_resets_nothing(balanced: Fleet) -> None:
    before, events = balanced.shown(), len(balanced.rows("lb_event"))
    balanced.collector.kill()
    balanced.start()
    applied = len(balanced.rows("applied"))
    wait_for(lambda: len(balanced.rows("applied")) >= applied, 20, "its answer")
    time.sleep(1)
    after = balanced.shown()
    for name, vip in before["vips"].items():
        same = ("address", "backend", "slots", "up")
        assert [[each[key] for key in same] for each in vip["reals"]] == [
            [each[key] for key in same] for each in after["vips"][name]["reals"]
        ]
    assert [each["event"] for each in balanced.rows("lb_event")[events:]] == []


def test_every_change_is_an_event(balanced: Fleet) -> None:
    states = {(each["real"], each["state"]) for each in balanced.events("ring") if each["vip"] == "4in4"}
    assert {("10.9.0.13", "added"), ("10.9.0.11", "drains"), ("10.9.0.12", "weight")} <= states
    assert {("10.9.0.11", "removed"), ("10.9.0.13", "share")} <= states
    last = {each["real"]: each["slots"] for each in balanced.events("ring") if each["vip"] == "4in4"}
    shown = {each["address"]: each["slots"] for each in balanced.shown()["vips"]["4in4"]["reals"]}
    assert {name: slots for name, slots in last.items() if slots} == shown
    reload = balanced.events("reload")[-1]
    assert (reload["state"], reload["document"]) == ("desired", balanced.host)
    assert "- real 10.9.0.11 of vip 4in4" in reload["reason"]


def test_sampled_flows_tell_where_packets_went(balanced: Fleet, peer: Peer) -> None:
    peer.ask("open", 40, PAIRS["4in4"][0])
    for _ in range(4):
        peer.ask("ping")
    found = wait_for(lambda: [each for each in balanced.rows("lb_flow") if each["vip"] == "4in4"], 10)
    assert {each["weight"] for each in found} == {4}
    assert {each["source_address"] for each in found} == {"10.9.0.1"}
    assert {each["destination_address"] for each in found} == {"198.51.100.1"}
    assert {each["real_address"] for each in found} <= {"10.9.0.11", "10.9.0.12", "10.9.0.13"}
    assert {each["reason"] for each in found} & {"ring", "table", "former"}


def test_what_cannot_be_is_refused_whole_and_the_rest_stays(balanced: Fleet) -> None:
    before = balanced.shown()["vips"]
    wrong = sampled()
    wrong["vips"]["twin"] = wrong["vips"]["4in4"]
    assert "overlap" in balanced.apply(wrong, code=2, wait=False)  # not even published
    for change, reason in (
        ({"interfaces": ["eth0", "nosuch0"]}, "there is no interface nosuch0"),
        ({"limits": {"vips": 9}}, "the maps were made for"),
    ):
        assert reason in " ".join(balanced.apply(sampled() | change, code=1).split())
        kept = balanced.shown()["vips"]
        assert {name: vip["reals"][0]["slots"] for name, vip in kept.items()} == {
            name: vip["reals"][0]["slots"] for name, vip in before.items()
        }
    refused = wait_for(lambda: balanced.events("refused"), 5)
    assert any("nosuch0" in each["reason"] and each["document"] == balanced.host for each in refused)
    assert "applied" in balanced.apply(sampled())


def test_a_dead_real_leaves_within_its_fall_time_and_a_surge_does_not_notice(
    balanced: Fleet, peer: Peer
) -> None:
    wanted = sampled()
    for name in ("4in4", "6in6", "4gue4"):
        wanted["vips"][name]["check"] = CHECK
    balanced.apply(wanted)
    hosts = [PAIRS[name][0] for name in ("4in4", "6in6", "4gue4")]
    peer.ask("open", 90, *hosts)
    time.sleep(1.5)  # the first checks
    balanced.servers_of(3).kill()
    begun = time.monotonic()
    down = wait_for(lambda: len(balanced.events("health")) >= 3 and balanced.events("health"), 10)
    assert time.monotonic() - begun < 6
    assert {(each["vip"], each["real"][-1], each["state"]) for each in down} == {
        (name, "3", "down") for name in ("4in4", "6in6", "4gue4")
    }
    # fall 2, every 0.2 s: the second failure is 0.2 s after the first; the machine is busy
    assert all(each["duration_us"] < 4_000_000 and "refused" in each["reason"] for each in down)
    for name in ("4in4", "6in6", "4gue4"):
        assert [each["slots"] > 0 for each in balanced.shown()["vips"][name]["reals"]] == [True, True, False]
    assert peer.ask("surge", 150, *hosts) == {"ok": 150, "failed": 0}
    balanced.serve(3)
    wait_for(lambda: len(balanced.events("health")) >= 6, 15, "it is back")
    assert [each["slots"] > 0 for each in balanced.shown()["vips"]["4in4"]["reals"]] == [True, True, True]


def test_a_neighbour_with_a_new_address_is_followed(balanced: Fleet, peer: Peer) -> None:
    """As when another router takes over: it says so, the kernel hears it, and the balancer looks there."""
    balanced.apply(sampled())
    fresh = "02:00:00:00:12:34"
    run("ip", "-n", balanced.net.name("real2"), "link", "set", "eth0", "address", fresh)
    for address in ("10.9.0.12", "fd09::12"):
        run("ip", "-n", balanced.net.name("balancer"), "neigh", "replace", address, "lladdr", fresh,
            "dev", "eth0", "nud", "reachable")  # fmt: skip
    tried: list[object] = []

    def arrives() -> bool:
        tried.append(peer.ask("surge", 60, *HOSTS))
        return tried[-1] == {"ok": 60, "failed": 0}

    try:
        wait_for(arrives, 30, "the new address")
    finally:
        print(tried, run("ip", "-n", balanced.net.name("balancer"), "neigh"), balanced.shown()["vips"])


def test_a_drain_has_an_end(balanced: Fleet) -> None:
    wanted = sampled((100, 100, -100))
    for vip in wanted["vips"].values():
        vip["idle_seconds"] = 1
    balanced.apply(wanted)
    ended = wait_for(lambda: balanced.events("drained"), 20, "the end of a drain")
    assert {each["real"][-1] for each in ended} == {"3"}


def test_a_command_of_the_host_does_not_undo_a_document(balanced: Fleet) -> None:
    said = balanced.on_host("lb", "local", "real", "rm", "4in4", "10.9.0.12", code=2)
    assert f"lb/{balanced.host} governs" in said


def test_the_last_document_takes_the_balancer_with_it(balanced: Fleet) -> None:
    balanced.operator("desired", "rm", f"lb/{balanced.host}", "--wait", "--timeout", "30")
    assert "no balancer runs on this host" in balanced.on_host("lb", "show", code=1)
    wait_for(lambda: balanced.events("removed"), 10)
