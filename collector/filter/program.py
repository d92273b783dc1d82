"""One filter program: rules' expressions and the skeleton, linked and loaded."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from collector import bpf_sys
from collector.bpf_map import Map
from collector.bpf_sys import ProgType
from collector.filter import matcher
from collector.filter.functions import describe
from collector.filter.layout import MAX_RULES
from collector.filter.link import bind, link
from collector.filter.matcher import Flag
from collector.filter.pcap import Instruction
from collector.filter.skeleton import Skeleton

ORDER = "filter_order"


@dataclass(frozen=True)
class Expressed:
    """A rule as the program needs it: its slot and its test."""

    slot: int
    code: Sequence[Instruction]
    flags: Sequence[Flag]


@dataclass(frozen=True)
class Program:
    """A loaded program. Owns its descriptors; an interface it is attached to keeps it running."""

    fd: int
    order: Map
    instructions: int

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self.fd)
        self.order.close()


def load(skeleton: Skeleton, maps: Mapping[str, Map], rules: Sequence[Expressed]) -> Program:
    """Compile and load. The first of several matching rules that is enforced decides.

    Raises :class:`schemas.errors.BpfleetError`: a rule is refused by the compiler or all by the verifier.
    """
    matching = matcher.match([(each.code, each.flags) for each in rules])
    linked = link({**skeleton.pieces, **matching}, "main")
    types, functions = describe([(name, at, name in skeleton.pieces) for name, at in linked.starts.items()])
    order = _order(skeleton, rules)
    try:
        fds = [order.fd if each.name == ORDER else maps[each.name].fd for each in skeleton.maps]
        code = bind(linked.code, fds)
        fd = bpf_sys.prog_load(ProgType.XDP, code, "filter", btf_fd=types, functions=functions)
    except BaseException:
        order.close()
        raise
    finally:
        os.close(types)
    return Program(fd, order, len(code) // 8)


def _order(skeleton: Skeleton, rules: Sequence[Expressed]) -> Map:
    """Place of a rule in this program → its slot; made before the program can run."""
    shape = next(each for each in skeleton.maps if each.name == ORDER)
    order = shape.create(max(1, len(rules)))
    if rules:
        places = np.arange(min(len(rules), MAX_RULES), dtype="<u4")
        slots = np.array([each.slot for each in rules], dtype="<u4")
        order.update_many(places.tobytes(), slots.tobytes(), len(rules))
    return order
