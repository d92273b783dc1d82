"""Values of a decision graph into registers, with the evidence that the verifier wants for each load."""

from dataclasses import dataclass

from collector.filter.assembler import R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10, Assembler, Label
from collector.filter.decision import COMPARISONS, LENGTH, LONGEST, Graph
from schemas.errors import UsageError

FREE = (R1, R2, R3, R4, R5, R0)
FLAGS = {"source": "source_sets", "destination": "destination_sets", "established": "established"}
TOO_DEEP = "the expression nests arithmetic too deeply; simplify it"


@dataclass(frozen=True)
class Evidence:
    """What comparisons on the way here have proved: bytes from the start, and bytes from r8 on."""

    length: int
    base: int = -1  # the value that r8 is the packet's start plus; -1: r8 is unknown
    room: int = 0

    def covers(self, other: "Evidence") -> bool:
        """Whether code that was written for ``other`` may run here."""
        return self.length >= other.length and (
            other.base < 0 or (self.base == other.base and self.room >= other.room)
        )


class Evaluator:
    """Writes computations into ``code``.

    ``grown`` and ``moved`` count how often the evidence on r6 was extended and r8 was changed, so that the
    writer knows what it can still rely on where paths meet.
    """

    def __init__(self, graph: Graph, code: Assembler, context: int) -> None:
        self.graph = graph
        self.code = code
        self.context = context
        self.grown = 0
        self.moved = 0

    def refresh(self, length: int, otherwise: Label) -> None:
        """Read the packet pointer anew and prove ``length`` bytes again."""
        self.code.load(8, R1, R10, self.context)
        self.code.load(4, R6, R1, 0)
        self.code.move(R1, R6)
        self.code.add(R1, length)
        self.code.jump_if_pointer(">", R1, R9, otherwise)

    def at_least(self, value: int, least: int, evidence: Evidence, otherwise: Label) -> Evidence:
        """Go to ``otherwise`` unless the value (the length, the room behind an offset, any) is ≥
        ``least``."""
        operation, base, _, _ = self.graph.values[value]
        if value == LENGTH:
            return self._length(least, evidence, otherwise)
        if operation == "room":
            return self._room(base, least, evidence, otherwise)
        evidence = self.compute(value, R1, evidence, otherwise)
        self.code.jump_if("<", R1, least, otherwise)
        return evidence

    def _length(self, least: int, evidence: Evidence, otherwise: Label) -> Evidence:
        if least > LONGEST:
            self.code.jump(otherwise)
            return evidence
        if least <= evidence.length:
            return evidence
        self.code.move(R1, R6)
        self.code.add(R1, least)
        self.code.jump_if_pointer(">", R1, R9, otherwise)
        self.grown += 1
        return Evidence(least, evidence.base, evidence.room)

    def _room(self, base: int, least: int, evidence: Evidence, otherwise: Label) -> Evidence:
        if least > LONGEST:
            self.code.jump(otherwise)
            return evidence
        if evidence.base == base and evidence.room >= least:
            return evidence
        self.moved += 1
        if evidence.base != base:
            evidence = self.compute(base, R1, evidence, otherwise)
            self._bound(base, R1, LONGEST - least, otherwise)
            self.code.move(R8, R6)
            self.code.add_register(R8, R1)
        self.code.move(R1, R8)
        self.code.add(R1, least)
        self.code.jump_if_pointer(">", R1, R9, otherwise)
        return Evidence(evidence.length, base, least)

    def compute(self, value: int, to: int, evidence: Evidence, fail: Label) -> Evidence:
        """The value into register ``to`` (r1); ``fail``: where a load goes that lacks evidence and bytes."""
        operation = self.graph.values[value][0]
        if operation in FLAGS:
            self._flag(value, to)
            return evidence
        return self._into(value, to, FREE[FREE.index(to) + 1 :], evidence, fail)

    def _flag(self, value: int, to: int) -> None:
        name, argument, _, _ = self.graph.values[value]
        self.code.load(8, R1, R10, self.context)
        self.code.move(R2, R7)
        self.code.call(FLAGS[name])
        self.code.move(to, R0)
        if argument:
            self.code.emit(0x77, to, 0, 0, argument)  # 64 bits to the right
        self.code.alu_constant("&", to, 1)

    def _into(self, value: int, to: int, free: tuple[int, ...], evidence: Evidence, fail: Label) -> Evidence:
        operation, a, _, _ = self.graph.values[value]
        if operation == "constant":
            self.code.constant(to, a)
        elif operation == "length":
            self.code.move(to, R9)
            self.code.subtract_register(to, R6)
        elif operation == "load":
            return self._load(value, to, free, evidence, fail)
        else:
            return self._operate(value, to, free, evidence, fail)
        return evidence

    def _load(self, value: int, to: int, free: tuple[int, ...], evidence: Evidence, fail: Label) -> Evidence:
        _, size, base, offset = self.graph.values[value]
        if base < 0:
            if offset + size > evidence.length:
                self.code.move(to, R6)
                self.code.add(to, offset + size)
                self.code.jump_if_pointer(">", to, R9, fail)
                self.grown += 1
                evidence = Evidence(offset + size, evidence.base, evidence.room)
            self._fetch(to, R6, offset, size)
            return evidence
        if evidence.base == base and evidence.room >= offset + size:
            self._fetch(to, R8, offset, size)
            return evidence
        if not free:
            raise UsageError(TOO_DEEP)
        evidence = self._into(base, to, free, evidence, fail)
        if offset + size > LONGEST:
            self.code.jump(fail)
            return evidence
        self._bound(base, to, LONGEST - offset - size, fail)
        self.code.add_register(to, R6)
        self.code.move(free[0], to)
        self.code.add(free[0], offset + size)
        self.code.jump_if_pointer(">", free[0], R9, fail)
        self._fetch(to, to, offset, size)
        return evidence

    def _bound(self, value: int, register: int, most: int, otherwise: Label) -> None:
        """Make the verifier see that an offset is not above ``most``."""
        if self.graph.spans[value][1] <= most and self._followed(value):
            return
        self.code.move32(register, register)
        self.code.jump_if(">", register, most, otherwise)

    def _followed(self, value: int) -> bool:
        """Whether the verifier follows the bounds of a value by itself."""
        operation, a, b, _ = self.graph.values[value]
        if operation in ("load", "constant"):
            return True
        return operation in ("+", "*", "&", "<<") and self.graph.is_constant(b) and self._followed(a)

    def _fetch(self, to: int, base: int, offset: int, size: int) -> None:
        if offset > 0x7FFF:
            self.code.move(to, base)
            self.code.add(to, offset)
            base, offset = to, 0
        self.code.load(size, to, base, offset)
        self.code.host_order(to, size)

    def _operate(
        self, value: int, to: int, free: tuple[int, ...], evidence: Evidence, fail: Label
    ) -> Evidence:
        operation, a, b, _ = self.graph.values[value]
        evidence = self._into(a, to, free, evidence, fail)
        if self.graph.is_constant(b) and operation not in COMPARISONS:
            self._with_constant(operation, to, self.graph.spans[b][0])
            return evidence
        if not free:
            raise UsageError(TOO_DEEP)
        other = free[0]
        evidence = self._into(b, other, free[1:], evidence, fail)
        if operation in ("<<", ">>"):
            few = Label()
            self.code.jump_if("<=", other, 32, few)
            self.code.constant(other, 32)
            self.code.place(few)
            self.code.shift64(operation, to, other)
            self.code.move32(to, to)
        elif operation == "room":
            self._minus(other, to)
            self.code.move(to, other)
        elif operation in COMPARISONS:
            true, end = Label(), Label()
            self.code.jump_if_register(operation, to, other, true)
            self.code.constant(to, 0)
            self.code.jump(end)
            self.code.place(true)
            self.code.constant(to, 1)
            self.code.place(end)
        else:
            self.code.alu(operation, to, other)
        return evidence

    def _with_constant(self, operation: str, to: int, k: int) -> None:
        if operation in ("<<", ">>") and k > 31:
            self.code.constant(to, 0)
        else:
            self.code.alu_constant(operation, to, k)

    def _minus(self, to: int, other: int) -> None:
        """to = max(0, to - other)"""
        enough = Label()
        self.code.jump_if_register(">=", to, other, enough)
        self.code.move32(to, other)
        self.code.place(enough)
        self.code.alu("-", to, other)
