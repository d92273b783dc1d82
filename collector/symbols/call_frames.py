"""Where a function without frame pointer has its return address: the call frame information of an ELF file.

    rule = call_frames.rule(fd, offset)     # of the instruction that calls; None: not known
    rule.size, rule.saved                   # 16, 0: the return address lies at sp + 16 - 8
    call_frames.starts(fd).before(address)  # where the function begins, whatever its name was

Compilers describe it for exceptions in .eh_frame, and .eh_frame_hdr is its index (Linux Standard Base;
DWARF 5, 6.4). Any bytes may come: only what is needed is read, by pread, in bounded steps. x86-64 only.
"""

import os
import platform
import struct
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from collector.symbols import elf

PT_GNU_EH_FRAME = 0x6474E550
# Version 1; places relative to the field, the count in 4 bytes, pairs of 4 bytes relative to the index.
ENCODINGS = b"\x01\x1b\x03\x3b"
RECORD_BYTES, STEPS = 4096, 500
FRAME_POINTER, STACK_POINTER = 6, 7  # DWARF's numbers of rbp and rsp
SIZES = {0x00: 8, 0x02: 2, 0x03: 4, 0x04: 8, 0x0A: 2, 0x0B: 4, 0x0C: 8}  # of an encoded pointer
ADVANCE, OFFSET, RESTORE = 0x40, 0x80, 0xC0  # the upper two bits of an instruction
ADVANCES = {0x02: 1, 0x03: 2, 0x04: 4}  # instruction → bytes of its distance
REMEMBER, RECALL = 0x0A, 0x0B
MOST = 1 << 16  # bytes of a frame that is believed


class Rule(NamedTuple):
    """The frame of a function that keeps none, at one instruction, in bytes."""

    size: int  # from the stack pointer to just above the return address
    saved: int  # how far below that the caller's frame pointer was put; 0: it is still in its register


@dataclass(frozen=True)
class Starts:
    """Where the functions of a file begin, in order."""

    base: int
    places: memoryview  # of 32 bits, relative to it

    def before(self, address: int) -> int:
        """The beginning of the function that an address lies in, or behind; 0: it is not known."""
        at = bisect_right(self.places, address - self.base) - 1
        return self.base + self.places[at] if at >= 0 else 0


class _Invalid(ValueError):
    """Not what it should be, or not what we can read."""


