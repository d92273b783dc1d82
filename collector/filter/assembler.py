"""eBPF instructions with labels: what :mod:`collector.filter.emit` writes into.

Encoding: linux/bpf.h, https://www.kernel.org/doc/html/latest/bpf/standardization/instruction-set.html.
Registers are the numbers 0–10. Conditional jumps compare 32 bits, as classic BPF's values have.
"""

import struct
from dataclasses import dataclass, field

from schemas.errors import BpfleetError

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = range(11)
GO, LEAVE = 0x05, 0x95  # opcodes that nothing follows
REACH = 32_767  # instructions a jump can cross
SIZES = {4: 0x00, 2: 0x08, 1: 0x10, 8: 0x18}
ALU = {"+": 0x00, "-": 0x10, "*": 0x20, "/": 0x30, "|": 0x40, "&": 0x50, "<<": 0x60, ">>": 0x70,
       "neg": 0x80, "%": 0x90, "^": 0xA0, "=": 0xB0}  # fmt: skip
JUMPS = {"==": 0x10, ">": 0x20, ">=": 0x30, "&": 0x40, "!=": 0x50, "<": 0xA0, "<=": 0xB0}
_PACK = struct.Struct("<BBhi").pack


class TooFarError(BpfleetError):
    """A jump does not reach its label: the code must be cut into smaller functions."""


@dataclass
class Label:
    """A place in the code, known when :meth:`Assembler.place` was called."""

    at: int = -1


