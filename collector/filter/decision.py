"""Decision graphs: what a rule tests of a packet, shared and simplified.

A value is an expression over the packet (32 bits, unsigned, as in classic BPF); a test asks whether a value
lies in an interval. Both are hash-consed into one :class:`Graph`, so that equal means identical, and
:meth:`Graph.restrict` specialises a test to what is already known. A load outside the packet is never part of
a value's meaning: an explicit test on :data:`LENGTH` (or on the room behind a computed offset) precedes it.
"""

from collections.abc import Callable

MAX = 0xFFFFFFFF
FALSE, TRUE = 0, 1  # node numbers of the two ends
LENGTH = 0  # the value that is the frame's length
LONGEST = 0xFFFF  # of a frame: no linear XDP buffer is longer

Value = tuple[str, int, int, int]
Node = tuple[int, int, int, int, int]  # value, low, high, if inside, if outside

_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: (a + b) & MAX,
    "-": lambda a, b: (a - b) & MAX,
    "*": lambda a, b: (a * b) & MAX,
    "/": lambda a, b: a // b if b else 0,  # never asked: a test excludes it
    "%": lambda a, b: a % b if b else 0,
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
    "<<": lambda a, b: (a << b) & MAX if b < 32 else 0,
    ">>": lambda a, b: a >> b if b < 32 else 0,
    ">": lambda a, b: int(a > b),
    ">=": lambda a, b: int(a >= b),
    "==": lambda a, b: int(a == b),
    "room": lambda offset, length: max(0, length - offset),
}
COMPARISONS = {">", ">=", "=="}


