"""Kernel arrays to columns: the closed set of host-side decoders (schemas.declare.DECODERS).

No decoder runs a Python statement per event. Numbers that become strings are looked up once per distinct
value (collector.intern); everything else is one numpy expression.
"""

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collector import syscalls
from collector.cgroup import Cgroups
from collector.clock import Clock
from collector.intern import Numbers, Texts
from collector.ksym import Symbols
from schemas.columns import Column
from schemas.declare import Field, Stream
from schemas.errors import BpfleetError

Decoder = Callable[[NDArray[Any]], Column]
Enums = Mapping[str, Mapping[int, str]]
BLOCK_DEVICES = Path("/sys/dev/block")
MINOR_BITS = 20  # the kernel's own dev_t


def plain(values: NDArray[Any]) -> Column:
    """Numbers, arrays and bytes travel as they are."""
    return values


def device_name(number: int, directory: Path = BLOCK_DEVICES) -> str:
    """``vda`` for the kernel's dev_t; ``254:0`` if it is gone, empty for none."""
    if not number:
        return ""
    name = f"{number >> MINOR_BITS}:{number & ((1 << MINOR_BITS) - 1)}"
    try:
        return (directory / name).readlink().name
    except OSError:
        return name


def error_name(number: int) -> str:
    """``ENOENT`` for 2 and for -2; empty for 0, which is no error; a number that has no name stays one."""
    return errno.errorcode.get(abs(number), str(number)) if number else ""


def named(names: Mapping[int, str]) -> Callable[[int], str]:
    """Look a number up; one without a name stays a number."""
    return lambda value: names.get(value, str(value))


def short_names(values: Mapping[str, int]) -> dict[int, str]:
    """Number → name of a kernel enum, without the prefix that all its names share."""
    prefix = _shared_prefix(list(values))
    names: dict[int, str] = {}
    for name, value in values.items():
        names.setdefault(value, name.removeprefix(prefix))
    return names


def _shared_prefix(names: list[str]) -> str:
    """Up to the last underscore that nearly all names agree on: two (a first, a last) may differ."""
    best = ""
    for name in names[:3]:
        parts = name.split("_")
        for size in range(1, len(parts)):
            prefix = "_".join(parts[:size]) + "_"
            agree = sum(each.startswith(prefix) and len(each) > len(prefix) for each in names)
            if agree >= max(2, len(names) - 2) and len(prefix) > len(best):
                best = prefix
    return best


class Decoders:
    """Every decoder with the caches it keeps. ``enums``: names of each kernel enum, by the annotation."""

    def __init__(self, clock: Clock, cgroups: Cgroups, symbols: Symbols, enums: Enums | None = None) -> None:
        self.enums: Enums = enums or {}
        self._clock = clock
        self._cgroup = Numbers(cgroups.name)
        cgroups.changed = self._cgroup.cache.forget
        self._ksym = Numbers(symbols.name)
        self._device = Numbers(device_name)
        self._errno = Numbers(error_name)
        self._syscall = Numbers(named(syscalls.names()))
        self._made: dict[tuple[str, str], Decoder] = {}

    def columns(
        self, stream: Stream, *parts: NDArray[Any], now_us: int = 0, interval_us: int = 0
    ) -> dict[str, Column]:
        """The columns of a stream from equally long structured arrays, each holding some of its fields.

        Rings give one part, aggregates their keys and their values; ``now_us`` and ``interval_us`` fill
        the host-made columns of aggregates. Raises KeyError for a column that none of these makes.
        """
        rows = len(parts[0])
        places = {name: part for part in parts for name in part.dtype.names or ()}
        columns: dict[str, Column] = {}
        for field in stream.fields:
            if field.c is not None:
                columns[field.name] = self._decoder(stream, field)(places[field.name][field.name])
            elif field.decode in ("now", "interval"):
                value = now_us if field.decode == "now" else interval_us
                columns[field.name] = np.full(rows, value, np.int64)
        return columns

    def _decoder(self, stream: Stream, field: Field) -> Decoder:
        key = (stream.name, field.name)
        if key not in self._made:
            self._made[key] = self._make(stream, field)
        return self._made[key]

    def _make(self, stream: Stream, field: Field) -> Decoder:
        shared: dict[str, Decoder] = {
            "": plain, "ip": plain, "ktime": self._clock.wall_us, "cgroup": self._cgroup,
            "ksym": self._ksym, "device": self._device, "errno": self._errno, "syscall": self._syscall,
            "stack": plain,  # collector.stacks put the stack's name in the place of the kernel's
        }  # fmt: skip
        if field.decode in shared:
            return shared[field.decode]
        if field.decode == "text":
            return Texts()
        if field.decode == "names":
            return Numbers(named(dict(enumerate(field.argument.split(",")))))
        names = self.enums.get(field.argument)
        if names is None:
            raise BpfleetError(f"{stream.name}.{field.name}: this kernel has no enum {field.argument}")
        return Numbers(named(names))
