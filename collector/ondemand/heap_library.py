"""A library of the malloc family: its functions, the programs for them, and whom they watch."""

from pathlib import Path

from collector import loader
from collector.loader import Loaded
from collector.ondemand.binary import find
from collector.ondemand.elf import Elf
from schemas.errors import BpfleetError, UsageError
from schemas.probe_place import machine
from schemas.probe_spec import Checked

# function → its cookie in heap.bpf.c; all but free have a return
FREE = 4
FUNCTIONS = {
    "free": FREE, "malloc": 0, "valloc": 0, "memalign": 1, "aligned_alloc": 1, "calloc": 2, "realloc": 3,
}  # fmt: skip
MAX_PROCESSES = 8


def functions(binary: str, pids: list[int]) -> list[tuple[Path, dict[int, int]]]:
    """The library's files, and of each its functions: offset → cookie."""
    places = []
    for file in find(binary, pids):
        offsets: dict[int, int] = {}
        with Elf(file) as elf:
            for name, cookie in FUNCTIONS.items():
                try:
                    for offset, _ in elf.entries(name):
                        offsets.setdefault(offset, cookie)
                except BpfleetError:
                    if name in ("malloc", "free"):
                        raise
        places.append((file, offsets))
    return places


def is_glibc(file: Path) -> bool:
    """Whether sizes stand before allocations as in glibc."""
    with Elf(file) as elf:
        return elf.has("__libc_malloc") or elf.has("__libc_freeres")


def load(checked: Checked) -> Loaded:
    """The programs. Raises :class:`UsageError` where the kernel does not take them."""
    registers = machine()
    names = ("FIRST_ARGUMENT", "SECOND_ARGUMENT", "THIRD_ARGUMENT")
    defined = "".join(
        f"#define {name} ctx->{register}\n"
        for name, register in zip(names, registers.arguments[:3], strict=True)
    )
    text = (
        f"KERNEL_STRUCT(pt_regs, {', '.join(registers.members)})\n{defined}"
        f"#define RESULT ctx->{registers.result}\n#define CALLER ctx->{registers.here}\n"
        f"#define STACK_POINTER ctx->{registers.stack}\n#define FRAME_POINTER ctx->{registers.frame}\n"
        '#include "ondemand/heap.bpf.c"\n'
    )
    sample = 1 << max(checked.spec.sample - 1, 0).bit_length()
    result = loader.load([loader.Source("heap", text=text, attach=False, settings={"sample": sample})])
    if result.failed:
        raise UsageError(f"this kernel does not take it: {result.failed['heap']}")
    return result.loaded["heap"]


def processes(checked: Checked, pids: list[int]) -> list[int]:
    """Whom it watches. Raises :class:`BpfleetError`."""
    chosen = [checked.spec.pid] if checked.spec.pid else pids
    if not chosen:
        raise BpfleetError("there is no process in that cgroup")
    if len(chosen) > MAX_PROCESSES:
        raise UsageError(f"{len(chosen)} processes are in that cgroup, at most {MAX_PROCESSES} are watched")
    return chosen
