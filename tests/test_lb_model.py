"""Configurations: what is refused, whole, with the reason; small changes; the table of VIPs; the command."""

import ipaddress
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from balancing import bench, vip
from click.testing import CliRunner

from collector import xdp
from collector.balancer import command, layout, vip_table
from schemas import config as settings
from schemas import lb as model
from schemas import lb_edit as edit
from schemas.errors import BpfleetError, UsageError

GOOD = vip("198.51.100.1", 80, "10.0.0.1", "10.0.0.2")


def one(**change: Any) -> dict[str, Any]:
    return {"vips": {"web": {**GOOD, **change}}}


def two(**other: Any) -> dict[str, Any]:
    return {"vips": {"web": GOOD, "other": {**GOOD, **other}}}


REFUSED = [
    ("an unknown setting", {"vip": {}}, "unknown field `vip`; did you mean `vips`"),
    ("an unknown setting of a VIP", one(ports=[80]), "VIP web: .*`ports`; did you mean `port`"),
    ("an unknown setting of a real", one(reals=[{"address": "10.0.0.1", "wieght": 1}]), "mean `weight`"),
    ("an unknown setting of a check", one(check={"interval": 1}), "did you mean `interval_seconds`"),
    ("IPv4 in IPv6", one(address="::ffff:198.51.100.1"), "write them as IPv4"),
    ("a real that is IPv4 in IPv6", one(reals=[{"address": "::ffff:10.0.0.1"}]), "write it as IPv4"),
    ("everything", one(address="0.0.0.0/0"), "cannot be served"),
    ("loopback in a prefix", one(address="126.0.0.0/7"), "cannot be served"),
    ("broadcast", one(address="255.255.255.255"), "cannot be served"),
    ("a link-local real", one(reals=[{"address": "fe80::1"}]), "cannot be reached"),
    ("an outer source of many", {"source_ipv4": "224.0.0.0/8"}, "nobody may send from"),
    ("no interface", {"interfaces": ["../eth0"]}, "no name of an interface"),
    ("an interface twice", {"interfaces": ["eth0", "eth0"]}, "twice"),
    ("a next hop of many", {"next_hop": "01:00:5e:00:00:01"}, "one station"),
    ("a path with a line break", one(check={"kind": "http", "path": "/\r\nX: y"}), "printable"),
    ("a source route twice", one(source_routes={"10.0.0.0/8": "10.0.0.1", "10.0.0.0/255.0.0.0": "10.0.0.1"}),
     "twice"),
    ("too many source routes", one(source_routes={f"10.{n >> 8}.{n & 255}.0/25": "10.0.0.1"
                                                  for n in range(32_769)}), "32768 fit"),
    ("a table of flows beyond memory", {"limits": {"flows": 1 << 40}}, "67108864"),
    ("no address", one(address="web.example"), "web.example"),
    ("host bits", one(address="198.51.100.1/24"), "host bits"),
    ("multicast", one(address="224.0.0.1"), "unicast"),
    ("a port too high", one(port=65536), "65535"),
    ("another protocol", one(protocol="sctp"), "sctp"),
    ("no reals", one(reals=[]), "no real with a weight"),
    ("zero weights only", one(reals=[{"address": "10.0.0.1", "weight": 0}]), "no real with a weight"),
    ("drained reals only", one(reals=[{"address": "10.0.0.1", "drain": True}]), "no real with a weight"),
    ("a negative weight", one(reals=[{"address": "10.0.0.1", "weight": -1}]), ">= 0"),
    ("a real twice", one(reals=[{"address": "10.0.0.1"}, {"address": "10.0.0.1"}]), "twice"),
    ("a real that is the VIP", one(reals=[{"address": "198.51.100.1"}]), "the VIP itself"),
    ("a loopback real", one(reals=[{"address": "127.0.0.1"}]), "cannot be reached"),
    ("a wrong link address", one(reals=[{"address": "10.0.0.1", "mac": "xx"}]), "mac"),
    ("sample 3", one(sample=3), "power of two"),
    ("a route to no real", one(source_routes={"192.0.2.0/24": "10.0.0.9"}), "none of its reals"),
    ("a route of another family", one(source_routes={"2001:db8::/32": "10.0.0.1"}), "family"),
    ("a QUIC id with TCP", one(quic_id_bytes=1, reals=[{"address": "10.0.0.1", "quic_id": "aa"}]), "udp"),
    (
        "a QUIC id too long",
        one(protocol="udp", quic_id_bytes=1, reals=[{"address": "10.0.0.1", "quic_id": "aabb"}]),
        "quic_id_bytes",
    ),
    ("the same VIP twice", two(), "overlap"),
    ("any port beside one", two(port=0), "overlap"),
    ("a prefix around it", two(address="198.51.100.0/24"), "overlap"),
    ("nested prefixes", {"vips": {"a": {**GOOD, "address": "203.0.113.0/24"},
                                  "b": {**GOOD, "address": "203.0.113.0/28", "port": 81}}}, "nest"),
    ("too many VIPs", {**two(port=81), "limits": {"vips": 1}}, "limits.vips"),
    ("too many reals", {**one(), "limits": {"backends": 1}}, "limits.backends"),
    ("an outer source of the other family", {"source_ipv4": "fd00::/96"}, "not an IPv4 prefix"),
    ("a tiny MTU", {"mtu": 100}, "1400"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "tree", "reason"), REFUSED, ids=[each[0] for each in REFUSED])
