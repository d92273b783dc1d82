"""Tables of address sets, against what Python's `ipaddress` says of the prefixes."""

from bisect import bisect_right
from ipaddress import IPv4Address, IPv6Address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from collector.filter import sets
from collector.filter.lists import Lists

HEADS = (0, 1, 0x2A02, 0x2A03, 0xFFFF)  # of addresses: prefixes touch, overlap, and reach both ends


def near(bits: int) -> st.SearchStrategy[str]:
    """A prefix of a family with addresses of so many bits."""
    made = st.tuples(st.sampled_from(HEADS), st.integers(0, 5), st.integers(0, bits))
    kind = IPv4Address if bits == 32 else IPv6Address
    return made.map(lambda m: f"{kind((m[0] << bits - 16 | m[1] << bits - 18) % (1 << bits))}/{m[2]}")


def found(table: sets.Table, number: int, bits: int) -> int:
    """The mask of an address, as the kernel looks it up (bpf/xdp/filter_sets.h)."""
    if bits == 128:
        fold = (number >> 96 ^ number >> 112) & 0xFFFF
        if not int(table.hints[fold >> 6]) >> (fold & 63) & 1:
            return 0
    first, count = map(int, table.chunks[number >> bits - 16])
    if not count:
        return first
    spans = table.spans[first : first + count]
    starts = spans["start"] if bits == 32 else [int(a) << 64 | int(b) for a, b in spans[["high", "low"]]]
    return int(spans["sets"][bisect_right([int(each) for each in starts], number) - 1])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([32, 128]), st.data())
def test_tables_say_what_the_prefixes_say_however_they_changed(bits: int, data: st.DataObject) -> None:
    prefixes = st.lists(near(bits), min_size=1, max_size=8)
    lists = Lists()
    for _ in range(3):
        parts = data.draw(st.dictionaries(st.sampled_from("abcdefgh"), prefixes, min_size=1, max_size=8))
        one = data.draw(prefixes)
        wanted_ = {"x": {" ".join(each): each for each in parts.values()}, "y": {" ".join(one): one}}
        parsed = lists.parsed(wanted_)
        build = sets.build4 if bits == 32 else sets.build6
        table = build(
            {bit: each.four if bits == 32 else each.six for bit, each in enumerate(parsed.values())}
        )
        networks_ = [[ip_network(text, strict=False) for each in part.values() for text in each]
                     for part in wanted_.values()]  # fmt: skip
        ends = {int(edge) for part in networks_ for each in part for edge in (each[0], each[-1])}
        for number in {(each + more) % (1 << bits) for each in ends for more in (-1, 0, 1)}:
            kind = IPv4Address if bits == 32 else IPv6Address
            expected = sum(any(kind(number) in each for each in part) << bit
                           for bit, part in enumerate(networks_))  # fmt: skip
            assert found(table, number, bits) == expected
