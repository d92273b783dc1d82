"""The rule language: what is taken, what is refused and with which words."""

import pytest
from msgspec import ValidationError, convert

from collector.filter.decision import Graph
from collector.filter.language import Document, Rule, Scope, action, check
from collector.filter.symbolic import decide
from schemas.errors import UsageError
from schemas.filter import Limit
from schemas.filter_expression import compile_expression


def test_extensions_become_flags() -> None:
    expression = compile_expression("udp and src in @bots and not dst in @ours and state new")
    assert expression.flags == (("source", "bots"), ("destination", "ours"), ("established", ""))
    assert expression.sets() == {"bots", "ours"}


def test_in_without_direction_means_either() -> None:
    assert compile_expression("in @x").flags == (("source", "x"), ("destination", "x"))


@pytest.mark.parametrize("before", ["pppoes and", "mpls 7 or", "geneve 1 and", "vlan and pppoes 3 and"])
def test_what_shifts_offsets_shifts_no_flags(before: str) -> None:
    graph = Graph()
    expression = compile_expression(f"{before} ip and src in @x and not dst in @y")
    flags = [graph.flag(*each) for each in expression.flags]
    tested = graph.tested(decide(graph, expression.instructions, flags))
    asked = frozenset().union(*(graph.leaves[each] for each in tested))
    assert set(flags) <= asked
    assert not any(graph.values[each][0] == "constant" and graph.values[each][1] >> 28 == 4 for each in asked)


def test_one_flag_for_the_same_question() -> None:
    assert len(compile_expression("src in @x and tcp or src in @x and udp").flags) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("udp and and", "syntax error"),
        ("port 53 and frobnicate", "unknown"),
        ("not (geneve 1 or decnet)", "never wrote"),
        ("host www.example.com", "no address"),
        ("src host router", "no address"),
        ("udp and @bots", "in @name"),
        ("state related", "`new` or `established`"),
        ("ip6 protochain 6", "protochain"),
        ("ip and ip6", "rejects all packets"),
        ("tcp[", "syntax error"),
        ("udp or " * 2000 + "udp", "characters"),
        ("inbound", "not supported"),
        ("\0", "NUL"),
    ],
)
def test_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        check(Rule("r", ttl="1m", match=text), ["bots"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [
    "", "host 192.0.2.1", "ip6 host fe80::1", "src net 10.0.0.0/8", "ether host 02:00:00:00:00:01",
    "src host 10.0.0.1 or dst port 80", "net 2001:db8::/32", "host abcd::1",
])  # fmt: skip
def test_addresses_are_no_names(text: str) -> None:
    compile_expression(text)


def test_unknown_set_is_refused() -> None:
    with pytest.raises(UsageError, match="no address set @bots"):
        check(Rule("r", ttl="1m", match="src in @bots"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("15m", 900), ("2h", 7200), ("7d", 604_800), ("45", 45)]
)
def test_time_to_live(text: str, seconds: int) -> None:
    assert Rule("r", ttl=text).seconds == seconds


@pytest.mark.parametrize("text", ["", "0", "forever", "-1s", "91d", "1w"])
def test_time_to_live_is_mandatory_and_bounded(text: str) -> None:
    with pytest.raises(UsageError, match="ttl"):
        _ = Rule("r", ttl=text).seconds


def test_actions() -> None:
    assert action(Rule("r", ttl="1m", action="drop")) == ("drop", None)
    limited = Rule("r", ttl="1m", action="limit 100 pps per source /24")
    assert action(limited) == ("limit", Limit(100, 24))
    for wrong in (
        "reject",
        "limit 0 pps per source /32",
        "limit 5 pps per source /8",
        "limit 5 per source /32",
    ):
        with pytest.raises(UsageError):
            action(Rule("r", ttl="1m", action=wrong))


def test_scope() -> None:
    scope = Scope({"site": "fra"}, ["eth0"])
    assert scope.covers({"site": "fra", "rack": "7"}, "eth0")
    assert not scope.covers({"site": "ams"}, "eth0")
    assert not scope.covers({"site": "fra"}, "eth1")
    assert Scope().covers({}, "lo")


def test_a_document_is_checked_as_a_whole() -> None:
    tree = {
        "rules": [{"id": "a", "ttl": "1m", "match": "udp", "mode": "shadow"}],
        "sets": {"x": ["10.0.0.0/8"]},
    }
    assert convert(tree, Document).rules[0].mode == "shadow"
    for wrong in ({"rule": []}, {"rules": [{"id": "A b", "ttl": "1m"}]},
                  {"rules": [{"id": "a", "ttl": "1m", "mode": "on"}]}):  # fmt: skip
        with pytest.raises(ValidationError):
            convert(wrong, Document)
