"""Documents of kind lb: what is not even published, how several become one, numbers that come back."""

import uuid
from pathlib import Path
from typing import Any

import pytest
from balancing import LIMITS, vip

from collector import xdp
from collector.balancer.desired import Balancers, for_host, merge
from collector.balancer.journal import LIMIT, Journal
from collector.balancer.ledger import Numbers
from schemas.config import Config
from schemas.desired import Document, Kind, Refused, Scope
from schemas.errors import UsageError
from schemas.lb import LB, parse

WEB = vip("198.51.100.1", 80, "10.0.0.1")


def document(spec: Any, **more: Any) -> Document:
    return Document(kind="lb", id="main", revision=1, created=1, spec=spec, **more)


def judged(kind: Kind, spec: Any) -> str:
    try:
        kind.judge(document(spec))
    except Refused as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("web", "is a mapping"),
        ({}, "no VIP"),
        ({"vips": {"a": WEB, "b": WEB}}, "overlap"),
        ({"vips": {"a": {**WEB, "reals": [{"address": "10.0.0.1", "weight": 0}]}}}, "weight"),
        ({"vips": {"a b": WEB}}, "no name for a VIP"),
        ({"vips": {"a": vip("198.51.100.1", 80, "fe80::1%eth0")}}, "names an interface"),
        ({"vips": {"a": WEB}}, ""),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_not_published(spec: Any, reason: str) -> None:
    said = judged(LB, spec)
    assert reason in said if reason else said == ""


def test_too_many_vips_are_refused_before_anything_changes() -> None:
    vips = {f"v{at}": vip(f"10.{at >> 8}.{at & 255}.1", 80, "192.0.2.1") for at in range(2049)}
    with pytest.raises(UsageError, match="4098 keys, 4096 fit"):
        parse({"vips": vips, "limits": {"vips": 4095}})
    vips.popitem()
    assert len(parse({"vips": vips, "limits": {"vips": 4095}}).vips) == 2048


def test_documents_are_put_together_and_must_agree() -> None:
    web = {"interfaces": ["eth0"], "vips": {"web": vip("198.51.100.1", 80, "10.0.0.1")}, "limits": LIMITS}
    dns = {"interfaces": ["eth0", "eth1"], "vips": {"dns": vip("198.51.100.2", 53, "10.0.0.1")}}
    whole = merge({"web": web, "dns": dns})
    assert (list(whole.vips), whole.interfaces) == (["web", "dns"], ["eth0", "eth1"])
    with pytest.raises(UsageError, match="VIP web is in two documents"):
        merge({"web": web, "again": web})
    with pytest.raises(UsageError, match="mtu differs"):
        merge({"web": web | {"mtu": 1500}, "dns": dns | {"mtu": 9000}})
    with pytest.raises(UsageError, match="overlap"):
        merge({"web": web, "twin": {"vips": {"twin": web["vips"]["web"]}}})


def test_scope_chooses_interfaces() -> None:
    spec = {"interfaces": ["eth0", "eth1"], "vips": {}}
    assert for_host(document(spec, scope=Scope(interfaces=("*1",))))["interfaces"] == ["eth1"]
    with pytest.raises(UsageError, match="leaves out every interface"):
        for_host(document(spec, scope=Scope(interfaces=("lo",))))


def test_who_comes_back_gets_his_number_and_nobody_else() -> None:
    numbers = Numbers()
    assert [numbers.give(name, 9, 0.0) for name in ("a", "b")] == [1, 2]
    numbers.take_back("a", 100.0)
    assert numbers.give("c", 9, 1.0) == 3
    assert (numbers.give("a", 9, 1.0), numbers.reused(Numbers(former={1: "a"}))) == (1, [])
    numbers.take_back("b", 100.0)
    before = Numbers(former=dict(numbers.former))
    numbers.top = 9
    assert (numbers.give("d", 9, 101.0), numbers.reused(before)) == (2, [2])


def test_the_journal_repeats_rather_than_loses_and_is_bounded(tmp_path: Path) -> None:
    writer, reader = Journal(tmp_path / "events"), Journal(tmp_path / "events")
    writer.add({"event": "ring"}, {"event": "health"})
    assert [each["event"] for each in Journal(tmp_path / "events").read()] == ["ring", "health"]  # was killed
    assert [each["event"] for each in reader.read()] == ["ring", "health"]
    writer.add({"event": "reload"})
    assert [each["event"] for each in reader.read()] == ["reload"]
    assert reader.read() == []
    for at in range(5):
        writer.add({"event": "ring", "reason": "x" * (1 << 20), "number": at})
    assert (tmp_path / "events").stat().st_size <= LIMIT
    assert reader.read()[-1]["number"] == 4


def test_pins_are_one_collectors() -> None:
    """By the same default name, in another network namespace or with another state directory."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    first, second = xdp.Claim(name), xdp.Claim(name)
    try:
        assert first.holds() and first.holds() and not second.holds()
        config = Config()
        config.collector.lb_pins = name
        said = Balancers(config, second).apply([document({"vips": {"web": WEB}})])["main"]
        assert said.state == "refused" and f"another collector has the pins {xdp.PINS / name}" in said.reason
        assert not (xdp.PINS / name).exists()
        first.close()
        assert second.holds()
    finally:
        first.close()
        second.close()
        (xdp.PINS / xdp.OWNERS / name).rmdir()
