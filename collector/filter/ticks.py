"""The kernel's jiffies: the clock that costs a filter program next to nothing to read (a few ms a tick)."""

import os
import struct
import time
from dataclasses import dataclass
from functools import cache

from collector import bpf_sys
from collector.bpf_map import Map, MapType
from collector.bpf_sys import ProgType
from collector.filter.assembler import R0, R1, R2, Assembler
from collector.filter.link import bind

JIFFIES64 = 118  # helper, linux/bpf.h
KNOWN = (100, 250, 300, 1000)  # CONFIG_HZ
SAMPLE_S = 0.06
FRAME = bytes(64)


@dataclass(frozen=True)
class Ticks:
    """The relation of jiffies to time."""

    hz: int
    jiffies: int  # at the moment below
    monotonic: float

    def at(self, wall: float) -> int:
        """Jiffies at a wall-clock time (seconds since 1970), not below 0."""
        ahead = wall - time.time() + time.monotonic() - self.monotonic
        return max(0, self.jiffies + round(ahead * self.hz))


@cache
def ticks() -> Ticks:
    """Measured once: a program that reads jiffies is run twice."""
    table = Map.create(MapType.ARRAY, 4, 8, 1, "jiffies")
    code = Assembler()
    code.emit(0x85, 0, 0, 0, JIFFIES64)
    code.emit(0x18, R1, 2, 0, 0)  # the map's value itself
    code.emit(0x00)
    code.store(8, R1, 0, R0)
    code.constant(R0, R2)
    code.leave()
    program = bpf_sys.prog_load(ProgType.XDP, bind(code.finish(), [table.fd]), "jiffies")
    try:
        first, begin = _read(program, table)
        time.sleep(SAMPLE_S)
        last, end = _read(program, table)
    finally:
        os.close(program)
        table.close()
    rate = (last - first) / (end - begin)
    return Ticks(min(KNOWN, key=lambda hz: abs(hz - rate)), last, end)


def _read(program: int, table: Map) -> tuple[int, float]:
    bpf_sys.prog_test_run(program, FRAME)
    now = time.monotonic()
    value = table.lookup(bytes(4))
    assert value is not None
    return struct.unpack("=Q", value)[0], now
