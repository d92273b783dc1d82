"""From many rules to one plan: which value to look at first, so that most rules are never looked at.

Rules are independent decision graphs and every rule that matches is wanted. A *switch* looks at one value and
goes on with those rules alone that can still match; rules that do not depend on the value follow in
*sequence*. So cost grows with the number of different shapes of rules, and with the logarithm of the number
of rules of a shape. A value can be looked at once its bytes are known to be there: :class:`Facts`.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from math import log2

from collector.filter.decision import FALSE, LENGTH, LONGEST, MAX, TRUE, Graph

Interval = tuple[int, int]
Rules = list[tuple[int, int]]  # (rule, node)
WIDE = 8  # a rule that lies in more arms of a switch than this is kept out of it
GROWTH = 60  # arms a rule may come to lie in, all in all, before the rest is left as it is
TELLING_BITS = 8  # a need that one in 256 values serves tells as much as any
MAX_SPLIT = 64  # tests of a rule that is still cut into alternatives


@dataclass(frozen=True)
class Leaf:
    """One rule's remaining tests."""

    rule: int
    node: int


@dataclass(frozen=True)
class Switch:
    """Go on in the arm whose interval holds the value; in none if no arm does."""

    value: int
    arms: tuple[tuple[int, int, "Plan"], ...]  # ascending, not overlapping


@dataclass(frozen=True)
class Sequence:
    """One after the other; each whatever the others found."""

    parts: tuple["Plan", ...]


Plan = Leaf | Switch | Sequence
NOTHING = Sequence(())


@dataclass(frozen=True)
class Facts:
    """What is known of the packet on the way here."""

    length: Interval = (0, LONGEST)
    known: frozenset[tuple[int, Interval]] = field(default_factory=frozenset)

    def of(self, value: int) -> Interval | None:
        """The interval a value is known to lie in."""
        if value == LENGTH:
            return self.length
        return next((span for each, span in self.known if each == value), None)

    def learn(self, value: int, span: Interval) -> "Facts":
        """Facts that hold in an arm."""
        if value == LENGTH:
            return Facts(span, self.known)
        return Facts(self.length, frozenset(x for x in self.known if x[0] != value) | {(value, span)})


