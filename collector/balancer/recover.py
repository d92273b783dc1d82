"""What lets a balancer be found again when something beside it was lost: pins of maps, or the state file.

The program in the kernel holds its maps, whoever unpinned them; and a copy of the ledger is pinned beside
them, in a map of its own, so that a lost or damaged state file does not make their numbers meaningless.
"""

import mmap
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from collector import bpf_sys
from collector.bpf_map import Map, MapType
from collector.bpf_sys import Command

LEDGER = "ledger"
_MMAPABLE = 1 << 10  # BPF_F_MMAPABLE
_ENTRY = mmap.PAGESIZE
_LENGTH = struct.Struct("=Q")


def pin_again(place: Path, program: Path, names: Iterable[str]) -> None:
    """Pin what is missing of these maps again, as far as the pinned program still holds it."""
    missing = {name for name in names if not (place / name).exists()}
    if not missing or not program.exists():
        return
    with bpf_sys.opened(bpf_sys.obj_get(program)) as fd:
        for number in bpf_sys.prog_maps(fd):
            found = Map.of(bpf_sys.fd_by_id(Command.MAP_FD_BY_ID, number))
            if found.name in missing:
                found.pin(place / found.name)
            found.close()


def keep(place: Path, content: bytes) -> None:
    """Pin a copy of the ledger, in the place of the one before."""
    entries = -(-(len(content) + _LENGTH.size) // _ENTRY)
    copy = Map.create(MapType.ARRAY, 4, _ENTRY, entries, LEDGER, flags=_MMAPABLE)
    try:
        with mmap.mmap(copy.fd, entries * _ENTRY) as memory:
            memory[: _LENGTH.size + len(content)] = _LENGTH.pack(len(content)) + content
        fresh = place / f"{LEDGER}_new"
        fresh.unlink(missing_ok=True)
        copy.pin(fresh)
        with suppress(FileNotFoundError):  # the balancer was taken down
            fresh.replace(place / LEDGER)
    finally:
        copy.close()


def kept(place: Path) -> bytes | None:
    """The copy; None if there is none."""
    if not (place / LEDGER).exists():
        return None
    copy = Map.pinned(place / LEDGER)
    try:
        with mmap.mmap(copy.fd, copy.max_entries * _ENTRY, prot=mmap.PROT_READ) as memory:
            (length,) = _LENGTH.unpack_from(memory)
            return bytes(memory[_LENGTH.size : _LENGTH.size + length])
    finally:
        copy.close()
