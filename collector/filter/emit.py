"""From a plan to eBPF: the function ``match(ctx, scratch)`` of the filter program, and helpers it is cut
into.

Nothing is assumed that the verifier does not see: each load is covered by *evidence*, a comparison with the
packet's end on the same path. Where paths meet, the packet pointer is read anew, so that all of them look
alike to the verifier and its work stays linear in the code.

Registers: r6 start of the packet, r9 its end, r7 scratch, r8 a pointer to a computed offset, r0–r5 free.
"""

from dataclasses import dataclass

from collector.filter.assembler import R0, R1, R2, R3, R6, R7, R9, R10, Assembler, Label
from collector.filter.decision import FALSE, LENGTH, LONGEST, TRUE, Graph
from collector.filter.evaluate import Evaluator, Evidence
from collector.filter.plan import Leaf, Plan, Sequence, Switch
from schemas.errors import UsageError

GATE = 42  # Ethernet, IPv4 and UDP headers: longer frames take the straight way
SHORTEST = 14  # an Ethernet header; XDP sees nothing shorter
CONTEXT = -8  # where on the stack the program's context is
# offsets in scratch: a bit for each word of the hits that is not zero; which sets are known; the hits
SUMMARY, SETS_KNOWN, HITS = 0, 56, 64
MAX_RULES = 4032  # the last word of the hits is for table rules
VERSIONS = 4  # of one test, for different evidence, before the general one is made
FRESH = 12  # instructions of a function that has only begun
LINEAR = 3  # arms compared one after the other
MANY = 8  # arms that are worth a look at their ends first


@dataclass
class Function:
    """A function on its way: its code and where it ends."""

    name: str
    code: Assembler
    end: Label


class Emitter:
    """Writes all functions of a plan. ``limit``: estimated instructions after which an arm is a function."""

    def __init__(self, graph: Graph, limit: int = 6000) -> None:
        self.graph = graph
        self.limit = limit
        self.functions: dict[str, Assembler] = {}
        self._sizes: dict[int, int] = {}
        self._beyond: dict[int, bool] = {}
        self._keep: list[Plan] = []

    def match(self, long: Plan, short: Plan) -> dict[str, Assembler]:
        """The functions; ``long`` is for frames of :data:`GATE` bytes and more."""
        body = self._open("match")
        code, low = body.code, Label()
        self._gate(code, GATE, low)
        Writer(self, body).plan(long, body.end, Evidence(GATE))
        code.jump(body.end)
        code.place(low)
        self._gate(code, SHORTEST, body.end)
        Writer(self, body).plan(short, body.end, Evidence(SHORTEST))
        self._close(body)
        return self.functions

    def outline(self, plan: Plan, evidence: Evidence) -> str:
        """A function of its own for ``plan``; its name."""
        body = self._open(f"part{len(self.functions)}")
        self._gate(body.code, evidence.length, body.end)
        Writer(self, body).plan(plan, body.end, Evidence(evidence.length))
        self._close(body)
        return body.name

    def cut(self, plan: Plan) -> list[Plan]:
        """A sequence as several of about the limit's size; anything else as it is."""
        if not isinstance(plan, Sequence):
            return [plan]
        cuts: list[list[Plan]] = [[]]
        for part in plan.parts:
            if cuts[-1] and sum(map(self.size, cuts[-1])) + self.size(part) > self.limit:
                cuts.append([])
            cuts[-1].append(part)
        return [Sequence(tuple(each)) for each in cuts]

    def _open(self, name: str) -> Function:
        code = self.functions[name] = Assembler()
        code.move(R7, R2)
        code.store(8, R10, CONTEXT, R1)
        code.load(4, R6, R1, 0)
        code.load(4, R9, R1, 4)
        return Function(name, code, Label())

    @staticmethod
    def _gate(code: Assembler, length: int, otherwise: Label) -> None:
        code.move(R1, R6)
        code.add(R1, length)
        code.jump_if_pointer(">", R1, R9, otherwise)

    @staticmethod
    def _close(body: Function) -> None:
        body.code.place(body.end)
        body.code.load(8, R0, R7, SUMMARY)
        body.code.leave()

    def looks_beyond(self, plan: Plan) -> bool:
        """Whether a plan may ask for more of the frame than :data:`GATE` bytes from its start."""
        known = self._beyond.get(id(plan))
        if known is None:
            if isinstance(plan, Leaf):
                known = any(map(self._far, self.graph.tested(plan.node)))
            elif isinstance(plan, Switch):
                known = self._far(plan.value) or any(self.looks_beyond(each) for _, _, each in plan.arms)
            else:
                known = any(map(self.looks_beyond, plan.parts))
            self._beyond[id(plan)] = known
            self._keep.append(plan)
        return known

    def _far(self, value: int) -> bool:
        operation, size, base, offset = self.graph.values[value]
        if operation == "load" and base < 0:
            return offset + size > GATE
        return value == LENGTH or any(map(self._far, self.graph.leaves[value] - {value, LENGTH}))

    def size(self, plan: Plan) -> int:
        """About how many instructions a plan becomes."""
        known = self._sizes.get(id(plan))
        if known is None:
            if isinstance(plan, Leaf):
                known = 8 + 8 * self.graph.size(plan.node)
            elif isinstance(plan, Switch):
                known = 8 + sum(3 + self.size(each) for _, _, each in plan.arms)
            else:
                known = sum(6 + self.size(each) for each in plan.parts)
            self._sizes[id(plan)] = known
            self._keep.append(plan)
        return known


