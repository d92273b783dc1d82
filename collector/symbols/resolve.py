"""Addresses to frames: a process's mappings, the files behind them and the JIT's maps put together.

Everything kept is bounded; a process that is gone is resolved by what was learned of it while it lived.
"""

import re
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from collector.ksym import Symbols as KernelSymbols
from collector.symbols import space
from collector.symbols.demangle import Demangler
from collector.symbols.modules import Modules, PerfMaps
from collector.symbols.space import Mapped, Space

SPACES = 512  # processes whose mappings are kept
PLACES = 16_384  # resolved addresses kept
NAMES = 16_384  # demangled names kept
CHECK_S, REREAD_S = 1.0, 5.0  # a process is looked at, its mappings are read, no more often
PATIENCE_S = 60.0  # and this often, where time and again addresses are found that lie nowhere
LONGEST = 400  # letters of a frame
UNKNOWN = "[unknown]"
KERNEL, JIT = "[kernel]", "[jit]"
MANGLED = ("_Z", "_R")
_MODULE = re.compile(r"^(.*) \[(.*)\]$")
_UNCLEAN = str.maketrans({";": ",", "\n": " ", "\r": " ", "\t": " ", "\0": " "})


class Frame(NamedTuple):
    """One level of a stack."""

    function: str  # `module+0x…` without a symbol, `[unknown]` where nothing is known
    module: str  # short name of the file; `[kernel]`, `[jit]`, `[vdso]`; "" if unknown
    build_id: str = ""  # of the module, only where the address has no symbol


NOWHERE = Frame(UNKNOWN, "")


def is_unnamed(frame: Frame) -> bool:
    """Whether it lies in memory of no file, and no JIT has told its name (yet)."""
    return frame.module.startswith("[") and frame.function == frame.module


def clean(text: str) -> str:
    """A name that can stand in a folded stack."""
    return text.translate(_UNCLEAN)[:LONGEST]


