"""Attack or surge: which samples of a finding are an attack's, and why the others are not.

A flash crowd opens connections and then uses them; a flood of SYNs does not. A backup is one long flow whose
sequence numbers go up; a flood of ACKs has none. A resolver's answers are mostly small; reflected ones are
large. A scan looks at many doors once; a flood beats on one. Nobody sends a large datagram and never another.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet.mitigate_flows import (
    alone,
    flows,
    forged,
    header,
    impossible,
    in_order,
    most,
    repeated,
    share,
    tunnelled,
)
from fleet.mitigate_vectors import ACK, RST, SYN, Vector
from fleet.samples import Block, Mask

COMPLETED = 0.5  # so many sources that talk, for each that knocks, are a crowd
MUTE = 4  # SYNs of one source that never talks: it is no member of a crowd
SOURCES = 8  # that agree in everything
SEGMENTS, CLOSING = 20, 4  # unknown packets that one SYN may stand for; where hosts know their connections
ALIKE = 0.8  # of the packets
MOSTLY = 0.75  # of a source's samples
HALF = 0.5
FORGED = 0.01  # of the packets with sources that no host has: the others are as false
LARGE = 200  # bytes: no question of one packet is as long
SMALL = 0.25  # small answers for each large one: whoever asks names gets many of them
KNOWN = 20  # legitimate samples, before their lengths say something
SCANNERS, DOORS, DOOR_PPS = 3, 0.5, 20
LOUD = 10  # × threshold: no scan is
Verdict = tuple[Mask, Mask, str]  # an attack's, surely legitimate, why not


@dataclass(frozen=True)
class Opinion:
    """Which of the samples are an attack's (None is), or why none is."""

    mask: Mask
    good: Mask  # those that surely are legitimate
    reason: str = ""
    doubt: str = ""  # why it is for people to decide

    @property
    def is_attack(self) -> bool:
        """Whether any is."""
        return bool(self.mask.any())


def judge(vector: Vector, some: Block, others: Block, pps: float, threshold: float) -> Opinion:
    """``some``: samples of the vector to the target; ``others``: what else went there in the last minute.

    ``pps``: how much ``some`` stands for. What is left after the legitimate is taken away must still be above
    ``threshold``, packets per second.
    """
    none = np.zeros(len(some), bool)
    if not len(some):
        return Opinion(none, none, "no samples of it are left")
    mask, good, reason = WAYS[vector.how](some, others)
    if mask.any():
        people = _like(some, mask, good)
        mask, good = mask & ~people, good | people
        theirs = _attackers(some, mask)
        mask, good = mask | theirs, good & ~theirs
    left = share(some, mask)
    if vector.how in ("syn", "scan") and mask.any() and pps * left < LOUD * threshold and _scan(some[mask]):
        return Opinion(none, good, "a scan: few sources, each door now and then")
    if left * pps < threshold:
        return Opinion(none, good, reason or "too little of it is not legitimate")
    return Opinion(mask, good, doubt=_doubt(vector, some[mask]))


def _doubt(vector: Vector, attack: Block) -> str:
    """A tunnel, a file system: large and lasting, between two hosts, never the same. So may be a flood."""
    if vector.how != "tunnel" or not _few(attack) or share(attack, repeated(attack)) >= HALF:
        return ""
    gre = attack["protocol"] == 47
    if share(attack, ~gre | tunnelled(attack)) >= HALF:
        return "few sources, ever other content: it may be a tunnel or a file system"
    return ""


def _few(some: Block) -> bool:
    """Whether a handful of sources sends nearly all."""
    _, index = np.unique(some["source"], return_inverse=True)
    by_source = np.sort(np.bincount(index.reshape(-1), some["weight"]))[::-1]
    return bool(by_source[:SCANNERS].sum() >= 0.9 * by_source.sum())


def _attackers(some: Block, mask: Mask) -> Mask:
    """All samples of sources most of whose samples are an attack's: chance makes a few look orderly."""
    index = np.unique(some["source"], return_inverse=True)[1].reshape(-1)
    total, theirs = np.bincount(index), np.bincount(index, mask)
    return np.asarray(((total >= MUTE) & (theirs >= MOSTLY * total))[index])


def _like(some: Block, mask: Mask, good: Mask) -> Mask:
    """Samples of lengths that usual among the legitimate and rare among the rest: people not known yet."""
    found = np.zeros(len(some), bool)
    known, rest = some[good], some[mask]
    if len(known) < KNOWN or not len(rest):
        return found
    for length in np.unique(known["length"]).tolist():
        usual = share(known, known["length"] == length)
        if share(rest, rest["length"] == length) < usual / 2:
            found |= some["length"] == length
    return found


def talking(others: Block) -> NDArray[np.bytes_]:
    """Sources that have connections: by the hosts' sockets, or where no host knows, by what they send."""
    return np.unique(others["source"][_talk(others)])


