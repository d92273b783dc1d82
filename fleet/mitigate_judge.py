"""Attack or surge: which samples of a finding are an attack's, and why the others are not.

A flash crowd opens connections and then uses them; a flood of SYNs does not. A backup is one long flow whose
sequence numbers go up; a flood of ACKs has none. A scan looks at many doors once; a flood beats on one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet.mitigate_vectors import ACK, RST, SYN, Vector
from fleet.samples import Block, Mask

COMPLETED = 0.5  # so many sources that go on to talk, for each that knocks, are a crowd
HEAVY = 0.03  # of the packets, from one source: it is no member of a crowd
COHERENT = 4  # samples of a flow, before its order says something
SEGMENTS = 20  # packets that one SYN may stand for
ALIKE = 0.8  # of the packets
KNOWN = 20  # legitimate samples, before their lengths say something
SCANNERS, DOORS = 3, 0.5
LOUD = 10  # × threshold: no scan is


@dataclass(frozen=True)
class Opinion:
    """Which of the samples are an attack's (None is), or why none is."""

    mask: Mask
    reason: str = ""

    @property
    def is_attack(self) -> bool:
        """Whether any is."""
        return bool(self.mask.any())


def judge(vector: Vector, some: Block, others: Block, pps: float, threshold: float) -> Opinion:
    """``some``: samples of the vector to the target; ``others``: what else went there in the last minute.

    ``pps``: how much ``some`` stands for. What is left after the legitimate is taken away must still be above
    ``threshold``, packets per second.
    """
    if not len(some):
        return Opinion(np.zeros(0, bool), "no samples of it are left")
    mask, reason = WAYS[vector.how](some, others)
    mask = mask & ~_like(some, mask)
    share = float(some["weight"][mask].sum()) / float(some["weight"].sum())
    if vector.how in ("syn", "scan") and mask.any() and pps * share < LOUD * threshold and _scan(some[mask]):
        mask, reason, share = np.zeros(len(some), bool), "a scan: few sources, each door once", 0.0
    if share * pps < threshold:
        return Opinion(np.zeros(len(some), bool), reason or "too little of it is not legitimate")
    return Opinion(mask)


def _like(some: Block, mask: Mask) -> Mask:
    """Samples of lengths that usual among the legitimate and rare among the rest: people not known yet."""
    found = np.zeros(len(some), bool)
    good, bad = some[~mask], some[mask]
    if len(good) < KNOWN or not len(bad):
        return found
    for length in np.unique(good["length"]).tolist():
        usual = float(good["weight"][good["length"] == length].sum()) / float(good["weight"].sum())
        rare = float(bad["weight"][bad["length"] == length].sum()) / float(bad["weight"].sum())
        if rare < usual / 2:
            found |= some["length"] == length
    return found


def talking(others: Block) -> NDArray[np.bytes_]:
    """Sources that have connections: by the hosts' sockets, or where no host knows, by what they send."""
    tcp = others[others["protocol"] == 6]
    known = tcp["established"] != 0
    if not known.any():
        known = (tcp["tcp_flags"] & (SYN | RST | ACK)) == ACK
    return np.unique(tcp["source"][known])


def _any(some: Block, others: Block) -> tuple[Mask, str]:
    return np.ones(len(some), bool), ""


def _syn(some: Block, others: Block) -> tuple[Mask, str]:
    good = talking(others)
    mask = ~np.isin(some["source"], good)
    sources, index = np.unique(some["source"], return_inverse=True)
    weight = np.bincount(index, some["weight"])
    heavy = weight[index] >= HEAVY * weight.sum()
    if len(good) >= COMPLETED * len(sources):
        return mask & heavy, "a crowd: who knocks goes on to talk"
    return mask, "whoever knocks goes on to talk"


def _flow(some: Block, others: Block) -> tuple[Mask, str]:
    """Long flows are told by their order, short ones by the SYNs that came before them."""
    tcp = others[others["protocol"] == 6]
    mask = ~np.isin(some["source"], np.unique(tcp["source"][tcp["established"] != 0])) & ~_coherent(some)
    knocks = float(tcp["weight"][(tcp["tcp_flags"] & (SYN | ACK)) == SYN].sum())
    if float(some["weight"][mask].sum()) <= SEGMENTS * knocks:
        return np.zeros(len(some), bool), "connections that began, and go on"
    return mask, "flows in order"


