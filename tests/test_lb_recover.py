"""A balancer that lost something beside its maps: the state file, pins, or what a command of its own left."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from balancing import CLIENT, HOP, OURS, Bench, bench, vip
from scapy.all import IP, TCP, Ether

from collector import xdp
from collector.balancer.state import State, take_down
from schemas import lb as model
from schemas.config import Config
from schemas.errors import BpfleetError

REALS = tuple(f"10.0.0.{number}" for number in range(1, 6))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("lb")) as made:
        yield made


@pytest.fixture
def lb(shared: Bench) -> Bench:
    shared.clear()
    return shared


def spread(lb: Bench) -> list[bytes]:
    """Where a hundred flows go."""
    raw = [
        bytes(
            Ether(dst=OURS, src=CLIENT)
            / IP(src="192.0.2.1", dst="198.51.100.1")
            / TCP(sport=port, dport=80, flags="A")
        )
        for port in range(1000, 1100)
    ]
    return [lb.run(each).data[30:34] for each in raw]


def web(*reals: str, **settings: Any) -> dict[str, Any]:
    return {"web": vip("198.51.100.1", 80, *reals, **settings)}


@pytest.mark.parametrize("damage", [None, b"", b'{"applied": 3', b'{"applied": {"vips": {"web": {}}}}'])
def test_a_lost_state_file_loses_no_number(lb: Bench, damage: bytes | None) -> None:
    lb.apply({"first": vip("198.51.100.9", 80, *REALS)})
    lb.apply(web(*REALS[1:]))  # numbers that a fresh ledger would not give
    before = spread(lb)
    lb.apply(web(*REALS))
    taken = lb.state.ledger.backends.taken
    lb.state.file.unlink()
    if damage is not None:
        lb.state.file.write_bytes(damage)
    lb.reopen()
    assert lb.state.ledger.backends.taken == taken
    assert any("state file was lost" in row["reason"] for row in lb.state.journal.read() if "reason" in row)
    lb.apply(web(*reversed(REALS)))
    assert spread(lb) == before


@pytest.mark.parametrize("pins", [["lb_backends"], ["lb_rings", "lb_vips"], ["lb_flow"], ["lb_*", "inner_*"]])
def test_pins_that_were_lost_are_made_again(lb: Bench, pins: list[str]) -> None:
    lb.apply(web(*REALS[1:]))
    lb.apply(web(*REALS))
    before, packets = spread(lb), lb.packets()
    for pattern in pins:
        for pin in lb.place.glob(pattern):
            pin.unlink()
    lb.reopen()
    assert lb.packets() == packets
    assert spread(lb) == before
    lb.apply(web(*reversed(REALS)))
    assert spread(lb) == before


def test_a_first_configuration_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    place, config = xdp.PINS / f"test-{tmp_path.name[-8:]}-first", Config(state_dir=str(tmp_path))
    tree = {"interfaces": ["nope0"], "next_hop": HOP, "limits": {"flows": 1000}, "vips": web(*REALS)}
    wanted = model.parse(tree)
    with pytest.raises(BpfleetError, match="nope0"), State.open(config, place, wanted.limits) as state:
        state.apply(wanted)
    assert not place.exists()


def test_what_cannot_be_read_can_be_taken_down(lb: Bench) -> None:
    lb.apply(web(*REALS))
    lb.state.__exit__(None, None, None)
    lb.state.file.write_text("?")
    (lb.place / "ledger").unlink()
    with pytest.raises(BpfleetError, match="starts afresh"):
        State.open(lb.config, lb.place)
    take_down(lb.config, lb.place)
    assert not lb.place.exists()
    lb.state = State.open(lb.config, lb.place, model.Limits(vips=31, backends=511, flows=4096))


def told(lb: Bench) -> set[tuple[str, str, int]]:
    """Of each ring that changed since it was asked last: the real, what became of it, its slots."""
    rows = lb.state.journal.read()
    return {(each["real"], each["state"], each["slots"]) for each in rows if each["event"] == "ring"}


def test_a_real_that_is_down_when_it_goes_is_told_of(lb: Bench) -> None:
    """It has no share to lose; yet who reads of it must not take it for down for ever."""
    lb.apply(web(*REALS[:3]))
    lb.state.set_down([f"web {REALS[0]}"])
    told(lb)
    lb.apply(web(*REALS[1:3]))
    assert told(lb) == {(REALS[0], "removed", 0)}
    lb.state.set_down([f"web {REALS[1]}"])
    told(lb)
    lb.apply({})
    assert told(lb) == {(REALS[1], "removed", 0), (REALS[2], "removed", 0)}
