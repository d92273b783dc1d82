"""What samples say of the flows they come from: which go on, which are in order, which repeat themselves.

Samples are few of many packets. That a flow was seen once proves nothing where one packet in thousands is
seen; :func:`alone` therefore asks whether the flows seen more than once explain those seen once.
"""

import math

import numpy as np
from numpy.typing import NDArray

from fleet.samples import Block, Mask

COHERENT = 4  # samples of a flow, before its order says something of it alone
PAIRS = 20  # of neighbours in flows, before their order says something of all
MOST_RATE = 50.0  # samples of a flow; with more, none is seen once by chance
MOVING = 0.1  # of such pairs go on; what is only sent again is none
LOOSE = 3.0  # × what thin sampling explains, and a handful: flows are not all of one size
REPEATED = 0.1  # of the packets: one payload that often is no accident
PADDING = 22  # of the shortest frames
TTLS = 6  # of one source: one host has one, those behind one address a few


def header(block: Block) -> NDArray[np.int64]:
    """Where what follows the IP header begins in ``raw``, of frames without VLAN tags."""
    four = block["ethertype"] == 0x0800
    return np.where(four, 14 + (block["raw"][:, 14].astype(np.int64) & 15) * 4, 54)


def payload(block: Block) -> NDArray[np.int64]:
    """Where what follows the UDP or TCP header begins; for later fragments and others, the IP header."""
    start = header(block)
    whole = block["fragment"] & 0x1FFF == 0
    start = start + np.where(whole & (block["protocol"] == 17), 8, 0)
    offset = block["raw"][np.arange(len(block)), np.minimum(start + 12, 127)] >> 4
    return np.asarray(start + np.where(whole & (block["protocol"] == 6), offset.astype(np.int64) * 4, 0))


def flows(block: Block) -> NDArray[np.int64]:
    """A number for each flow's samples."""
    names = ("source", "destination", "source_port", "destination_port")
    key = np.rec.fromarrays([block[each] for each in names])
    return np.asarray(np.unique(key, return_inverse=True)[1], np.int64).reshape(-1)


def alone(block: Block) -> Mask:
    """Samples of flows that do not go on: seen once, and not because so few packets are seen.

    What is sent again unchanged is no other packet: a recorded flood, replayed, has flows of one. The flows
    with more tell how many samples a flow gives; with that many, Poisson says how many should be seen once.
    """
    flow = flows(block)
    pairs = np.unique(np.rec.fromarrays([flow, _content(block, header(block))]))
    count = np.bincount(pairs["f0"], minlength=int(flow.max(initial=0)) + 1)
    once: Mask = np.asarray(count[flow] == 1)
    several = int((count > 1).sum())
    if not several:
        return once
    rate = _rate(float(count[count > 1].mean()))
    expected = several * rate / (math.expm1(rate) - rate)
    if (count == 1).sum() <= LOOSE * expected + 10:
        return np.zeros(len(block), bool)
    return once


def _rate(mean: float) -> float:
    """λ of a Poisson distribution of which only counts from two on are seen, with that mean."""
    low, high = 1e-4, min(mean, MOST_RATE)
    for _ in range(40):
        rate = (low + high) / 2
        seen = rate * math.expm1(rate) / (math.expm1(rate) - rate)
        low, high = (rate, high) if seen < mean else (low, rate)
    return low


def in_order(block: Block) -> Mask:
    """Samples of TCP flows whose sequence and acknowledgement numbers never go back, as connections' do.

    A flow of few samples says little by itself: all such flows together are believed.
    """
    flow = flows(block)
    order = np.lexsort((block["ts"], flow))
    same = flow[order][1:] == flow[order][:-1]
    forward, moved = np.ones(len(order) - 1, bool), np.zeros(len(order) - 1, bool)
    for offset in (4, 8):
        step = np.diff(_number(block[order], offset)).view(np.int32)  # modulo 2^32, as they count
        forward &= step >= 0
        moved |= step > 0
    most = int(flow.max(initial=0)) + 1
    pairs, good, going = (
        np.bincount(flow[order][1:][same & which], minlength=most)
        for which in (np.ones(len(same), bool), forward, moved)
    )
    many = pairs + 1 >= COHERENT
    fine = many & (good >= 0.9 * pairs) & (going > 0)
    few = ~many & (pairs > 0)
    total = pairs[few].sum()
    if total >= PAIRS and good[few].sum() >= 0.9 * total and going[few].sum() >= MOVING * total:
        fine |= few & (good == pairs)
        if not alone(block).any():
            fine |= pairs == 0
    return np.asarray(fine[flow])