class Symbols:
    """The one symboliser of a host. Not for two threads at once."""

    def __init__(self, kernel: KernelSymbols | None = None) -> None:
        self._kernel = kernel or KernelSymbols()
        self._modules, self._perf_maps, self._demangler = Modules(), PerfMaps(), Demangler()
        self._spaces: OrderedDict[int, Space] = OrderedDict()
        self._frames: OrderedDict[tuple[str, int, str, int], Frame] = OrderedDict()
        self._readable: OrderedDict[str, str] = OrderedDict()
        self._kept = 0  # frames that spaces have by address
        self._unread: list[tuple[dict[Any, Frame], Any]] = []  # where frames with mangled names are kept
        self._kernel_frames: dict[int, Frame] = {}
        self._mangled: set[str] = set()  # names that are to be asked for
        self._doubted: dict[int, float] = {}  # pid → when an address of it lay nowhere
        self._patience: dict[int, float] = {}  # pid → how long its mappings are believed nevertheless
        self._checked: dict[int, float] = {}  # pid → when it was last seen to run the program that is known

    def close(self) -> None:
        """Give the files back."""
        self._modules.close()
        self._perf_maps.close()
        self._demangler.close()

    def rest(self) -> None:
        """Give back what was not needed for a while; to be called now and then."""
        self._demangler.rest()

    # ── Kernel ───────────────────────────────────────────────────────────────────────────────────

    def kernel(self, addresses: NDArray[np.uint64]) -> list[Frame]:
        """Frames of kernel addresses, innermost first as they came."""
        if len(self._kernel_frames) > PLACES:
            self._kernel_frames.clear()
        return [self._kernel_frame(address) for address in _callers(addresses)]

    def _kernel_frame(self, address: int) -> Frame:
        found = self._kernel_frames.get(address)
        if found is None:
            name = self._kernel.name(address)
            parts = _MODULE.match(name)
            found = Frame(clean(parts[1]), f"[{parts[2]}]") if parts else Frame(clean(name), KERNEL)
            self._kernel_frames[address] = found
        return found

    # ── Processes ────────────────────────────────────────────────────────────────────────────────

    def look_at(self, pid: int) -> Space | None:
        """The mappings of a process, as they are or as they last were; None if never seen."""
        if not pid:
            return None
        known, now = self._spaces.get(pid), time.monotonic()
        if known is not None and now - self._checked.get(pid, 0.0) < CHECK_S:
            return known
        self._checked[pid] = now
        if len(self._checked) > 2 * SPACES:
            self._checked = {pid: now}
        if known is None or space.identity(pid) not in (known.identity, ()):
            known = self._read(pid)
        return known

    def _read(self, pid: int) -> Space | None:
        fresh, before = space.read(pid), self._spaces.get(pid)
        if fresh is None:
            return before
        if before is not None:
            fresh = fresh.following(before)
        self._spaces[pid] = fresh
        program = next((each for each in fresh.files if each.is_file), None)
        if program:
            self._modules.of(pid, program)  # its libraries others have, too; itself perhaps nobody
        self._spaces.move_to_end(pid)
        while len(self._spaces) > SPACES:
            self._spaces.popitem(last=False)
        return fresh

    def user(self, pid: int, addresses: NDArray[np.uint64]) -> list[Frame]:
        """Frames of a process's addresses, innermost first as they came."""
        return self.users([(pid, addresses)])[0]

    def users(self, stacks: Iterable[tuple[int, NDArray[np.uint64]]]) -> list[list[Frame]]:
        """Frames of many stacks: new names of all of them are demangled in one go."""
        return self._demangled([self._user(pid, addresses) for pid, addresses in stacks])

    def _user(self, pid: int, addresses: NDArray[np.uint64]) -> list[Frame]:
        where = self.look_at(pid)
        if where is None:
            return [NOWHERE] * len(addresses)
        if self._kept > PLACES:
            for each in self._spaces.values():
                each.named.clear()
            self._kept = 0
        callers = _callers(addresses)
        frames: list[Frame | None] = list(map(where.named.get, callers))
        if None in frames:
            return self._fresh(pid, where, callers, frames)
        return cast("list[Frame]", frames)

    def _fresh(self, pid: int, where: Space, callers: list[int], frames: list[Frame | None]) -> list[Frame]:
        """Frames of addresses some of which (None) were not named before."""
        places = [-1 if frame else where.place(each) for frame, each in zip(frames, callers, strict=True)]
        lost = any(at < 0 and frame is None for at, frame in zip(places, frames, strict=True))
        if lost and self._is_outdated(pid, where):
            where = self._read(pid) or where  # a library was loaded since, or another program
            frames = [None] * len(callers)
            places = [where.place(each) for each in callers]
        return [
            frame or self._frame(pid, where, at, address)
            for frame, at, address in zip(frames, places, callers, strict=True)
        ]

    def mapped(self, pid: int, address: int) -> tuple[Mapped, int] | None:
        """The file an address of a process lies in, and where in it."""
        where = self.look_at(pid)
        at = where.place(address) if where else -1
        if where is None or at < 0 or not where.files[at].is_file:
            return None
        return where.files[at], address - int(where.starts[at]) + int(where.offsets[at])

    def _is_outdated(self, pid: int, where: Space) -> bool:
        """Whether to read the mappings again: walks without frame pointers find addresses of nothing, too."""
        now = time.monotonic()
        if now - self._doubted.get(pid, -CHECK_S) < CHECK_S:
            return False
        self._doubted[pid] = now
        if len(self._doubted) > 2 * SPACES:
            self._doubted = {pid: now}
        found = space.identity(pid)
        if not found or found != where.identity:
            return bool(found)
        patience = self._patience.get(pid, REREAD_S)
        if now - where.read_at < patience:
            return False
        self._patience[pid] = min(2 * patience, PATIENCE_S)
        if len(self._patience) > 2 * SPACES:
            self._patience = {}
        return True

    def _frame(self, pid: int, where: Space, at: int, address: int) -> Frame:
        if at < 0:
            return NOWHERE
        file = where.files[at]
        if not file.is_file and file.path != "[vdso]":
            made = self._noted(self._jit(pid, file, address))
            if self._perf_maps.lacks(pid):
                self._keep(where.named, address, made)
            return made  # else it may mean another thing soon
        offset = address - int(where.starts[at]) + int(where.offsets[at])
        key = file.device, file.inode, file.path, offset
        found = self._frames.get(key)
        if found is None:
            found = self._noted(self._in_file(pid, file, offset))
            self._store(self._frames, key, found)
            if len(self._frames) > PLACES:
                self._frames.popitem(last=False)
        if file.is_file:
            self._keep(where.named, address, found)
        return found

    def _keep(self, named: dict[int, Frame], address: int, frame: Frame) -> None:
        self._kept += 1
        self._store(named, address, frame)

    def _store(self, table: dict[Any, Frame], key: object, frame: Frame) -> None:
        """Keep a frame; one whose name is to be asked for gets it later."""
        table[key] = frame
        if frame.function in self._mangled:
            self._unread.append((table, key))

    def _noted(self, frame: Frame) -> Frame:
        """A frame with its readable name; one whose name is not known yet waits until all are asked for."""
        if not frame.function.startswith(MANGLED):
            return frame
        known = self._readable.get(frame.function)
        if known is None:
            self._mangled.add(frame.function)
            return frame
        return frame._replace(function=known)

    def _in_file(self, pid: int, file: Mapped, offset: int) -> Frame:
        module = self._modules.of(pid, file)
        name = clean(file.name) or file.path
        if module.elf is None:
            return Frame(f"{name}+{offset:#x}", name)
        address = offset if file.path == "[vdso]" else module.elf.address(offset)
        function = module.function(address)
        if function:
            return Frame(clean(function), name)
        return Frame(f"{name}+{module.begin(address):#x}", name, module.elf.build_id)

    def _jit(self, pid: int, file: Mapped, address: int) -> Frame:
        name = self._perf_maps.name(pid, address)
        if name:
            return Frame(clean(name), JIT)
        return Frame(clean(file.path) or "[anonymous]", clean(file.path) or "[anonymous]")

    def has_more_names(self, pid: int) -> bool:
        """Whether a process's JIT has told names since they were read."""
        more = self._perf_maps.has_more(pid)
        if more and pid in self._spaces:
            self._spaces[pid].named.clear()
        return more

    # ── Names ────────────────────────────────────────────────────────────────────────────────────

    def _demangled(self, stacks: list[list[Frame]]) -> list[list[Frame]]:
        """With readable names, here and in what is kept; what nobody can read stays as it is."""
        if not self._mangled:
            return stacks
        fresh, self._mangled = sorted(self._mangled), set()
        read = {name: clean(text) for name, text in self._demangler.names(fresh).items()}
        self._readable |= read
        while len(self._readable) > NAMES:
            self._readable.popitem(last=False)

        for table, key in self._unread:
            frame = table.get(key)
            if frame is not None:
                table[key] = frame._replace(function=read.get(frame.function, frame.function))
        self._unread = []
        return [
            [
                frame if (name := read.get(frame.function)) is None else frame._replace(function=name)
                for frame in stack
            ]
            for stack in stacks
        ]


def _callers(addresses: NDArray[np.uint64]) -> list[int]:
    """Return addresses lie behind the call, perhaps in the next function: look at the byte before."""
    found: list[int] = addresses.tolist()
    return [*found[:1], *[each - 1 if each else 0 for each in found[1:]]]