class Planner:
    """Makes the plan of a set of rules over one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._budget = 0
        self._needs: dict[int, dict[int, tuple[Interval, ...]]] = {}
        self._made: dict[
            tuple[tuple[tuple[int, int], ...], Interval, frozenset[tuple[int, Interval]]], Plan
        ] = {}

    def plan(self, rules: Rules, length: Interval) -> Plan:
        """The plan for frames whose length lies in ``length``."""
        self._budget = GROWTH * len(rules) + 1000
        known = [(rule, self.graph.restrict(node, LENGTH, *length)) for rule, node in rules]
        return self._build([each for each in known if each[1] != FALSE], Facts(length))

    def _build(self, rules: Rules, facts: Facts) -> Plan:
        if len(rules) == 1:
            return Leaf(*rules[0])
        rooms = frozenset(each for each in facts.known if self.graph.values[each[0]][0] == "room")
        key = (tuple(rules), facts.length, rooms)
        if key not in self._made:
            self._made[key] = self._sequence(rules, facts)
        return self._made[key]

    def _sequence(self, rules: Rules, facts: Facts) -> Plan:
        parts: list[Plan] = [Leaf(*each) for each in rules if each[1] == TRUE]
        rest = [part for each in rules if each[1] != TRUE for part in self._alternatives(each)]
        useless: set[int] = set()
        while rest:
            best = self._choose(rest, facts, useless) if self._budget > 0 else None
            if best is None:
                parts += [Leaf(*each) for each in rest]
                break
            part, rest = self._switch(rest, best, facts)
            if part is None:
                useless.add(best)
            else:
                parts.append(part)
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    # --- what a rule needs ---

    def _spine(self, node: int) -> tuple[list[tuple[int, int, int, bool]], int]:
        """Tests that must come out one way for a match (value, low, high, inside), and what follows them."""
        tests = []
        while node > TRUE:
            value, low, high, inside, outside = self.graph.nodes[node]
            if FALSE not in (inside, outside):
                break
            tests.append((value, low, high, outside == FALSE))
            node = inside if outside == FALSE else outside
        return tests, node

    def needs(self, node: int) -> dict[int, tuple[Interval, ...]]:
        """Values without which there is no match: intervals outside of which the rule is false."""
        known = self._needs.get(node)
        if known is not None:
            return known
        found: dict[int, tuple[Interval, ...]] = {}
        tests, rest = self._spine(node)
        for value, low, high, inside in tests:
            spans = ((low, high),) if inside else self._outside(value, low, high)
            found[value] = _intersect(found[value], spans) if value in found else spans
        chain, last = self._chain(rest)
        if chain and last == FALSE:
            value = self.graph.nodes[rest][0]
            spans = tuple(sorted(chain))
            found[value] = _intersect(found[value], spans) if value in found else spans
        self._needs[node] = found
        return found

    def _outside(self, value: int, low: int, high: int) -> tuple[Interval, ...]:
        least, most = self.graph.spans[value]
        return tuple(span for span in ((least, low - 1), (high + 1, most)) if span[0] <= span[1])

    def _chain(self, node: int) -> tuple[list[Interval], int]:
        """Alternatives asked of one value in a row, and what follows if none holds."""
        spans: list[Interval] = []
        taken: list[Interval] = []
        value = self.graph.nodes[node][0] if node > TRUE else -1
        while node > TRUE and self.graph.nodes[node][0] == value:
            _, low, high, inside, outside = self.graph.nodes[node]
            if any(low <= most and least <= high for least, most in taken):
                return [], node  # overlapping questions: not a plain list of alternatives
            taken.append((low, high))
            if inside != FALSE:
                spans.append((low, high))
            node = outside
        return spans, node

    def _alternatives(self, item: tuple[int, int]) -> Rules:
        """A rule that is "this or something else" as two, each of which can be found by its own value."""
        rule, node = item
        if node <= TRUE or self.graph.size(node) > MAX_SPLIT:
            return [item]
        tests, rest = self._spine(node)
        if rest <= TRUE:
            return [item]
        chain, last = self._chain(rest)
        if last == FALSE or not chain:
            return [item]
        value, low, high, inside, outside = self.graph.nodes[rest]
        if FALSE in (inside, outside):
            return [item]
        here = self.graph.test(value, low, high, inside, FALSE)
        there = outside if inside == TRUE else self.graph.test(value, low, high, FALSE, outside)
        parts = [(rule, self._behind(tests, each)) for each in (here, there)]
        return [parts[0], *self._alternatives(parts[1])] if inside == TRUE else parts

    def _behind(self, tests: list[tuple[int, int, int, bool]], node: int) -> int:
        for value, low, high, inside in reversed(tests):
            node = self.graph.test(value, low, high, *((node, FALSE) if inside else (FALSE, node)))
        return node

    # --- what to look at ---

    def available(self, value: int, facts: Facts) -> bool:
        """Whether a value can be computed: its bytes are there, nothing is divided by zero."""
        operation, a, b, c = self.graph.values[value]
        if operation == "load":
            if b < 0:
                return c + a <= facts.length[0]
            room = facts.of(self.graph.operate("room", b, LENGTH))
            return room is not None and room[0] >= c + a and self.available(b, facts)
        if operation in ("/", "%") and not self.graph.is_constant(b):
            return False
        return all(self.available(each, facts) for each in self.graph.leaves[value] - {value})

    def _enables(self, value: int) -> bool:
        """Whether knowing the value makes loads possible; these are asked for their least bound only."""
        return value == LENGTH or self.graph.values[value][0] == "room"

    def _telling(self, value: int, spans: tuple[Interval, ...]) -> float:
        """How much a rule's need of a value tells: 0 if half of all values or more serve it, at most 1."""
        least, most = self.graph.spans[value]
        share = (most - least + 1) / max(1, sum(high - low + 1 for low, high in spans))
        return min(1.0, log2(share) / TELLING_BITS) if share > 2 else 0.0

    def _choose(self, rules: Rules, facts: Facts, useless: set[int]) -> int | None:
        """The value most rules need; among equals the one that tells them apart best."""
        counts: dict[int, int] = {}
        weights: dict[int, float] = {}
        distinct: dict[int, set[tuple[Interval, ...]]] = {}
        for _, node in rules:
            for value, spans in self.needs(node).items():
                weight = 1.0 if self._enables(value) else self._telling(value, spans)
                if weight:
                    weights[value] = weights.get(value, 0) + weight
                    counts[value] = counts.get(value, 0) + 1
                    distinct.setdefault(value, set()).add(spans)
        useful = (each for each in counts if counts[each] > 1 and each not in useless)
        rank = {v: weights[v] + 0.3 * len(distinct[v]) * (not self._enables(v)) for v in useful}
        for value in sorted(rank, key=lambda v: (-rank[v], v)):
            if self.available(value, facts):
                return value
        return None

    # --- the switch ---

    def _switch(self, rules: Rules, value: int, facts: Facts) -> tuple[Plan | None, Rules]:
        """A switch on ``value`` and the rules left out of it; no switch if it would tell nothing."""
        if self._enables(value):
            group = [each for each in rules if value in self.needs(each[1])]
            plan = self._hull(group, value, facts)
            return plan, [each for each in rules if plan is None or value not in self.needs(each[1])]
        group = [each for each in rules if self._telling(value, self.needs(each[1]).get(value, _ALL))]
        starts = self._starts(group, value)
        narrow = [
            each for each in group
            if sum(_between(starts, span) for span in self.needs(each[1])[value]) <= WIDE
        ]  # fmt: skip
        plan = self._hull(group, value, facts) if len(narrow) < 2 else self._arms(narrow, value, facts)
        taken = set() if plan is None else set(group if len(narrow) < 2 else narrow)
        return plan, [each for each in rules if each not in taken]

    def _starts(self, group: Rules, value: int) -> list[int]:
        """Where intervals of the group begin, and the places right behind them, ascending."""
        spans = {span for _, node in group for span in self.needs(node)[value]}
        return sorted({edge for low, high in spans for edge in (low, high + 1)})

    def _hull(self, group: Rules, value: int, facts: Facts) -> Plan | None:
        """One arm around all of the group; None where that tells nothing new."""
        spans = [span for _, node in group for span in self.needs(node)[value]]
        if not spans:  # what they need excludes each other: none can match
            return NOTHING
        known = facts.of(value) or self.graph.spans[value]
        low, high = min(x for x, _ in spans), max(x for _, x in spans)
        if self._enables(value):
            high = known[1]
        low, high = max(low, known[0]), min(high, known[1])
        if low > high:
            return NOTHING
        if (low, high) == known:
            return None
        return Switch(value, ((low, high, self._inside(group, value, (low, high), facts)),))

    def _inside(self, group: Rules, value: int, span: Interval, facts: Facts) -> Plan:
        inside = [(rule, self.graph.restrict(node, value, *span)) for rule, node in group]
        inside = [each for each in dict.fromkeys(inside) if each[1] != FALSE]
        self._budget -= len(inside)
        return self._build(inside, facts.learn(value, span)) if inside else NOTHING

    def _arms(self, group: Rules, value: int, facts: Facts) -> Plan:
        starts = self._starts(group, value)
        members: list[Rules] = [[] for _ in starts]
        for each in group:
            for low, high in self.needs(each[1])[value]:
                for at in range(bisect_left(starts, low), bisect_right(starts, high)):
                    members[at].append(each)
        arms = []
        for at, inside in enumerate(members):
            if inside:
                span = (starts[at], starts[at + 1] - 1)
                plan = self._inside(inside, value, span, facts)
                if plan != NOTHING:
                    arms.append((*span, plan))
        return Switch(value, tuple(arms)) if arms else NOTHING


_ALL = ((0, MAX),)


def _between(starts: list[int], span: Interval) -> int:
    return bisect_right(starts, span[1]) - bisect_left(starts, span[0])


def _intersect(one: tuple[Interval, ...], other: tuple[Interval, ...]) -> tuple[Interval, ...]:
    return tuple(
        (max(a, c), min(b, d)) for a, b in one for c, d in other if max(a, c) <= min(b, d)
    )  # fmt: skip