class Graph:
    """All values and tests of a set of rules. Numbers stand for them; order of making is irrelevant."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.spans: list[tuple[int, int]] = []  # bounds of each value
        self.leaves: list[frozenset[int]] = []  # values that a value is computed from, itself included
        self.nodes: list[Node] = [(-1, 0, 0, 0, 0), (-1, 0, 0, 0, 0)]
        self._value_numbers: dict[Value, int] = {}
        self._node_numbers: dict[Node, int] = {}
        self._restricted: dict[tuple[int, int, int, int], int] = {}
        self._tested: dict[int, frozenset[int]] = {FALSE: frozenset(), TRUE: frozenset()}
        self._intern(("length", 0, 0, 0), (0, LONGEST), frozenset())

    def _intern(self, value: Value, span: tuple[int, int], parts: frozenset[int]) -> int:
        number = self._value_numbers.get(value)
        if number is None:
            number = self._value_numbers[value] = len(self.values)
            self.values.append(value)
            self.spans.append(span)
            self.leaves.append(parts | {number})
        return number

    # --- values ---

    def constant(self, number: int) -> int:
        """The value that is always ``number``."""
        return self._intern(("constant", number, 0, 0), (number, number), frozenset())

    def load(self, size: int, base: int, offset: int) -> int:
        """``size`` bytes of the frame, big-endian, at ``offset`` behind the value ``base`` (-1: its
        start)."""
        if base >= 0 and self.is_constant(base):
            base, offset = -1, offset + self.spans[base][0]
        parts = self.leaves[base] if base >= 0 else frozenset()
        return self._intern(("load", size, base, offset), (0, (1 << 8 * size) - 1), parts)

    def flag(self, name: str, argument: int = 0) -> int:
        """Something the program looks up elsewhere, 0 or 1: ``source`` or ``destination`` in set,
        ``state``."""
        return self._intern((name, argument, 0, 0), (0, 1), frozenset())

    def is_constant(self, value: int) -> bool:
        """Whether a value does not depend on the packet."""
        return self.values[value][0] == "constant"

    def operate(self, operation: str, a: int, b: int) -> int:
        """``a operation b``; the caller has excluded division by zero."""
        if self.is_constant(a) and self.is_constant(b):
            return self.constant(_OPERATIONS[operation](self.spans[a][0], self.spans[b][0]))
        if self.is_constant(b):
            simple = self._simplify(operation, a, self.spans[b][0])
            if simple >= 0:
                return simple
        span = self._span(operation, self.spans[a], self.spans[b])
        return self._intern((operation, a, b, 0), span, self.leaves[a] | self.leaves[b])

    def _simplify(self, operation: str, a: int, k: int) -> int:
        """The same as ``a operation k`` without an operation, or -1."""
        if operation == "&" and k & self._ones(a) == self._ones(a):
            return a
        neutral = {"+": 0, "-": 0, "|": 0, "^": 0, "<<": 0, ">>": 0, "*": 1, "/": 1}
        if neutral.get(operation) == k:
            return a
        return self.constant(0) if k == 0 and operation in ("*", "&") else -1

    def _ones(self, a: int) -> int:
        """A mask that holds every bit the value can have."""
        return (1 << self.spans[a][1].bit_length()) - 1

    @staticmethod
    def _span(operation: str, a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
        if operation in COMPARISONS:
            return 0, 1
        if operation == "&":
            return 0, min(a[1], b[1])
        if operation == "room":
            return 0, LONGEST
        if operation == "+" and a[1] + b[1] <= MAX:
            return a[0] + b[0], a[1] + b[1]
        if operation == "*" and a[1] * b[1] <= MAX:
            return a[0] * b[0], a[1] * b[1]
        if operation == "<<" and b[1] < 32 and a[1] << b[1] <= MAX:
            return a[0] << b[0], a[1] << b[1]
        if operation == ">>" and b[0] == b[1] < 32:
            return a[0] >> b[0], a[1] >> b[0]
        if operation == "/" and b[0] > 0:
            return 0, a[1] // b[0]
        if operation == "%":
            return 0, min(a[1], max(b[1] - 1, 0))
        return 0, MAX

    # --- tests ---

    def test(self, value: int, low: int, high: int, inside: int, outside: int) -> int:
        """The node that goes on ``inside`` if low ≤ value ≤ high, else ``outside``; reduced."""
        while True:
            least, most = self.spans[value]
            low, high = max(low, least), min(high, most)
            if low > high or inside == outside:
                return outside
            if (low, high) == (least, most):
                return inside
            rewritten = self._through(value, low, high)
            if rewritten is None:
                break
            value, low, high = rewritten
        node = (value, low, high, inside, outside)
        number = self._node_numbers.get(node)
        if number is None:
            number = self._node_numbers[node] = len(self.nodes)
            self.nodes.append(node)
        return number

    def _through(self, value: int, low: int, high: int) -> tuple[int, int, int] | None:
        """The same test asked of a simpler value, so that masks of a prefix become intervals."""
        operation, a, b, _ = self.values[value]
        if operation == "room" and self.is_constant(a):
            k = self.spans[a][0]
            return (LENGTH, low + k, high + k if high < LONGEST else LONGEST) if low > 0 else None
        if operation not in _OPERATIONS or not self.is_constant(b):
            return None
        k = self.spans[b][0]
        if operation in ("+", "-", "^", "*", "/"):
            return self._undone(operation, a, k, low, high)
        if operation in COMPARISONS:
            least, most = {">": (k + 1, MAX), ">=": (k, MAX), "==": (k, k)}[operation]
            return (a, least, most) if (low, high) == (1, 1) else None
        if operation == ">>":
            return (a, low << k, (high << k) | ((1 << k) - 1)) if k < 32 else None
        if operation != "&":
            return None
        rest = self._ones(a) & ~k
        if rest & (rest + 1) == 0 and low == high:  # the mask keeps the highest bits, all of them
            return (a, low, low | rest) if low & rest == 0 else (a, 1, 0)
        return None

    def _undone(self, operation: str, a: int, k: int, low: int, high: int) -> tuple[int, int, int] | None:
        """Where ``a`` lies when ``a operation k`` is in an interval; None if in more than one place."""
        most = self.spans[a][1]
        if operation == "/":
            return (a, low * k, min(high * k + k - 1, MAX)) if k else None
        if operation == "*" and most * k <= MAX:
            return a, -(-low // k), high // k
        if operation == "+" and most + k <= MAX:
            return a, low - k, high - k
        if low != high or (operation == "*" and k % 2 == 0):
            return None
        one = {
            "+": lambda: low - k, "-": lambda: low + k, "^": lambda: low ^ k,
            "*": lambda: low * pow(k, -1, MAX + 1),
        }[operation]() & MAX  # fmt: skip
        return a, one, one

    def tested(self, node: int) -> frozenset[int]:
        """Every value that a graph may test."""
        known = self._tested.get(node)
        if known is None:
            value, _, _, inside, outside = self.nodes[node]
            known = self._tested[node] = self.tested(inside) | self.tested(outside) | {value}
        return known

    def size(self, node: int) -> int:
        """How many tests a graph has."""
        seen: set[int] = set()
        todo = [node]
        while todo:
            each = todo.pop()
            if each > TRUE and each not in seen:
                seen.add(each)
                todo += self.nodes[each][3:]
        return len(seen)

    # --- specialisation ---

    def restrict(self, node: int, value: int, low: int, high: int) -> int:
        """``node`` where it is known that low ≤ value ≤ high."""
        if node <= TRUE:
            return node
        key = (node, value, low, high)
        known = self._restricted.get(key)
        if known is not None:
            return known
        asked, least, most, inside, outside = self.nodes[node]
        if asked == value:
            if low >= least and high <= most:
                result = self.restrict(inside, value, low, high)
            elif high < least or low > most:
                result = self.restrict(outside, value, low, high)
            else:
                result = self.test(
                    asked, least, most, self.restrict(inside, value, max(low, least), min(high, most)),
                    self.restrict(outside, value, low, high),
                )  # fmt: skip
        else:
            if low == high and value in self.leaves[asked]:
                asked = self._substitute(asked, value, low)
            yes, no = self.restrict(inside, value, low, high), self.restrict(outside, value, low, high)
            result = self.test(asked, least, most, yes, no)
        self._restricted[key] = result
        return result

    def _substitute(self, value: int, known: int, number: int) -> int:
        """``value`` computed anew with ``known`` being a constant."""
        if value == known:
            return self.constant(number)
        if known not in self.leaves[value]:
            return value
        operation, a, b, c = self.values[value]
        if operation == "load":
            return self.load(a, self._substitute(b, known, number), c)
        return self.operate(operation, self._substitute(a, known, number), self._substitute(b, known, number))

    def evaluate(self, node: int, packet: bytes) -> bool:
        """The verdict on a frame, by interpretation; for tests. Flags are 0."""
        while node > TRUE:
            value, low, high, inside, outside = self.nodes[node]
            node = inside if low <= self._compute(value, packet) <= high else outside
        return node == TRUE

    def _compute(self, value: int, packet: bytes) -> int:
        operation, a, b, c = self.values[value]
        if operation == "length":
            return len(packet)
        if operation == "constant":
            return a
        if operation == "load":
            start = c + (self._compute(b, packet) if b >= 0 else 0)
            return int.from_bytes(packet[start : start + a], "big")
        if operation not in _OPERATIONS:
            return 0
        return _OPERATIONS[operation](self._compute(a, packet), self._compute(b, packet))
