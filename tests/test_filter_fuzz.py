"""Hostile input: whatever documents, expressions, fields and lists hold, the answer is one line."""

from ipaddress import IPv6Network, ip_address, ip_network

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.filter import sets, wanted
from collector.filter.language import Rule, check
from collector.filter.trial import trial
from schemas.desired import Document, Refused
from schemas.errors import UsageError
from schemas.filter import FILTER, RuleSpec
from schemas.filter_expression import Judge
from schemas.filter_fields import parse
from schemas.filter_prefixes import contains, networks

WORDS = st.sampled_from(
    [
        "udp",
        "tcp",
        "ip",
        "ip6",
        "src",
        "dst",
        "host",
        "port",
        "net",
        "in",
        "@a",
        "@b",
        "state",
        "new",
        "established",
        "and",
        "or",
        "not",
        "(",
        ")",
        "[",
        "]",
        "&",
        "|",
        "=",
        "!=",
        ">",
        "<",
        "len",
        "53",
        "10.0.0.1",
        "10.0.0.0/8",
        "2001:db8::",
        "udp[8:4]",
        "ip[0]",
        "0xffffffff",
        "vlan",
        "portrange",
        "1-2",
        ";",
        "'",
        '"',
        "\x00",
        "\n",
        "%",
        "$",
        "é",
        "@",
        ":",
        "/",
    ]
)
TEXTS = st.one_of(st.lists(WORDS, max_size=12).map(" ".join), st.text(max_size=40))
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS)
NAMES = st.sampled_from(
    ["rule", "match", "fields", "action", "mode", "sample", "order", "force", "set", "name", "prefixes",
     "allow", "watch", "samples", "origin", "protocol", "src", "payload"]
)  # fmt: skip
FIELD_NAMES = st.one_of(NAMES, st.sampled_from(["dst_port", "length", "ttl", "tcp_flags", "state"]))
SPANS = st.from_regex(r"[0-9,\-]{1,9}", fullmatch=True)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(NAMES, TEXTS), inner, max_size=4)
    ),
    max_leaves=12,
)
RULES = st.fixed_dictionaries(
    {"rule": st.fixed_dictionaries(
        {}, optional={"match": TEXTS, "action": st.one_of(st.just("drop"), TEXTS), "mode": LEAVES,
                      "fields": st.one_of(st.none(), st.dictionaries(NAMES, TEXTS, max_size=3))},
    )}
)  # fmt: skip
LISTS = st.one_of(
    st.fixed_dictionaries({"allow": st.lists(TEXTS, max_size=4)}),
    st.fixed_dictionaries(
        {"set": st.fixed_dictionaries({"name": TEXTS, "prefixes": st.lists(TEXTS, max_size=4)})}
    ),
)
SPECS = st.one_of(TREES, RULES, LISTS)


def one_line(error: Exception) -> bool:
    return "\n" not in str(error) and bool(str(error))


@settings(max_examples=400, deadline=None)
@given(st.lists(SPECS, min_size=1, max_size=5))
def test_documents(specs: list[object]) -> None:
    given_ = [Document(kind="filter", id=f"d{n}", revision=1, created=0, expires=2**50, spec=spec)
              for n, spec in enumerate(specs)]  # fmt: skip
    for document in given_:
        try:
            FILTER.judge(document)
        except Refused as error:
            assert len(str(error)) < 20_000
    gathered = wanted.gather(given_, wanted.Known())
    outcomes = wanted.outcome_of(gathered, given_, {}, {})
    assert set(outcomes) == {each.id for each in given_}
    assert {each.id for each in gathered.rules} <= {
        n for n, each in outcomes.items() if each.state == "applied"
    }


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_expressions(text: str) -> None:
    try:
        check(Rule("r", "1m", text), ["a", "b"])
        trial(RuleSpec(text))
        frames = np.zeros((3, 128), np.uint8)
        sizes, address = np.array([14, 60, 128]), np.zeros((3, 16), np.uint8)
        Judge(text, {"a": ["10.0.0.0/8"], "b": []}).select(frames, sizes, sizes, address, address, sizes > 14)
    except UsageError as error:
        assert one_line(error) or "\n" in text


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(FIELD_NAMES, st.one_of(TEXTS, SPANS), max_size=3))
def test_fields(fields: dict[str, str]) -> None:
    try:
        parse(fields)
    except UsageError as error:
        assert str(error).startswith("fields:")


NUMBERS, LONG = st.integers(0, 2**32 - 1), st.integers(0, 2**128 - 1)
PREFIXES = st.one_of(
    st.builds(lambda a, n: f"{ip_address(a)}/{n}", NUMBERS, st.integers(0, 33)),
    st.builds(lambda a, n: f"{IPv6Network(a).network_address}/{n}", LONG, st.integers(0, 129)),
    NUMBERS.map(lambda a: str(ip_address(a))),
    st.text(alphabet="0123456789.:/abcdef+-_ x", max_size=20),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(PREFIXES, max_size=6), st.lists(st.integers(0, 2**32 - 1), max_size=6))
def test_lists_are_read_as_python_reads_them(texts: list[str], asked: list[int]) -> None:
    try:
        expected = [ip_network(text.strip(), strict=False) for text in texts]
    except ValueError:
        expected = None
    if expected is None:
        with pytest.raises(UsageError, match=r"not an address or prefix|written like"):
            sets.parse(texts, "@x")
        with pytest.raises(UsageError, match="not an address or prefix"):
            networks(texts, "@x")
        return
    parsed = sets.parse(texts, "@x")
    inside = [any(ip_address(each) in net for net in expected if net.version == 4) for each in asked]
    assert [bool(np.searchsorted(parsed.four.turns(), each, "right") % 2) for each in asked] == inside
    rows = [bytes(10) + b"\xff\xff" + each.to_bytes(4, "big") for each in asked]
    table = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 16)
    assert contains(networks(texts, "@x"), table).tolist() == [
        found or any(each.version == 6 and (0xFFFF << 32 | number) >> (128 - each.prefixlen)
                     == int(each.network_address) >> (128 - each.prefixlen) for each in expected)
        for found, number in zip(inside, asked, strict=True)
    ]  # fmt: skip
