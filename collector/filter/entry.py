"""The function the kernel calls: the CPU's scratch is found, the rules are matched, and the C part goes on.

The three stand one behind the other in one function: a call for each frame costs as much as a look-up.
"""

from collector.filter.assembler import R0, R1, R2, R6, R7, R10, Assembler, Label
from collector.filter.emit import CONTEXT, SETS_KNOWN
from collector.filter.link import Piece, join
from schemas.errors import BpfleetError

LOOK_UP = 1  # bpf_map_lookup_elem
KEY = -4  # where on the stack
PASS = 2  # XDP_PASS
LEAVE = bytes([0x95]) + bytes(7)


def whole(scratch: int, match: Piece, rest: Piece) -> Piece:
    """``scratch``: number of the map; ``rest``: what takes context and scratch after the match."""
    ends = [at for at in range(0, len(match.code), 8) if match.code[at : at + 8] == LEAVE]
    if ends != [len(match.code) - 8]:
        raise BpfleetError("the matching code does not end where it should (a fault; please report it)")
    return join(_open_ended(_begin(scratch)), _open_ended(match), _open_ended(_go_on()), rest)


def _open_ended(piece: Piece) -> Piece:
    """Without the instruction that leaves, which is its last."""
    return Piece(piece.code[: -len(LEAVE)], piece.calls)


def _begin(scratch: int) -> Piece:
    """Context and scratch in r1 and r2, as ``match`` wants them."""
    code, found = Assembler(), Label()
    code.move(R6, R1)
    code.constant(R1, 0)
    code.store(4, R10, KEY, R1)
    code.emit(0x18, R1, 1, 0, scratch)
    code.emit(0x00)
    code.move(R2, R10)
    code.add(R2, KEY)
    code.emit(0x85, 0, 0, 0, LOOK_UP)
    code.jump_if_there(R0, found)
    code.constant(R0, PASS)
    code.leave()
    code.place(found)
    code.constant(R1, 0)
    code.store(4, R0, SETS_KNOWN, R1)
    code.move(R2, R0)
    code.move(R1, R6)
    code.leave()
    return Piece(code.finish())


def _go_on() -> Piece:
    code = Assembler()
    code.load(8, R1, R10, CONTEXT)
    code.move(R2, R7)
    code.leave()
    return Piece(code.finish())