class Writer:
    """Writes plans into one function."""

    def __init__(self, emitter: Emitter, function: Function) -> None:
        self.emitter = emitter
        self.graph = emitter.graph
        self.function = function
        self.code = function.code
        self.values = Evaluator(emitter.graph, function.code, CONTEXT)
        self._shared: dict[tuple[int, int, Evidence], Label] = {}

    def plan(self, plan: Plan, after: Label, evidence: Evidence) -> None:
        """Code for ``plan`` that goes to ``after`` in the end (by a jump, or by falling through)."""
        if self.emitter.size(plan) > self.emitter.limit and len(self.code) > FRESH:
            self._outline(plan, after, evidence)
        elif isinstance(plan, Leaf):
            Rule(self, plan.rule, after).node(plan.node, evidence)
        elif isinstance(plan, Sequence):
            self._sequence(plan, after, evidence)
        else:
            self._switch(plan, after, evidence)

    def _sequence(self, plan: Sequence, after: Label, evidence: Evidence) -> None:
        # those that look beyond what is known to be there come last: after each the packet is found anew
        parts = sorted(plan.parts, key=self.emitter.looks_beyond)
        for number, part in enumerate(parts):
            if number == len(parts) - 1:
                self.plan(part, after, evidence)
                return
            then, grown, moved = Label(), self.values.grown, self.values.moved
            self.plan(part, then, evidence)
            self.code.place(then)
            if self.values.moved != moved:
                evidence = Evidence(evidence.length)
            if self.values.grown != grown:
                self.values.refresh(evidence.length, self.function.end)
        self.code.jump(after)

    def _switch(self, plan: Switch, after: Label, evidence: Evidence) -> None:
        low, high, inside = plan.arms[0]
        if len(plan.arms) == 1 and high >= self.graph.spans[plan.value][1]:
            evidence = self.values.at_least(plan.value, low, evidence, after)
            self.plan(inside, after, evidence)
            return
        evidence = self.values.compute(plan.value, R1, evidence, after)
        labels = [self._label(each, after, evidence) for _, _, each in plan.arms]
        spans = [(low, high, label) for (low, high, _), (label, _) in zip(plan.arms, labels, strict=True)]
        if len(spans) > MANY:
            self._hull(plan.value, spans[0][0], spans[-1][1], after)
        self._search(spans, after)
        for (low, _, each), (label, new) in zip(plan.arms, labels, strict=True):
            if new:
                self.code.place(label)
                inside_evidence = evidence
                if self._proves(plan.value):
                    inside_evidence = self.values.at_least(plan.value, low, evidence, after)
                self.plan(each, after, inside_evidence)
                self.code.jump(after)

    def _proves(self, value: int) -> bool:
        return value == LENGTH or self.graph.values[value][0] == "room"

    def _label(self, plan: Plan, after: Label, evidence: Evidence) -> tuple[Label, bool]:
        """Where an arm's code is or will be, and whether it is still to be written."""
        key = (id(plan), id(after), evidence)
        if key in self._shared:
            return self._shared[key], False
        label = self._shared[key] = Label()
        return label, True

    def _outline(self, plan: Plan, after: Label, evidence: Evidence) -> None:
        """A plan that is too large for jumps to cross becomes functions of its own."""
        for part in self.emitter.cut(plan):
            name = self.emitter.outline(part, evidence)
            self.code.load(8, R1, R10, CONTEXT)
            self.code.move(R2, R7)
            self.code.call(name)
        self.values.grown += 1
        self.code.jump(after)

    def _hull(self, value: int, low: int, high: int, otherwise: Label) -> None:
        """What lies outside of all arms is done with: much traffic is, where rules ask for values near by."""
        least, most = self.graph.spans[value]
        if low > least:
            self.code.jump_if("<", R1, low, otherwise)
        if high < most:
            self.code.jump_if(">", R1, high, otherwise)

    def _search(self, arms: list[tuple[int, int, Label]], otherwise: Label) -> None:
        """Go to the arm that r1 lies in."""
        if len(arms) > LINEAR:
            middle, right = len(arms) // 2, Label()
            self.code.jump_if(">=", R1, arms[middle][0], right)
            self._search(arms[:middle], otherwise)
            self.code.place(right)
            self._search(arms[middle:], otherwise)
            return
        for low, high, label in arms:
            if low == high:
                self.code.jump_if("==", R1, low, label)
            elif low == 0:
                self.code.jump_if("<=", R1, high, label)
            else:
                self.code.jump_if("<", R1, low, otherwise)
                self.code.jump_if("<=", R1, high, label)
        self.code.jump(otherwise)


