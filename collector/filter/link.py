"""Put functions together into one program the kernel takes: calls between them are relative."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.errors import BpfleetError

CALL, PSEUDO_CALL = 0x85, 1
LOAD_64, PSEUDO_FD, PSEUDO_VALUE = 0x18, 1, 2
_HEAD = struct.Struct("<BBhi")


@dataclass(frozen=True)
class Piece:
    """Code of a function and where it calls others: (instruction, name)."""

    code: bytes
    calls: Sequence[tuple[int, str]] = ()


def join(*pieces: Piece) -> Piece:
    """One function of the code of several, each of which goes on to the next at its end."""
    code, calls = b"", []
    for each in pieces:
        calls += [(len(code) // 8 + place, name) for place, name in each.calls]
        code += each.code
    return Piece(code, tuple(calls))


@dataclass(frozen=True)
class Linked:
    """A whole program, and where its functions start (in instructions), in order."""

    code: bytes
    starts: Mapping[str, int]


def link(pieces: Mapping[str, Piece], main: str) -> Linked:
    """One program that starts with ``main`` and holds what it calls, directly or not."""
    order = _reachable(pieces, main)
    starts, at = {}, 0
    for name in order:
        starts[name] = at
        at += len(pieces[name].code) // 8
    program = bytearray()
    for name in order:
        code = bytearray(pieces[name].code)
        for place, callee in pieces[name].calls:
            distance = starts[callee] - (starts[name] + place) - 1
            _HEAD.pack_into(code, 8 * place, CALL, PSEUDO_CALL << 4, 0, distance)
        program += code
    return Linked(bytes(program), starts)


def _reachable(pieces: Mapping[str, Piece], main: str) -> list[str]:
    order = [main]
    for name in order:
        if name not in pieces:
            raise BpfleetError(f"the filter calls {name}, which does not exist (a fault; please report it)")
        order += [callee for _, callee in dict.fromkeys(pieces[name].calls) if callee not in order]
    return list(dict.fromkeys(order))


def bind(code: bytes, fds: Sequence[int]) -> bytes:
    """Put map descriptors where the code has map numbers."""
    bound = bytearray(code)
    at = 0
    while at < len(bound):
        opcode, registers, offset, number = _HEAD.unpack_from(bound, at)
        wide = opcode == LOAD_64
        if wide and registers >> 4 in (PSEUDO_FD, PSEUDO_VALUE):
            _HEAD.pack_into(bound, at, opcode, registers, offset, fds[number])
        at += 16 if wide else 8
    return bytes(bound)
