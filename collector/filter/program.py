"""One filter program: rules' expressions and the skeleton, linked and loaded."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from collector import bpf_sys
from collector.bpf_map import Map
from collector.bpf_sys import ProgType
from collector.filter import matcher
from collector.filter.entry import whole
from collector.filter.functions import describe
from collector.filter.layout import MAX_RULES
from collector.filter.link import bind, link
from collector.filter.matcher import Flag
from collector.filter.pcap import Instruction
from collector.filter.skeleton import MapShape, Skeleton

ORDER, NEXT = "filter_order", "filter_next"  # maps of one program each
BESIDE = "_vips"  # at the end of names: functions in the place of others beside a balancer
NO_MAP = -1  # what only the code beside a balancer asks for


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
    next: Map  # what follows it on its interface: collector.xdp_chain
    instructions: int

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self.fd)
        self.order.close()
        self.next.close()


def load(
    skeleton: Skeleton,
    maps: Mapping[str, Map],
    rules: Sequence[Expressed],
    vips: Mapping[str, Map] = MappingProxyType({}),
) -> Program:
    """Compile and load. The first of several matching rules that is enforced decides.

    ``vips``: the tables of the balancer on this host, which says what connections to its VIPs are known.

    Raises :class:`schemas.errors.BpfleetError`: a rule is refused by the compiler or all by the verifier.
    """
    matching = matcher.match([(each.code, each.flags) for each in rules])
    scratch = next(at for at, each in enumerate(skeleton.maps) if each.name == "filter_scratch")
    pieces = {**skeleton.pieces, **matching}
    if vips:
        pieces |= {name: skeleton.pieces[f"{name}{BESIDE}"] for name in ("main", "established")}
    pieces["main"] = whole(scratch, matching["match"], pieces["main"])
    linked = link(pieces, "main")
    types, functions = describe([(name, at, name in skeleton.pieces) for name, at in linked.starts.items()])
    order, following = _order(skeleton, rules), _shape(skeleton, NEXT).create()
    try:
        own = {**maps, **vips, ORDER: order, NEXT: following}
        fds = [own[each.name].fd if each.name in own else NO_MAP for each in skeleton.maps]
        code = bind(linked.code, fds)
        fd = bpf_sys.prog_load(ProgType.XDP, code, "filter", btf_fd=types, functions=functions)
    except BaseException:
        order.close()
        following.close()
        raise
    finally:
        os.close(types)
    return Program(fd, order, following, len(code) // 8)


def _shape(skeleton: Skeleton, name: str) -> MapShape:
    return next(each for each in skeleton.maps if each.name == name)


def _order(skeleton: Skeleton, rules: Sequence[Expressed]) -> Map:
    """Place of a rule in this program → its slot; made before the program can run."""
    order = _shape(skeleton, ORDER).create(max(1, len(rules)))
    if rules:
        places = np.arange(min(len(rules), MAX_RULES), dtype="<u4")
        slots = np.array([each.slot for each in rules], dtype="<u4")
        order.update_many(places.tobytes(), slots.tobytes(), len(rules))
    return order