class Rule:
    """Writes the remaining tests of one rule."""

    def __init__(self, writer: Writer, rule: int, after: Label) -> None:
        self.writer = writer
        self.graph, self.code, self.values = writer.graph, writer.code, writer.values
        self.rule = rule
        self.after = after
        self._written: dict[int, list[tuple[Evidence, Label]]] = {}

    def node(self, node: int, evidence: Evidence) -> None:
        """Code for a test and all that follows it."""
        if node == FALSE:
            self.code.jump(self.after)
        elif node == TRUE:
            self._hit()
        else:
            label, evidence, new = self._version(node, evidence)
            if not new:
                self.code.jump(label)
                return
            self.code.place(label)
            self._test(node, evidence)

    def _version(self, node: int, evidence: Evidence) -> tuple[Label, Evidence, bool]:
        versions = self._written.setdefault(node, [])
        for given, label in versions:
            if evidence.covers(given):
                return label, given, False
        if len(versions) >= VERSIONS:
            evidence = Evidence(0)  # serves everyone from now on; its loads bring their own evidence
        versions.append((evidence, Label()))
        return versions[-1][1], evidence, True

    def _test(self, node: int, evidence: Evidence) -> None:
        value, low, high, inside, outside = self.graph.nodes[node]
        no = self.after if outside == FALSE else Label()
        operation, a, b, _ = self.graph.values[value]
        if high >= self.graph.spans[value][1] and (value == LENGTH or operation == "room") and low <= LONGEST:
            within = self.values.at_least(value, low, evidence, no)
            without = evidence if within.base == evidence.base else Evidence(evidence.length)
        elif operation == "&" and self.graph.is_constant(b) and (low, high) == (0, 0):
            within = without = self.values.compute(a, R1, evidence, self.after)
            self.code.jump_if("&", R1, self.graph.spans[b][0], no)
        else:
            within = without = self.values.compute(value, R1, evidence, self.after)
            self._compare(value, low, high, no)
        self.node(inside, within)
        if outside != FALSE:
            self.code.place(no)
            self.node(outside, without)

    def _compare(self, value: int, low: int, high: int, no: Label) -> None:
        least, most = self.graph.spans[value]
        if low == high:
            self.code.jump_if("!=", R1, low, no)
            return
        if low > least:
            self.code.jump_if("<", R1, low, no)
        if high < most:
            self.code.jump_if(">", R1, high, no)

    def _hit(self) -> None:
        code, word = self.code, self.rule // 64
        if word >= MAX_RULES // 64:
            raise UsageError(f"more than {MAX_RULES} rules; use address sets, or split them over hosts")
        _set_bit(code, HITS + 8 * word, self.rule % 64)
        _set_bit(code, SUMMARY, word)
        code.jump(self.after)


def _set_bit(code: Assembler, offset: int, bit: int) -> None:
    code.load(8, R2, R7, offset)
    if bit < 31:
        code.emit(0x47, R2, 0, 0, 1 << bit)
    else:
        code.constant64(R3, 1 << bit)
        code.emit(0x4F, R2, R3)
    code.store(8, R7, offset, R2)
