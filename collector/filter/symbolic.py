"""Classic BPF to a decision graph, by running the program on symbols.

The meaning is that of libpcap's interpreter: 32-bit unsigned arithmetic, a load outside the frame or a
division by zero ends without a match, shifts by 32 and more give zero.
"""

from collections.abc import Callable, Sequence

from collector.filter.decision import FALSE, LENGTH, LONGEST, MAX, TRUE, Graph
from collector.filter.pcap import Instruction
from schemas.errors import UsageError
from schemas.filter_expression import PLACEHOLDER, PLACEHOLDER_BITS

ANCILLARY = (0xFFFFF004, 0xFFFFF008)  # packet type and interface of a socket filter (linux/filter.h)
MAX_INSTRUCTIONS = 900
MAX_NODES = 20_000
UNKNOWN = -1  # a word of scratch memory that was never written; libpcap's interpreter finds garbage there

_SIZES = {0x00: 4, 0x08: 2, 0x10: 1}
_ALU = {0x00: "+", 0x10: "-", 0x20: "*", 0x30: "/", 0x40: "|", 0x50: "&", 0x60: "<<", 0x70: ">>",
        0x90: "%", 0xA0: "^"}  # fmt: skip
_NEGATE = 0x80
_JUMP_EQUAL, _JUMP_GREATER, _JUMP_NOT_LESS, _JUMP_SET = 0x10, 0x20, 0x30, 0x40

State = tuple[int, int, tuple[int, ...]]  # accumulator, index register, scratch memory: values


class Machine:
    """One program on its way into a graph. ``flags`` gives the value behind each placeholder."""

    def __init__(self, graph: Graph, code: Sequence[Instruction], flags: Sequence[int]) -> None:
        self.graph = graph
        self.code = code
        self.flags = flags
        self._known: dict[tuple[int, State], int] = {}

    def run(self) -> int:
        """The node of the whole program. Raises :class:`UsageError` for one that cannot be taken."""
        if len(self.code) > MAX_INSTRUCTIONS:
            raise UsageError(
                f"the expression is too large ({len(self.code)} instructions, at most {MAX_INSTRUCTIONS}); "
                "use an address set or split the rule"
            )
        zero = self.graph.constant(0)
        return self._at(0, (zero, zero, (UNKNOWN,) * 16))

    def _at(self, at: int, state: State) -> int:
        key = (at, state)
        known = self._known.get(key)
        if known is None:
            if len(self._known) > MAX_NODES:
                raise UsageError("the expression has too many ways to match; split the rule")
            known = self._known[key] = self._straight(at, state)
        return known

    def _straight(self, at: int, state: State) -> int:
        """Run to the next jump or to the end; needs of loads wrap what follows them."""
        a, x, memory = state
        needs: list[tuple[int, int]] = []  # (value, least), in order: less ends without a match
        while True:
            each = self.code[at]
            kind = each.code & 7
            at += 1
            if kind in (0, 1):
                loaded = self._load(each, x, memory, needs)
                a, x = (loaded, x) if kind == 0 else (a, loaded)
            elif kind in (2, 3):
                place = each.k
                memory = (*memory[:place], a if kind == 2 else x, *memory[place + 1 :])
            elif kind == 4:
                a = self._arithmetic(each, a, x, needs)
            elif kind == 7:
                a, x = (x, x) if each.code & 0x80 else (a, a)
            elif kind == 6:
                end = self._end(each, a)
                break
            elif each.code & 0xF0 == 0:
                if each.k > len(self.code):
                    raise UsageError("protochain loops over headers; name the next header: `ip6 proto …`")
                at += each.k
            else:
                end = self._jump(each, at, (a, x, memory))
                break
        for value, least in reversed(needs):
            end = self.graph.test(value, least, MAX, end, FALSE)
        return end

    def _end(self, each: Instruction, a: int) -> int:
        if each.code & 0x18 == 0x10:  # the accumulator is the verdict
            return self.graph.test(a, 1, MAX, TRUE, FALSE)
        return TRUE if each.k else FALSE

    def _load(self, each: Instruction, x: int, memory: Sequence[int], needs: list[tuple[int, int]]) -> int:
        graph, mode, size = self.graph, each.code & 0xE0, _SIZES.get(each.code & 0x18, 4)
        if mode == 0x00:
            return graph.constant(each.k)
        if mode == 0x60:
            if memory[each.k] == UNKNOWN:
                raise UsageError(
                    "libpcap itself would look at memory that it never wrote (after `geneve` or `vxlan`, in "
                    "an alternative without one); put the alternatives into rules of their own"
                )
            return memory[each.k]
        if mode == 0x80:
            return LENGTH
        if mode == 0xA0:
            needs.append((LENGTH, each.k + 1))
            low = graph.operate("&", graph.load(1, -1, each.k), graph.constant(15))
            return graph.operate("<<", low, graph.constant(2))
        number = each.k + self._added(x) * (mode == 0x40) - PLACEHOLDER >> PLACEHOLDER_BITS
        if 0 <= number < len(self.flags):
            return self.flags[number]
        if mode == 0x20:
            if each.k in ANCILLARY:
                raise UsageError(
                    "`inbound`, `outbound` and `ifname` are not supported; give the rule a scope"
                )
            needs.append((LENGTH, min(each.k + size, LONGEST + 1)))
            return graph.load(size, -1, min(each.k, LONGEST))
        needs.append((graph.operate("room", x, LENGTH), min(each.k + size, LONGEST + 1)))
        return graph.load(size, x, min(each.k, LONGEST))

    def _added(self, value: int) -> int:
        """The constant part of a sum; else 0."""
        operation, *parts, _ = self.graph.values[value]
        known = [
            self.graph.spans[each][0] for each in parts if operation == "+" and self.graph.is_constant(each)
        ]
        return known[0] if known else 0

    def _arithmetic(self, each: Instruction, a: int, x: int, needs: list[tuple[int, int]]) -> int:
        operation = each.code & 0xF0
        if operation == _NEGATE:
            return self.graph.operate("-", self.graph.constant(0), a)
        other = x if each.code & 8 else self.graph.constant(each.k)
        if operation in (0x30, 0x90):
            needs.append((other, 1))
        if (operation in (0x30, 0x90)) and self.graph.spans[other] == (0, 0):
            return self.graph.constant(0)  # never reached
        return self.graph.operate(_ALU[operation], a, other)

    def _jump(self, each: Instruction, at: int, state: State) -> int:
        yes, no = self._at(at + each.jt, state), self._at(at + each.jf, state)
        graph, a, k = self.graph, state[0], each.k
        other = state[1] if each.code & 8 else graph.constant(k)
        operation = each.code & 0xF0
        if operation == _JUMP_SET:
            return graph.test(graph.operate("&", a, other), 1, MAX, yes, no)
        if graph.is_constant(other):
            k = graph.spans[other][0]
            spans: dict[int, Callable[[], tuple[int, int]]] = {
                _JUMP_EQUAL: lambda: (k, k),
                _JUMP_GREATER: lambda: (k + 1, MAX),
                _JUMP_NOT_LESS: lambda: (k, MAX),
            }
            return graph.test(a, *spans[operation](), yes, no)
        sign = {_JUMP_EQUAL: "==", _JUMP_GREATER: ">", _JUMP_NOT_LESS: ">="}[operation]
        return graph.test(graph.operate(sign, a, other), 1, 1, yes, no)


def decide(graph: Graph, code: Sequence[Instruction], flags: Sequence[int] = ()) -> int:
    """The decision graph of a classic BPF program."""
    return Machine(graph, code, flags).run()