def _number(block: Block, offset: int) -> NDArray[np.uint32]:
    """A 32-bit word of the TCP header."""
    start = header(block) + offset
    rows = np.arange(len(block))
    word = np.zeros(len(block), np.uint32)
    for at in range(4):
        word = word << np.uint32(8) | block["raw"][rows, np.minimum(start + at, 127)]
    return word


def repeated(block: Block) -> Mask:
    """Samples whose whole payload, as far as it was captured, is that of a tenth of all packets or more."""
    index = _content(block, payload(block))
    weight = np.bincount(index, block["weight"].astype(float))
    return np.asarray((weight >= REPEATED * weight.sum())[index])


def _content(block: Block, begin: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for each different content: the length, and the captured bytes from ``begin`` on."""
    columns = np.arange(128)
    told = (columns >= begin[:, None]) & (columns < block["captured"].astype(np.int64)[:, None])
    kept = np.zeros((len(block), 132), np.uint8)
    kept[:, :128] = np.where(told, block["raw"], 0)
    kept[:, 128:] = block["length"].astype("<u4").view(np.uint8).reshape(-1, 4)
    index = np.unique(kept.view("V132").reshape(-1), return_inverse=True)[1]
    return np.asarray(index, np.int64).reshape(-1)


def tunnelled(block: Block) -> Mask:
    """GRE frames that hold what a tunnel's do (RFC 2784, 2890): a whole packet of the protocol they name.

    An IP packet is whole when its length is what is left of the frame, but for Ethernet's padding; bridged
    Ethernet and what only a vendor knows are believed.
    """
    rows, start = np.arange(len(block)), header(block)

    def at(offset: NDArray[np.int64] | int) -> NDArray[np.int64]:
        place = np.minimum(start + offset, 126)
        return np.asarray(block["raw"][rows, place].astype(np.int64) << 8 | block["raw"][rows, place + 1])

    flags, protocol = at(0), at(2)
    inner = 4 + 4 * sum((flags & bit != 0).astype(np.int64) for bit in (0x8000, 0x2000, 0x1000))
    left = block["length"].astype(np.int64) - start - inner
    four = at(inner) >> 12 == 4
    six = at(inner) >> 12 == 6
    size = np.where(four, at(inner + 2), at(inner + 4) + 40)
    whole = (left >= size) & (left - size <= PADDING)
    ip = ((protocol == 0x0800) & four | (protocol == 0x86DD) & six) & whole
    return np.asarray((block["protocol"] == 47) & (ip | ~np.isin(protocol, (0x0800, 0x86DD))))


def impossible(block: Block) -> Mask:
    """Sources that no host can have: multicast, reserved, loopback, this network."""
    source = np.ascontiguousarray(block["source"]).view(np.uint8).reshape(-1, 16)
    four = (source[:, :10] == 0).all(axis=1) & (source[:, 10:12] == 255).all(axis=1)
    first = source[:, 12]
    bad4 = (first >= 224) | (first == 0) | (first == 127)
    return np.asarray(np.where(four, bad4, source[:, 0] == 255))


def forged(block: Block) -> Mask:
    """Samples of sources that have more TTLs than hosts can have behind one address."""
    _, source = np.unique(block["source"], return_inverse=True)
    pairs = np.unique(source.reshape(-1).astype(np.int64) << 8 | block["ttl"])
    return np.asarray((np.bincount(pairs >> 8) >= TTLS)[source.reshape(-1)])


def share(block: Block, mask: Mask) -> float:
    """Of the packets."""
    total = float(block["weight"].sum())
    return float(block["weight"][mask].sum()) / total if total else 0.0


def most(values: NDArray[np.generic], weight: NDArray[np.float64]) -> float:
    """The share of the most frequent value."""
    _, index = np.unique(values, return_inverse=True)
    return float(np.bincount(index.reshape(-1), weight).max() / weight.sum())
