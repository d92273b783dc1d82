"""What the kernel counted: exact counters of rules, and heavy hitters."""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collector.bpf_map import Map, possible_cpus
from collector.filter.layout import COUNTER, SCRATCH, TOP_KEY, TOP_KINDS, TOP_VALUE, VERDICTS

ALLOWED = "allow"  # the verdict of frames that a rule matched and the allow-list let through


@dataclass(frozen=True)
class Count:
    """Packets and bytes since the filter began; rule "" is what was let through without a rule deciding."""

    rule: str
    verdict: str
    packets: int
    bytes: int


@dataclass(frozen=True)
class Top:
    """A heavy hitter: what (`source`, `port` …), which, and how much, estimated from samples."""

    kind: str
    verdict: str
    item: str
    packets: int
    bytes: int


@dataclass(frozen=True)
class Figures:
    """Counters of one rule, summed over the CPUs, in the order of VERDICTS."""

    packets: tuple[int, int, int]
    bytes: tuple[int, int, int]
    established: int  # dropped or would-be dropped frames of connections known to be established


def figures(maps: Mapping[str, Map], slots: Mapping[str, int]) -> dict[str, Figures]:
    """The counters of each rule."""
    _, values, entries = maps["filter_counters"].read()
    table = np.frombuffer(values, COUNTER).reshape(entries, possible_cpus())
    found = {}
    for name, slot in slots.items():
        row = table[slot]
        packets, size = row["packets"].sum(axis=0).tolist(), row["bytes"].sum(axis=0).tolist()
        found[name] = Figures(tuple(packets), tuple(size), int(row["established"].sum()))
    return found


def scratch(maps: Mapping[str, Map]) -> NDArray[Any]:
    """What each CPU counted beside rules."""
    value = maps["filter_scratch"].lookup(bytes(4))
    assert value is not None
    return np.frombuffer(value, SCRATCH)


def counts(maps: Mapping[str, Map], slots: Mapping[str, int]) -> list[Count]:
    """Exact counters of all rules, and of what passed."""
    found = [
        Count(name, verdict, each.packets[number], each.bytes[number])
        for name, each in figures(maps, slots).items()
        for number, verdict in enumerate(VERDICTS)
    ]
    beside = scratch(maps)
    return [*found, Count("", "pass", int(beside["packets"].sum()), int(beside["bytes"].sum()))]


def top(maps: Mapping[str, Map], most: int = 0) -> list[Top]:
    """Heavy hitters since the last call, estimated; the most packets first.

    ``most``: of each kind and verdict; 0: all there are.
    """
    keys, values, _ = maps["filter_top"].read(delete=True)
    key, value = np.frombuffer(keys, TOP_KEY), np.frombuffer(values, TOP_VALUE)
    order = np.argsort(value["packets"], kind="stable")[::-1]
    if most:
        sort = key["kind"][order].astype(np.int64) << 8 | key["verdict"][order]
        first = [np.flatnonzero(sort == each)[:most] for each in np.unique(sort)]
        order = order[np.sort(np.concatenate(first))] if first else order
    return [
        Top(
            TOP_KINDS[key["kind"][at]], VERDICTS[key["verdict"][at]],
            _item(int(key["kind"][at]), key["item"][at].tobytes()),
            int(value["packets"][at]), int(value["bytes"][at]),
        )
        for at in order
    ]  # fmt: skip


def _item(kind: int, raw: bytes) -> str:
    """An address or a number, for people."""
    if kind > TOP_KINDS.index("destination"):
        return str(int.from_bytes(raw[:8], "little"))
    address = IPv6Address(raw)
    text = str(address.ipv4_mapped or address)
    if TOP_KINDS[kind] != "source_net":
        return text
    return text + ("/24" if address.ipv4_mapped else "/64")
