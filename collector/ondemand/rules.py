"""Functions without frame pointer on stacks that were told: where they have their return address.

For probes that walk stacks by bpf/common/call_frames.h. A file is read once for each place in it, in its own
process's root; whoever wrote the file is not trusted (collector/symbols/call_frames.py).
"""

import os
import struct
from collections import OrderedDict
from typing import Any

from collector.bpf_map import Map
from collector.symbols import Symbols, call_frames
from collector.symbols.modules import open_mapped
from schemas.errors import BpfleetError

FRAMELESS = 8  # as in call_frames.h
KEPT = 8192
Place = tuple[str, int, str, int]  # device, inode, path, offset


class Rules:
    """Fills one probe's map ``frame_rules``."""

    def __init__(self, table: Map) -> None:
        self._table = table
        self._known: OrderedDict[Place, call_frames.Rule | None] = OrderedDict()
        self._entered: set[tuple[int, int]] = set()  # pid, address

    def learn(self, record: Any, symbols: Symbols) -> bool:
        """Look at a stack that was told; whether such stacks will be longer from now on."""
        pid, count = int(record["pid"]), min(int(record["frames"]), FRAMELESS)
        grown = False
        for address in record["addresses"][:count].tolist():
            if (pid, address) in self._entered:
                continue
            rule = self._rule(pid, address, symbols)
            if rule is None:
                break  # its frame pointer leads on
            grown |= self._enter(pid, address, rule)
        return grown

    def _enter(self, pid: int, address: int, rule: call_frames.Rule) -> bool:
        if len(self._entered) >= KEPT:
            return False
        try:
            self._table.update(struct.pack("=QQ", pid, address), struct.pack("=II", *rule))
        except BpfleetError:
            return False  # it is full
        self._entered.add((pid, address))
        return True

    def _rule(self, pid: int, address: int, symbols: Symbols) -> call_frames.Rule | None:
        found = symbols.mapped(pid, address - 1)  # of the call before it
        if found is None:
            return None
        file, offset = found
        place = file.device, file.inode, file.path, offset
        if place not in self._known:
            self._known[place] = _read(pid, file, offset)
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        return self._known[place]


def _read(pid: int, file: Any, offset: int) -> call_frames.Rule | None:
    try:
        fd = open_mapped(pid, file)
    except OSError:
        return None
    try:
        return call_frames.rule(fd, offset)
    finally:
        os.close(fd)