class _Bytes:
    """Numbers one after the other."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.at = raw, 0

    def take(self, size: int) -> bytes:
        found = self.raw[self.at : self.at + size]
        if size < 0 or len(found) < size:
            raise _Invalid("it ends too early")
        self.at += size
        return found

    def number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def uleb(self) -> int:
        found = shift = 0
        while True:
            byte = self.number(1)
            found |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return found
            if shift > 63:
                raise _Invalid("a number without end")

    def sleb(self) -> int:
        start = self.at
        found = self.uleb()
        bits = 7 * (self.at - start)
        return found - (1 << bits) if found >> (bits - 1) else found


@dataclass
class _State:
    """What the instructions have said so far: the frame is at ``register + offset``."""

    register: int = 0
    offset: int = 0
    saved: int = 0  # of the frame pointer, below the frame
    known: bool = True  # the frame pointer's place can be told
    kept: "list[_State]" = field(default_factory=list)

    def copy(self) -> "_State":
        return replace(self, kept=[])


@dataclass(frozen=True)
class _Common:
    """What many functions share (a CIE)."""

    code: int
    data: int
    pointer: int  # the encoding of addresses
    instructions: bytes


def rule(fd: int, offset: int) -> Rule | None:
    """The rule at a place in the file; None where the frame pointer leads on, or nothing is known."""
    if platform.machine() != "x86_64":
        return None
    try:
        segments = elf.program_headers(fd)
        address = _moved(segments, offset, "offset", "vaddr")
        place = _described(fd, address, segments)
        return _rule(fd, address, place, segments) if place else None
    except (_Invalid, elf.InvalidElf, OSError, OverflowError, struct.error):
        return None


def starts(fd: int) -> Starts:
    """All that the index has; nothing where there is none, or one that we cannot read."""
    empty = Starts(0, memoryview(b"").cast("i"))
    try:
        segments = elf.program_headers(fd)
        index = segments[segments["type"] == PT_GNU_EH_FRAME]
        base, at = (int(index[0]["vaddr"]), int(index[0]["offset"])) if len(index) else (0, 0)
        count = _index_length(fd, at)
        raw = os.pread(fd, 8 * min(count, elf.FUNCTIONS), at + 12)
    except (elf.InvalidElf, OSError, OverflowError):
        return empty
    places = np.sort(np.frombuffer(raw[: len(raw) // 8 * 8], "<i4")[::2])
    return Starts(base, memoryview(places.tobytes()).cast("i"))


def _index_length(fd: int, at: int) -> int:
    """Entries of an index that we can read."""
    head = os.pread(fd, 12, at)
    if len(head) < 12 or head[:4] != ENCODINGS:
        return 0
    return int(struct.unpack_from("<I", head, 8)[0])


def _moved(segments: "NDArray[np.void]", place: int, of: str, to: str) -> int:
    """A place in the file as an address, or the other way round."""
    for each in segments[segments["type"] == elf.PT_LOAD]:
        start = int(each[of])
        if start <= place < start + int(each["filesz"]):
            return place - start + int(each[to])
    raise _Invalid("it is not in the file")


def _described(fd: int, address: int, segments: "NDArray[np.void]") -> int:
    """The address of the description (FDE) of the function an address may lie in; 0 without."""
    index = segments[segments["type"] == PT_GNU_EH_FRAME]
    if not len(index):
        return 0
    base, at = int(index[0]["vaddr"]), int(index[0]["offset"])
    low, high, found = 0, _index_length(fd, at), 0
    while low < high:
        middle = (low + high) // 2
        start, place = struct.unpack("<ii", os.pread(fd, 8, at + 12 + 8 * middle))
        if base + start <= address:
            found, low = base + place, middle + 1
        else:
            high = middle
    return found


def _record(fd: int, place: int) -> _Bytes:
    """A record behind its length."""
    (length,) = struct.unpack("<I", os.pread(fd, 4, place))
    if not 4 < length <= RECORD_BYTES:
        raise _Invalid("its length")
    return _Bytes(os.pread(fd, length, place + 4))


def _rule(fd: int, address: int, place: int, segments: "NDArray[np.void]") -> Rule | None:
    at = _moved(segments, place, "vaddr", "offset")
    record = _record(fd, at)
    common = _common(_record(fd, at + 4 - record.number(4)))
    if common.pointer != 0x1B:
        return None
    start = place + 8 + record.number(4, signed=True)
    if not start <= address < start + record.number(4):
        return None
    record.take(record.uleb())
    first = _run(_Bytes(common.instructions), common, _State(), None, 0)
    state = _run(_Bytes(record.raw[record.at :]), common, first.copy(), first, address - start)
    if state.register != STACK_POINTER or not state.known or not 8 <= state.offset <= MOST:
        return None
    return Rule(state.offset, state.saved)


def _common(record: _Bytes) -> _Common:
    if record.number(4) or record.number(1) not in (1, 3):
        raise _Invalid("not a version we know")
    end = record.raw.index(0, record.at) if 0 in record.raw[record.at :] else -1
    letters = record.take(end - record.at).decode("latin-1")
    record.take(1)
    code, data = record.uleb(), record.sleb()
    record.uleb()  # the register of the return address
    if not letters.startswith("z") or set(letters) - set("zPLR"):
        raise _Invalid("a frame of another kind")  # S: of a signal
    size = record.uleb()
    extra = _Bytes(record.take(size))
    pointer = 0
    for letter in letters[1:]:
        encoding = extra.number(1)
        if letter == "R":
            pointer = encoding
        elif letter == "P":
            extra.take(SIZES.get(encoding & 0x0F, -1))
    return _Common(code, data, pointer, record.raw[record.at :])


def _run(read: _Bytes, common: _Common, state: _State, first: _State | None, until: int) -> _State:
    """Follow the instructions up to a distance from the function's start. Raises :class:`_Invalid`."""
    here = 0
    for _ in range(STEPS):
        if read.at >= len(read.raw):
            return state
        byte = read.number(1)
        kind, low = byte & 0xC0, byte & 0x3F
        if kind == ADVANCE or byte in ADVANCES:
            here += (low if kind else read.number(ADVANCES[byte])) * common.code
            if here > until:
                return state
        elif kind == OFFSET:
            _put(state, low, read.uleb() * common.data)
        elif kind == RESTORE:
            _restore(state, low, first)
        elif byte == REMEMBER:
            state.kept.append(state.copy())
        elif byte == RECALL and state.kept:
            state = replace(state.kept[-1], kept=state.kept[:-1])
        elif not (_of_frame(read, byte, state) or _of_register(read, byte, common, state, first)):
            raise _Invalid(f"instruction {byte:#x}")
    raise _Invalid("it does not end")


def _of_frame(read: _Bytes, byte: int, state: _State) -> bool:
    """Where the frame is: DW_CFA_def_cfa and the like. Whether it was one of them."""
    if byte == 0x0C:
        state.register, state.offset = read.uleb(), read.uleb()
    elif byte == 0x0D:
        state.register = read.uleb()
    elif byte == 0x0E:
        state.offset = read.uleb()
    elif byte == 0x0F:  # an expression, as in the table of jumps to other files
        read.take(read.uleb())
        state.register = 0
    else:
        return False
    return True


def _of_register(read: _Bytes, byte: int, common: _Common, state: _State, first: _State | None) -> bool:
    """Where a register was put: DW_CFA_offset_extended and the like. Whether it was one of them."""
    if byte == 0x2E:  # the size of arguments
        read.uleb()
    elif byte == 0x05:
        _put(state, read.uleb(), read.uleb() * common.data)
    elif byte == 0x11:
        _put(state, read.uleb(), read.sleb() * common.data)
    elif byte == 0x06:
        _restore(state, read.uleb(), first)
    elif byte == 0x08:  # the same value
        _restore(state, read.uleb(), None)
    elif byte in (0x10, 0x16):  # an expression
        state.known &= read.uleb() != FRAME_POINTER
        read.take(read.uleb())
    else:
        return byte == 0x00  # nothing
    return True


def _put(state: _State, register: int, offset: int) -> None:
    if register == FRAME_POINTER:
        state.saved, state.known = -offset, 0 < -offset <= MOST


def _restore(state: _State, register: int, first: _State | None) -> None:
    if register == FRAME_POINTER:
        state.saved, state.known = (first.saved, first.known) if first else (0, True)