def test_refused_with_the_reason(what: str, tree: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        model.parse(tree)
    assert "\n" not in str(caught.value)


FILES = [
    ("empty", "", "is empty; `bpfleet lb remove`"),
    (
        "a VIP twice",
        "vips:\n  a: {port: 1}\n  b: {port: 1}\n  a: {port: 2}\n",
        "`a` is there twice, .* line 4",
    ),
    ("an octal port", yaml.safe_dump(one()).replace("port: 80", "port: 0443"), "VIP web: Expected `int`"),
    ("no YAML", "vips: [", "not valid YAML"),
    ("a list", "- a", "Expected `object`"),
    ("too deep", "[" * 1000, "nested too deeply"),
    ("a bomb", "a: &a [x, x]\nb: &b [*a, *a]\nvips: *b\n", "unknown field `a`"),
]


@pytest.mark.parametrize(("what", "text", "reason"), FILES, ids=[each[0] for each in FILES])
def test_a_file_refused_with_the_reason(what: str, text: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "lb.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=reason):
        model.load(file)


def test_a_link_address_needs_no_quotes(tmp_path: Path) -> None:
    (tmp_path / "lb.yaml").write_text("next_hop: 52:54:00:12:34:56\n")
    assert model.load(tmp_path / "lb.yaml").next_hop == "52:54:00:12:34:56"


@pytest.mark.parametrize("other", [{"port": 81}, {"protocol": "udp"}, {"address": "198.51.100.2"}])
def test_neighbours_are_accepted(other: dict[str, Any]) -> None:
    balancer = model.parse(two(**other))
    assert model.parse(model.dump(balancer)) == balancer


def test_a_prefix_beside_a_single_address_of_another_port() -> None:
    model.parse(two(address="198.51.100.0/24", port=81))


def test_small_changes() -> None:
    balancer = model.parse(one())
    added = edit.set_real(balancer, "web", "10.0.0.3", {"weight": 7}, new=True)
    assert [real.weight for real in added.vips["web"].reals] == [100, 100, 7]
    drained = edit.set_real(added, "web", "10.0.0.3", {"drain": True}, new=False)
    assert drained.vips["web"].reals[2].wanted == 0
    assert edit.remove_real(drained, "web", "10.0.0.3") == balancer
    assert edit.remove_vip(balancer, "web").vips == {}
    for change, reason in (
        (lambda: edit.remove_vip(balancer, "wbe"), "no VIP wbe; there are: web"),
        (lambda: edit.remove_real(balancer, "web", "10.9.9.9"), "no real 10.9.9.9"),
        (lambda: edit.set_real(balancer, "web", "10.0.0.1", {}, new=True), "already a real"),
        (lambda: edit.set_vip(balancer, "web", {}, new=True), "already a VIP"),
        (
            lambda: edit.remove_real(edit.remove_real(balancer, "web", "10.0.0.1"), "web", "10.0.0.2"),
            "no real with",
        ),
    ):
        with pytest.raises(UsageError, match=reason):
            change()


def test_the_table_of_vips_holds_every_key_in_one_of_its_places() -> None:
    addresses = [
        vip_table.address_of(ipaddress.ip_network(f"10.{at >> 8}.{at & 255}.1")) for at in range(2000)
    ]
    keys = [vip_table.key(each, port, 6) for each in addresses for port in (80, 443)]
    table = vip_table.build({key: key + bytes(layout.VIP.itemsize - len(key)) for key in keys})
    for key in keys:
        assert any(table[place].tobytes()[: len(key)] == key for place in vip_table.places(key))
    assert int((table[:, 19] == 1).sum()) == len(keys)


def test_too_many_keys_are_refused() -> None:
    keys = [vip_table.key(at.to_bytes(16, "big"), 80, 6) for at in range(vip_table.MAX_KEYS + 1)]
    with pytest.raises(BpfleetError, match="fit"):
        vip_table.build({key: key + bytes(layout.VIP.itemsize - len(key)) for key in keys})


def test_a_refusal_leaves_everything_as_it_was(tmp_path: Path) -> None:
    with bench(tmp_path) as made:
        made.apply({"web": GOOD})
        before = made.state.plane.read_vips().tobytes()
        with pytest.raises(BpfleetError, match="overlap"):
            made.apply({"web": GOOD, "other": GOOD})
        with pytest.raises(BpfleetError, match="there is no interface nosuch0"):
            made.apply({"web": GOOD, "more": vip("198.51.100.9", 80, "10.0.0.1")}, interfaces=["nosuch0"])
        assert made.state.plane.read_vips().tobytes() == before
        assert list(made.state.applied.vips) == ["web"]


class Operator:
    """`bpfleet lb` in this process, on a balancer of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.instance = f"test-{uuid.uuid4().hex[:8]}"
        self.config = settings.Config(state_dir=str(folder))
        self.config.collector.lb_pins = self.instance

    def lb(self, *words: str, code: int = 0) -> str:
        group = getattr(command, words[0], None) if words[0] in ("show", "explain", "remove") else None
        done = CliRunner().invoke(group or command.local, words[1:] if group else words, obj=self.config)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == code, done.output
        return done.output

    def file(self, tree: dict[str, Any]) -> str:
        limits = {"vips": 15, "backends": 63, "flows": 1024}
        path = self.folder / "lb.yaml"
        path.write_text(yaml.safe_dump({"next_hop": "02:00:00:00:00:99", "limits": limits, **tree}))
        return str(path)


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    made = Operator(tmp_path)
    yield made
    if (xdp.PINS / made.instance).exists():
        made.lb("remove", "--yes")
    assert not (xdp.PINS / made.instance).exists()


def test_the_command(operator: Operator) -> None:
    with pytest.raises(BpfleetError, match="no balancer runs on this host"):
        operator.lb("show")
    assert operator.lb("apply", operator.file(one())).startswith("+ vip web\n")
    assert operator.lb("diff", operator.file(one())) == ""
    assert operator.lb("diff", operator.file(two(port=81)), code=1) == "+ vip other\n"
    assert operator.lb("apply", operator.file(one())) == "nothing to change\n"
    assert "+ real 10.0.0.3 of vip web" in operator.lb("real", "add", "web", "10.0.0.3", "weight=50")
    assert "weight 50 -> 60" in operator.lb("real", "set", "web", "10.0.0.3", "weight=60")
    assert "drain False -> True" in operator.lb("real", "drain", "web", "10.0.0.1")
    shown = operator.lb("show")
    assert "drains" in shown
    assert "former" in shown
    assert "- real 10.0.0.3 of vip web" in operator.lb("real", "rm", "web", "10.0.0.3")
    added = operator.lb(
        "vip", "add", "dns", "address=198.51.100.1", "port=53", "protocol=udp", "--real", "10.0.0.7"
    )
    assert added == "+ vip dns\n"
    assert "sample 0 -> 64" in operator.lb("vip", "set", "dns", "sample=64")
    assert "10.0.0.7" in operator.lb("explain", "udp 192.0.2.7:4711 -> 198.51.100.1:53")
    assert operator.lb("vip", "rm", "dns") == "- vip dns\n"
    assert "no VIP has" in operator.lb("explain", "udp 192.0.2.7:4711 -> 198.51.100.1:53")
    with pytest.raises(UsageError, match="not a flow"):
        operator.lb("explain", "192.0.2.7")
    with pytest.raises(UsageError, match="write it like weight=50"):
        operator.lb("real", "set", "web", "10.0.0.1", "weight")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*none\.yaml: No such file"):
        model.load(tmp_path / "none.yaml")
