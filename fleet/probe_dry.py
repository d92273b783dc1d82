"""The C that a probe becomes, for people: as this machine's kernel would get it."""

from pathlib import Path

from schemas import probe_c
from schemas.errors import UsageError
from schemas.probe_place import Bound, FunctionPlace, Place, TracepointPlace, bind_simple, read_format
from schemas.probe_point import Point
from schemas.probe_spec import Checked

EVENTS = Path("/sys/kernel/tracing/events")
HEAP = Path(__file__).resolve().parent.parent / "bpf" / "ondemand" / "heap.bpf.c"


def source(checked: Checked) -> str:
    """Raises :class:`UsageError` for what the points do not have here."""
    if checked.at.kind == "heap":
        return HEAP.read_text()
    return probe_c.generate(checked, _bound(checked)).text


def _bound(checked: Checked) -> Bound:
    at = checked.at
    if at.kind == "syscall":
        enter, leave = (_tracepoint("syscalls", f"sys_{side}_{at.parts[0]}") for side in ("enter", "exit"))
        return Bound(enter, leave)
    if at.pairs:
        return Bound(FunctionPlace("begin"), FunctionPlace("end", True), by_stack=True)
    return Bound(_place(at, "begin"), _place(checked.until, "end") if checked.until else None)


def _place(point: Point, label: str) -> Place:
    if point.kind == "tracepoint":
        return _tracepoint(*point.parts)
    if point.kind == "usdt":
        return FunctionPlace(label, is_marker=True)
    return bind_simple(point, label)


def _tracepoint(category: str, name: str) -> Place:
    file = EVENTS / category / name / "format"
    try:
        return TracepointPlace(category, name, read_format(file.read_text()))
    except PermissionError:
        raise UsageError(f"cannot read {file}; run as root to see this probe's C") from None
    except OSError:
        raise UsageError(f"this machine has no tracepoint {category}:{name}; its hosts may have it") from None
