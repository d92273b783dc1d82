"""A checked probe on this host: what its points have here, and how its programs are attached."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from collector import bpf_sys, tracefs
from collector.loader import Program
from collector.ondemand import attach, usdt
from collector.ondemand.binary import find
from collector.ondemand.elf import Elf
from collector.ondemand.instruction import STEPPED_NS
from schemas.errors import BpfleetError, UsageError
from schemas.probe_place import Bound, FunctionPlace, Place, TracepointPlace, bind_simple, read_format
from schemas.probe_point import HARDWARE, SOFTWARE, Point
from schemas.probe_spec import Checked

# What leads to a program and is not in its run time: measured on a virtual machine, decision 0081.
TRAP_NS, RETURN_TRAP_NS = 1000, 1500


@dataclass(frozen=True)
class Hooking:
    """How one program is attached: gives the descriptors that keep it so."""

    target: str  # the name of the loaded program
    attach: Callable[[Program], list[int]]
    trap_ns: int = 0


@dataclass(frozen=True)
class Binding:
    """Places for the generator, and hooks; what ends is attached before what begins."""

    bound: Bound
    hooks: tuple[Hooking, ...]


def bind(checked: Checked, pids: Iterable[int] = ()) -> Binding:
    """Raises :class:`BpfleetError` when this host has not what the probe needs."""
    at, pid = checked.at, checked.spec.pid
    pids = [pid] if pid else list(pids)
    if at.kind == "syscall":
        return _syscall(at.parts[0])
    if at.kind in ("function", "kfunction"):
        hooks = (_function(at, "end", True, pids, pid), _function(at, "begin", False, pids, pid))
        return Binding(
            Bound(
                FunctionPlace("begin", of_kernel=not at.is_user),
                FunctionPlace("end", True, of_kernel=not at.is_user),
                by_stack=True,
            ),
            hooks,
        )
    begin, first = _single(at, "begin", pids, pid)
    if checked.until is None:
        return Binding(Bound(begin), (first,))
    end, last = _single(checked.until, "end", pids, pid)
    if begin.hook == end.hook:
        raise UsageError(f"{at} cannot end what it begins; name another point with `until`")
    return Binding(Bound(begin, end), (last, first))


def _syscall(name: str) -> Binding:
    if not (tracefs.TRACEFS / "events/syscalls" / f"sys_enter_{name}").exists():
        raise UsageError(
            f"this kernel has no system call {name}; `ls {tracefs.TRACEFS}/events/syscalls` lists them"
        )
    begin, end = (_tracepoint("syscalls", f"sys_{side}_{name}") for side in ("enter", "exit"))
    return Binding(Bound(begin[0], end[0]), (end[1], begin[1]))


def _single(point: Point, label: str, pids: list[int], pid: int) -> tuple[Place, Hooking]:
    kind = point.kind
    if kind == "tracepoint":
        return _tracepoint(*point.parts)
    if kind == "raw":
        return bind_simple(point, label), Hooking(point.parts[0], _open_raw)
    if kind in ("fentry", "fexit"):
        raise UsageError(
            f"{point}: {kind} is not attached by bpfleet; take kprobe or, where that is missing, raw"
        )
    if kind in ("software", "hardware", "profile"):
        return bind_simple(point, label), Hooking("sample", lambda program: _samples(point, program.fd))
    if kind == "usdt":
        return _marker(point, label, pids, pid)
    returns = kind in ("uretprobe", "kretprobe")
    return FunctionPlace(label, returns, of_kernel=not point.is_user), _function(
        point, label, returns, pids, pid
    )


def _open_raw(program: Program) -> list[int]:
    return [bpf_sys.raw_tracepoint_open(program.fd)]


def _tracepoint(category: str, name: str) -> tuple[Place, Hooking]:
    tracefs.tracepoint_id(category, name)  # raises when it is not there
    text = (tracefs.TRACEFS / "events" / category / name / "format").read_text()
    place = TracepointPlace(category, name, read_format(text))

    def hook(program: Program) -> list[int]:
        return attach.attach([tracefs.tracepoint_event(category, name)], program.fd)

    return place, Hooking(f"{category}:{name}", hook)


def _samples(point: Point, prog_fd: int) -> list[int]:
    if point.kind == "profile":
        return attach.attach(attach.clock_events(int(point.parts[0])), prog_fd)
    number = (SOFTWARE if point.kind == "software" else HARDWARE)[point.parts[0]]
    fds = attach.sample_events(point.kind, number, point.period, point.parts[0])
    return attach.attach(fds, prog_fd)


def _function(point: Point, label: str, returns: bool, pids: list[int], pid: int) -> Hooking:
    if not point.is_user:
        name = point.parts[0]
        attach.kernel_check()

        def hook_kernel(program: Program) -> list[int]:
            return attach.attach([attach.kernel_event(name, returns=returns)], program.fd)

        return Hooking(label, hook_kernel)
    found = [(file, *entry) for file in find(point.parts[0], pids) for entry in _entries(file, point)]
    trap = RETURN_TRAP_NS if returns else TRAP_NS
    if not all(is_cheap for _, _, is_cheap in found):
        trap += STEPPED_NS

    def hook(program: Program) -> list[int]:
        fds: list[int] = []
        with attach.closing_on_failure(fds):
            for file in {file: None for file, _, _ in found}:
                offsets = [offset for each, offset, _ in found if each == file]
                fds.append(attach.functions(file, offsets, program.fd, returns=returns, pid=pid))
        return fds

    return Hooking(label, hook, trap)


def _entries(file: Path, point: Point) -> list[tuple[int, bool]]:
    """Where to put traps, and whether each is a cheap one. One of the functions has to be there."""
    found: dict[int, bool] = {}
    missing: list[BpfleetError] = []
    with Elf(file) as elf:
        for name, plus in point.functions:
            try:
                if plus:
                    found |= {at + plus: False for at in elf.functions(name)}
                else:
                    found |= dict(elf.entries(name))
            except BpfleetError as error:
                missing.append(error)
    if not found:
        raise missing[0]
    return list(found.items())


def _marker(point: Point, label: str, pids: list[int], pid: int) -> tuple[Place, Hooking]:
    found = {}
    for file in find(point.parts[0], pids):
        with Elf(file) as elf:
            found[file] = elf.markers(*point.parts[1:])
    texts = {each.arguments for markers in found.values() for each in markers}
    # Where a marker's places keep their arguments differently, none can be read by one program.
    arguments = usdt.arguments(texts.pop()) if len(texts) == 1 else {}

    def hook(program: Program) -> list[int]:
        fds: list[int] = []
        with attach.closing_on_failure(fds):
            for file, markers in found.items():
                offsets, semaphores = [m.offset for m in markers], [m.semaphore for m in markers]
                counted = semaphores if any(semaphores) else ()
                fds.append(attach.functions(file, offsets, program.fd, pid=pid, semaphores=counted))
        return fds

    return FunctionPlace(label, arguments=arguments, is_marker=True), Hooking(label, hook, TRAP_NS)


def explain(error: BpfleetError) -> str:
    """An error in one line, as it stands in an answer."""
    return " ".join(str(error).split())
