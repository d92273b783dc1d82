"""Where an on-demand probe looks: points by their text, `syscall:openat`, and which of them pair up.

    point = parse("function:libc:getaddrinfo")     # Point(kind="function", parts=("libc", "getaddrinfo"))

Every part is a name of a closed alphabet. Whether a host has the point, the host says.
"""

import re
from dataclasses import dataclass

from schemas.errors import UsageError

_NAME, _SYMBOL = r"[A-Za-z_][A-Za-z0-9_]{0,99}", r"[A-Za-z_][A-Za-z0-9_.$@]{0,254}"
_BINARY = r"[A-Za-z0-9_./+@-]{1,250}"
_PLACE = rf"{_SYMBOL}(?:\+(?:0x[0-9a-f]{{1,8}}|[0-9]{{1,9}}))?"
_SYMBOLS = rf"{_SYMBOL}(?:\|{_SYMBOL}){{0,7}}"  # any of them
_COUNT = r"[1-9][0-9]{0,9}"
# kind → the patterns of its parts; a last one that ends in "?" may be left out
KINDS: dict[str, tuple[str, ...]] = {
    "tracepoint": (_NAME, _NAME), "raw": (_NAME,), "syscall": (_NAME,),
    "uprobe": (_BINARY, rf"{_PLACE}|{_SYMBOLS}"), "uretprobe": (_BINARY, _SYMBOLS),
    "function": (_BINARY, _SYMBOLS),
    "usdt": (_BINARY, _NAME, _NAME), "heap": (_BINARY,),
    "software": (r"[a-z-]{1,40}", f"(?:{_COUNT})?"), "hardware": (r"[a-z-]{1,40}", f"(?:{_COUNT})?"),
    "profile": (_COUNT,),
    "kprobe": (_SYMBOL,), "kretprobe": (_SYMBOL,), "kfunction": (_SYMBOL,), "fentry": (_NAME,),
    "fexit": (_NAME,),
}  # fmt: skip
EXAMPLES = {
    "tracepoint": "tracepoint:sched:sched_process_exec", "raw": "raw:sched_switch",
    "syscall": "syscall:openat",
    "uprobe": "uprobe:libc:malloc", "uretprobe": "uretprobe:/bin/bash:readline",
    "function": "function:libc:getaddrinfo", "usdt": "usdt:libstdc++:libstdcxx:throw", "heap": "heap:libc",
    "software": "software:page-faults:100", "hardware": "hardware:cycles:1000000", "profile": "profile:99",
    "kprobe": "kprobe:do_unlinkat", "kretprobe": "kretprobe:do_unlinkat",
    "kfunction": "kfunction:do_unlinkat",
    "fentry": "fentry:do_unlinkat", "fexit": "fexit:do_unlinkat",
}  # fmt: skip
PAIRS = {"syscall", "function", "kfunction"}  # entry and return at once
USER = {"uprobe", "uretprobe", "function", "usdt", "heap"}  # in a binary
RETURNS = {"uretprobe", "kretprobe", "fexit"}
SOFTWARE = {
    "cpu-clock": 0, "task-clock": 1, "page-faults": 2, "context-switches": 3, "cpu-migrations": 4,
    "minor-faults": 5, "major-faults": 6, "alignment-faults": 7, "emulation-faults": 8,
}  # fmt: skip
HARDWARE = {
    "cycles": 0, "instructions": 1, "cache-references": 2, "cache-misses": 3, "branches": 4,
    "branch-misses": 5, "bus-cycles": 6, "stalled-cycles-frontend": 7, "stalled-cycles-backend": 8,
    "ref-cycles": 9,
}  # fmt: skip
LEAST_PERIOD = {"cpu-clock": 100_000, "task-clock": 100_000}  # ns; others count events
MAX_HERTZ = 1000


@dataclass(frozen=True)
class Point:
    """A place of the kernel or of a program."""

    kind: str
    parts: tuple[str, ...]

    def __str__(self) -> str:
        return ":".join((self.kind, *self.parts))

    @property
    def is_user(self) -> bool:
        """Whether it lies in a binary."""
        return self.kind in USER

    @property
    def functions(self) -> list[tuple[str, int]]:
        """Of a point in a binary: the functions that are meant, and how far behind their beginning."""
        return [
            (name, int(plus or "0", 0))
            for name, _, plus in (each.partition("+") for each in self.parts[1].split("|"))
        ]

    @property
    def pairs(self) -> bool:
        """Whether it is an entry and a return, with a latency between."""
        return self.kind in PAIRS

    @property
    def counts_events(self) -> bool:
        """Whether it comes once in so many events, rather than with the clock."""
        return self.kind in ("software", "hardware") and self.parts[0] not in LEAST_PERIOD

    @property
    def period(self) -> int:
        """Of a perf event: how many events, or nanoseconds, to one sample."""
        return int(self.parts[1]) if len(self.parts) > 1 else LEAST_PERIOD.get(self.parts[0], 1) * 100


def parse(text: str) -> Point:
    """Raises :class:`UsageError` that shows how such a point is written."""
    kind, *parts = text.strip().split(":")
    patterns = KINDS.get(kind)
    if patterns is None:
        raise UsageError(
            f"`{text}` is no point; points begin with {', '.join(KINDS)}, as in {EXAMPLES['syscall']}"
        )
    least = sum(not each.endswith("?") for each in patterns)
    fits = least <= len(parts) <= len(patterns) and all(
        re.fullmatch(pattern, part) for pattern, part in zip(patterns, parts, strict=False)
    )
    if not fits:
        raise UsageError(f"`{text}` is not written as {EXAMPLES[kind]}")
    point = Point(kind, tuple(each for each in parts if each))
    _check(point)
    return point


def _check(point: Point) -> None:
    if point.is_user and ".." in point.parts[0].split("/"):
        raise UsageError(f"`{point}`: a binary is a name, as libc, or an absolute path without ..")
    if point.is_user and "/" in point.parts[0] and not point.parts[0].startswith("/"):
        raise UsageError(f"`{point}`: a binary is a name, as libc, or an absolute path")
    known = {"software": SOFTWARE, "hardware": HARDWARE}.get(point.kind)
    if known is not None:
        if point.parts[0] not in known:
            raise UsageError(f"`{point}`: {point.kind} events are {', '.join(known)}")
        least = LEAST_PERIOD.get(point.parts[0], 1)
        if point.period < least:
            raise UsageError(f"`{point}`: the period is at least {least}")
    if point.kind == "profile" and int(point.parts[0]) > MAX_HERTZ:
        raise UsageError(f"`{point}`: at most {MAX_HERTZ} samples a second and CPU")