def _coherent(block: Block) -> Mask:
    """Samples of TCP flows whose sequence or acknowledgement numbers go up, as those of connections do."""
    flow = _flows(block)
    order = np.lexsort((block["ts"], flow))
    sorted_flow = flow[order]
    same = sorted_flow[1:] == sorted_flow[:-1]
    forward, moved = np.ones(len(order) - 1, bool), np.zeros(len(order) - 1, bool)
    for offset in (4, 8):
        step = np.diff(_number(block[order], offset)).view(np.int32)  # modulo 2^32, as they count
        forward &= step >= 0
        moved |= step > 0
    count = np.bincount(sorted_flow[1:][same], minlength=int(flow.max(initial=0)) + 1)
    good = np.bincount(sorted_flow[1:][same & forward], minlength=len(count))
    going = np.bincount(sorted_flow[1:][same & moved], minlength=len(count))
    well = (count + 1 >= COHERENT) & (good >= 0.9 * count) & (going >= 0.5 * count)
    return np.asarray(well[flow])


def _flows(block: Block) -> NDArray[np.int64]:
    """A number for each flow's samples."""
    key = np.rec.fromarrays(
        [block[each] for each in ("source", "destination", "source_port", "destination_port")]
    )
    return np.asarray(np.unique(key, return_inverse=True)[1], np.int64).reshape(-1)


def _number(block: Block, offset: int) -> NDArray[np.uint32]:
    """A 32-bit word of the TCP header."""
    start = header(block) + offset
    rows = np.arange(len(block))
    word = np.zeros(len(block), np.uint32)
    for at in range(4):
        word = word << np.uint32(8) | block["raw"][rows, np.minimum(start + at, 127)]
    return word


def header(block: Block) -> NDArray[np.int64]:
    """Where what follows the IP header begins in ``raw``, of frames without VLAN tags."""
    four = block["ethertype"] == 0x0800
    return np.where(four, 14 + (block["raw"][:, 14].astype(np.int64) & 15) * 4, 54)


def _udp(some: Block, others: Block) -> tuple[Mask, str]:
    """No service, or too much alike to be people's."""
    everything, nothing = np.ones(len(some), bool), np.zeros(len(some), bool)
    weight = some["weight"].astype(float)
    flows = len(np.unique(_flows(some)))
    doors = np.bincount(some["destination_port"], weight)
    if doors.max() < 0.2 * weight.sum() and flows >= 0.5 * len(some):
        return everything, ""  # at no port in particular, and no flow goes on
    rows, start = np.arange(len(some))[:, None], header(some)[:, None] + 8 + np.arange(8)
    payload = some["raw"][rows, np.minimum(start, 127)]
    alike = {
        "payload": _most(np.ascontiguousarray(payload).view("V8").reshape(-1).view("S8"), weight),
        **{name: _most(some[name], weight) for name in ("length", "ttl", "source_port")},
    }
    agreed = {name for name, share in alike.items() if share >= ALIKE}
    sources = len(np.unique(some["source"]))
    if "payload" in agreed and len(agreed) > 1:
        return everything, ""
    if agreed >= {"length", "ttl", "source_port"} and sources >= 8:
        return everything, ""
    return nothing, "many different packets, as people send them"


def _most(values: NDArray[np.generic], weight: NDArray[np.float64]) -> float:
    """The share of the most frequent value."""
    _, index = np.unique(values, return_inverse=True)
    return float(np.bincount(index.reshape(-1), weight).max() / weight.sum())


def _scan(some: Block) -> bool:
    """Few sources, and hardly a door twice."""
    _, index = np.unique(some["source"], return_inverse=True)
    by_source = np.sort(np.bincount(index, some["weight"]))[::-1]
    few = by_source[:SCANNERS].sum() >= 0.9 * by_source.sum()
    doors = np.unique(np.rec.fromarrays([some["source"], some["destination"], some["destination_port"]]))
    return bool(few and len(doors) >= DOORS * len(some))


WAYS: dict[str, Callable[[Block, Block], tuple[Mask, str]]] = {
    "any": _any, "syn": _syn, "flow": _flow, "udp": _udp, "scan": _any,
}  # fmt: skip