@dataclass
class Assembler:
    """The code of one function. Jumps are resolved by :meth:`finish`."""

    code: list[tuple[int, int, int, int]] = field(
        default_factory=list
    )  # opcode, registers, offset, immediate
    jumps: list[tuple[int, Label]] = field(default_factory=list)
    calls: list[tuple[int, str]] = field(default_factory=list)  # where other functions are called

    def __len__(self) -> int:
        return len(self.code)

    def emit(self, opcode: int, to: int = 0, source: int = 0, offset: int = 0, number: int = 0) -> None:
        """One raw instruction."""
        signed = number - (1 << 32) if number > 0x7FFFFFFF else number
        self.code.append((opcode, to | source << 4, offset, signed))

    def place(self, label: Label) -> None:
        """The label is here."""
        label.at = len(self.code)

    # --- moving and computing ---

    def move(self, to: int, source: int) -> None:
        """to = source, all 64 bits."""
        self.emit(0xBF, to, source)

    def move32(self, to: int, source: int) -> None:
        """to = the low 32 bits of source."""
        self.emit(0xBC, to, source)

    def constant(self, to: int, number: int) -> None:
        """to = number, of 32 bits."""
        self.emit(0xB4, to, 0, 0, number)

    def constant64(self, to: int, number: int) -> None:
        """to = number, of 64 bits."""
        self.emit(0x18, to, 0, 0, number & 0xFFFFFFFF)
        self.emit(0x00, 0, 0, 0, number >> 32)

    def add(self, to: int, number: int) -> None:
        """to += number, all 64 bits (pointers)."""
        self.emit(0x07, to, 0, 0, number)

    def add_register(self, to: int, source: int) -> None:
        """to += source, all 64 bits (pointers)."""
        self.emit(0x0F, to, source)

    def subtract_register(self, to: int, source: int) -> None:
        """to -= source, all 64 bits (pointers)."""
        self.emit(0x1F, to, source)

    def alu(self, operation: str, to: int, source: int) -> None:
        """to = to operation source, 32 bits."""
        self.emit(0x0C | ALU[operation], to, source)

    def alu_constant(self, operation: str, to: int, number: int) -> None:
        """to = to operation number, 32 bits."""
        self.emit(0x04 | ALU[operation], to, 0, 0, number)

    def shift64(self, operation: str, to: int, source: int) -> None:
        """to = to shifted by source, 64 bits."""
        self.emit(0x0F | ALU[operation], to, source)

    def host_order(self, to: int, size: int) -> None:
        """Turn ``size`` big-endian bytes that were loaded into a number."""
        if size > 1:
            self.emit(0xDC, to, 0, 0, size * 8)

    # --- memory ---

    def load(self, size: int, to: int, base: int, offset: int) -> None:
        """to = size bytes at base + offset."""
        self.emit(0x61 | SIZES[size], to, base, offset)

    def store(self, size: int, base: int, offset: int, source: int) -> None:
        """Size bytes at base + offset = source."""
        self.emit(0x63 | SIZES[size], base, source, offset)

    # --- control ---

    def jump(self, label: Label) -> None:
        """Go there."""
        self.jumps.append((len(self.code), label))
        self.emit(0x05)

    def jump_if(self, operation: str, register: int, number: int, label: Label) -> None:
        """Go there if the register's low 32 bits compare so with a number."""
        self.jumps.append((len(self.code), label))
        self.emit(0x06 | JUMPS[operation], register, 0, 0, number)

    def jump_if_pointer(self, operation: str, register: int, other: int, label: Label) -> None:
        """Go there if all 64 bits compare so."""
        self.jumps.append((len(self.code), label))
        self.emit(0x0D | JUMPS[operation], register, other)

    def jump_if_register(self, operation: str, register: int, other: int, label: Label) -> None:
        """Go there if the low 32 bits compare so."""
        self.jumps.append((len(self.code), label))
        self.emit(0x0E | JUMPS[operation], register, other)

    def jump_if_there(self, register: int, label: Label) -> None:
        """Go there unless the register, all 64 bits of it, is zero (a pointer to nothing)."""
        self.jumps.append((len(self.code), label))
        self.emit(0x55, register)

    def call(self, function: str) -> None:
        """Call a function of the same program; r1–r5 are its arguments and gone, r0 its answer."""
        self.calls.append((len(self.code), function))
        self.emit(0x85, 0, 1)

    def leave(self) -> None:
        """Return r0."""
        self.emit(0x95)

    def finish(self) -> bytes:
        """The code with jumps in place and without what nothing reaches; calls stay for the linker.

        Raises :class:`TooFarError`.
        """
        goals = self._goals()
        alive = self._alive(goals)
        moved, count = [], 0
        for each in alive:
            moved.append(count)
            count += each
        moved.append(count)
        out = []
        for at, (opcode, registers, offset, number) in enumerate(self.code):
            if not alive[at]:
                continue
            if at in goals:
                distance = moved[goals[at]] - moved[at] - 1
                if not -REACH <= distance <= REACH:
                    raise TooFarError(f"a jump over {distance} instructions")
                out.append(_PACK(opcode, registers, distance, number))
            else:
                out.append(_PACK(opcode, registers, offset, number))
        self.calls = [(moved[at], name) for at, name in self.calls if alive[at]]
        return b"".join(out)

    def _goals(self) -> dict[int, int]:
        """Where each jump goes; one to a plain jump goes on to where that one goes."""
        goals = {}
        for at, label in self.jumps:
            if label.at < 0:
                raise BpfleetError("a jump of the filter has no goal (a fault of bpfleet; please report it)")
            goals[at] = label.at
        for at, first in goals.items():
            goal = first
            while goal in goals and self.code[goal][0] == GO:
                goal = goals[goal]
            goals[at] = goal
        return goals

    def _alive(self, goals: dict[int, int]) -> list[bool]:
        """Which instructions can be reached and do something (a jump to the next does not)."""
        alive = [False] * len(self.code)
        todo = [0]
        while todo:
            at = todo.pop()
            while not alive[at]:
                alive[at] = True
                opcode = self.code[at][0]
                if at in goals:
                    if opcode == GO:
                        at = goals[at]
                        continue
                    todo.append(goals[at])
                if opcode == LEAVE:
                    break
                at += 1
        for at, goal in goals.items():
            if self.code[at][0] == GO and alive[at] and not any(alive[at + 1 : goal]) and goal > at:
                alive[at] = False
        return alive