def _talk(others: Block) -> Mask:
    tcp = others["protocol"] == 6
    known: Mask = tcp & (others["established"] != 0)
    return known if known.any() else tcp & ((others["tcp_flags"] & (SYN | RST | ACK)) == ACK)


def _during(some: Block, others: Block) -> Block:
    """What else came since the finding began."""
    kept: Block = others[others["ts"] >= some["ts"].min()]
    return kept


def _any(some: Block, others: Block) -> Verdict:
    return np.ones(len(some), bool), np.zeros(len(some), bool), ""


def _answers(some: Block, others: Block) -> Verdict:
    """Answers of name servers: somebody who asked for them gets small ones too, to ever other questions."""
    everything, nothing = np.ones(len(some), bool), np.zeros(len(some), bool)
    during = _during(some, others)
    small = (during["protocol"] == 17) & (during["source_port"] == 53) & (during["fragment"] & 0x1FFF == 0)
    if float(during["weight"][small].sum()) < SMALL * float(some["weight"].sum()):
        return everything, nothing, ""
    rows, start = np.arange(len(some))[:, None], header(some)[:, None] + 8 + 12 + np.arange(8)
    question = np.ascontiguousarray(some["raw"][rows, np.minimum(start, 127)]).view("S8").reshape(-1)
    if most(question, some["weight"].astype(float)) >= HALF:
        return everything, nothing, ""
    return nothing, everything, "a resolver's: small answers among them, to many questions"


def _syn(some: Block, others: Block) -> Verdict:
    good = np.isin(some["source"], talking(others))
    sources, index = np.unique(some["source"], return_inverse=True)
    crowd = len(talking(_during(some, others))) >= COMPLETED * len(sources)
    if not crowd or share(some, impossible(some)) >= FORGED:
        return ~good, good, "whoever knocks goes on to talk"
    index = index.reshape(-1)
    return ~good & (np.bincount(index)[index] >= MUTE), good, "a crowd: who knocks goes on to talk"


def _flow(some: Block, others: Block) -> Verdict:
    """Long flows are told by their order, short ones by the SYNs that came before them."""
    tcp = others[others["protocol"] == 6]
    known = np.unique(tcp["source"][tcp["established"] != 0])
    good = np.isin(some["source"], known) | in_order(some)
    tcp = _during(some, tcp)
    knocks = float(tcp["weight"][(tcp["tcp_flags"] & (SYN | ACK)) == SYN].sum())
    explained = SEGMENTS * knocks
    if _knows(some[~good], tcp):  # connections begin and end unknown, and talk in between
        explained = min(CLOSING * knocks, float(tcp["weight"][tcp["established"] != 0].sum()))
    if float(some["weight"][~good].sum()) <= explained:
        return np.zeros(len(some), bool), good, "connections that began, and go on"
    return ~good, good, "flows in order"


def _knows(unknown: Block, tcp: Block) -> bool:
    """Whether the connections of those who got these end on hosts of ours: a forwarder knows none."""
    ours = np.unique(tcp["destination"][tcp["established"] != 0])
    return share(unknown, np.isin(unknown["destination"], ours)) >= HALF


def _udp(some: Block, others: Block) -> Verdict:
    """The same over and over, or packets that begin nothing: large, or to no service, or forged."""
    same, single = repeated(some), alone(some)
    if share(some, same) >= HALF:
        return same, ~same & ~single, ""
    if share(some, single) >= HALF and _floods(some[single]):
        return single, ~single, ""
    false = forged(some)
    if share(some, false) >= HALF:
        return false, ~false, ""
    return np.zeros(len(some), bool), ~single, "many different packets, as people send them"


def _floods(part: Block) -> bool:
    """Whether packets of flows that do not go on are a flood, not questions of one packet each."""
    weight = part["weight"].astype(float)
    doors = np.bincount(part["destination_port"], weight)
    at_none = doors.max() < 0.2 * weight.sum() and len(np.unique(flows(part))) >= HALF * len(part)
    alike = min(most(part[name], weight) for name in ("length", "ttl", "source_port")) >= ALIKE
    return bool(
        at_none
        or share(part, part["length"] >= LARGE) >= ALIKE
        or share(part, impossible(part)) >= FORGED
        or (alike and len(np.unique(part["source"])) >= SOURCES)
    )


def _scan(some: Block) -> bool:
    """Few sources, and hardly a door twice, or none often."""
    doors = np.unique(np.rec.fromarrays([some["source"], some["destination"], some["destination_port"]]))
    seconds = max(1.0, float(np.ptp(some["ts"])) / 1e6)
    seldom = float(some["weight"].sum()) <= DOOR_PPS * seconds * len(doors)
    return _few(some) and (len(doors) >= DOORS * len(some) or seldom)


WAYS: dict[str, Callable[[Block, Block], Verdict]] = {
    "any": _any, "answers": _answers, "syn": _syn, "flow": _flow, "udp": _udp, "scan": _any,
    "tunnel": _any,
}  # fmt: skip
