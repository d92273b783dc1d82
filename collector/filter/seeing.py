"""What the filter saw: samples column by column, exact counters, heavy hitters."""

import socket
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collector.bpf_map import Map
from collector.cgroup import Cgroups
from collector.clock import Clock, now_us
from collector.companion import Row
from collector.decode import Decoders
from collector.filter import figures
from collector.filter.figures import Figures
from collector.filter.layout import NO_RULE
from collector.ksym import Symbols
from collector.ring import Ring
from schemas import declare, dtype
from schemas.columns import Column, Dictionary

SAMPLES = declare.read(declare.DIRECTORY / "packet_sample.avsc").streams[0]
BATCH_ROWS = 3000  # of samples: what becomes of them stays below Kafka's bound
READ_ROWS = 30_000
TOPS = 20  # of a kind and verdict
Events = NDArray[Any]  # of packet_sample's kernel struct


class Seeing:
    """The one reader of the filter's ring and counters."""

    def __init__(self, maps: Mapping[str, Map], slots: Callable[[], Mapping[str, int]]) -> None:
        self._maps, self._slots = maps, slots
        self._ring = Ring(maps["packet_sample"], dtype.event(SAMPLES))
        self._decoders = Decoders(Clock(), Cgroups(), Symbols())

    def samples(self) -> Events:
        """The kernel's records since the last call."""
        return self._ring.read(READ_ROWS)

    def columns(self, events: Events) -> dict[str, Column]:
        """Records as columns of `packet_sample`, with the names that rules and interfaces have now."""
        made = self._decoders.columns(SAMPLES, events)
        names = {slot: name for name, slot in self._slots().items()} | {NO_RULE: ""}
        made["rule"] = named(events["slot"], lambda slot: names.get(slot, "?"))
        made["interface"] = named(events["ifindex"], interface_name)
        return made

    def figures(self) -> dict[str, Figures]:
        """Exact counters of the rules, since each began."""
        return figures.figures(self._maps, self._slots())

    def tops(self, interval_us: int) -> list[Row]:
        """Rows of `filter_top`: the largest of each kind and verdict since the last call."""
        now = now_us()
        return [
            {"ts": now, "interval_us": interval_us, "kind": each.kind, "verdict": each.verdict,
             "item": each.item, "packets": each.packets, "bytes": each.bytes}
            for each in figures.top(self._maps, TOPS)
        ]  # fmt: skip

    def close(self) -> None:
        """Unmap the ring; the maps are their owner's."""
        self._ring.close()


def named(numbers: NDArray[Any], name: Callable[[int], str]) -> Dictionary:
    """Numbers as strings of few distinct values."""
    distinct, index = np.unique(numbers, return_inverse=True)
    return Dictionary([name(int(each)) for each in distinct], index.reshape(-1).astype(np.uint32))


def interface_name(number: int) -> str:
    """``eth0``; the number if it is gone."""
    try:
        return socket.if_indextoname(number)
    except OSError:
        return str(number)
