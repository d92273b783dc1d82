"""Rules' expressions to the functions of ``match``: the whole way from text to eBPF."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from collector.filter.assembler import TooFarError
from collector.filter.decision import FALSE, LONGEST, Graph
from collector.filter.emit import GATE, SHORTEST, Emitter
from collector.filter.link import Piece
from collector.filter.pcap import Instruction
from collector.filter.plan import Planner
from collector.filter.symbolic import decide

LIMITS = (20_000, 6000, 2000, 500)  # estimated instructions of a function, tried in turn
DEEP = 50_000  # tests one behind the other: recursion over a rule


@dataclass(frozen=True)
class Flag:
    """What a placeholder in an expression stands for: ``source`` in set number 3, ``established``."""

    name: str
    argument: int = 0


def match(rules: Sequence[tuple[Sequence[Instruction], Sequence[Flag]]]) -> Mapping[str, Piece]:
    """Functions, ``match`` among them, that set the hit bits of all rules a frame matches.

    A rule's bit is its place in ``rules``.
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, DEEP))
    try:
        return _match(rules)
    finally:
        sys.setrecursionlimit(before)


def _match(rules: Sequence[tuple[Sequence[Instruction], Sequence[Flag]]]) -> Mapping[str, Piece]:
    graph = Graph()
    nodes = []
    for number, (code, flags) in enumerate(rules):
        values = [graph.flag(each.name, each.argument) for each in flags]
        nodes.append((number, decide(graph, code, values)))
    nodes = [each for each in nodes if each[1] != FALSE]
    planner = Planner(graph)
    long, short = planner.plan(nodes, (GATE, LONGEST)), planner.plan(nodes, (SHORTEST, GATE - 1))
    for limit in LIMITS:
        try:
            functions = Emitter(graph, limit).match(long, short)
            return {name: Piece(code.finish(), code.calls) for name, code in functions.items()}
        except TooFarError:
            if limit == LIMITS[-1]:
                raise
    raise AssertionError
