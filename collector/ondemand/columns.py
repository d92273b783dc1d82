"""What a probe's programs counted as columns of the stream `probe_result`. No Python statement per row."""

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collector.cgroup import Cgroups
from collector.clock import Clock
from collector.decode import Decoders
from collector.intern import Numbers
from collector.ksym import Symbols
from collector.ondemand.heap_estimate import Estimate
from collector.syscalls import names as syscall_names
from schemas.columns import Column, Dictionary
from schemas.declare import Stream
from schemas.probe_expression import Name
from schemas.probe_spec import KEYS, Checked, Key

LAST = (1 << 63) - 1
MERGED = {"kstack": "kernel_stack", "ustack": "user_stack"}


def same(text: str, rows: int) -> Dictionary:
    """One string in every row."""
    return Dictionary([text], np.zeros(rows, np.uint32))


def process_name(pid: int) -> str:
    """The name of a process's first thread; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except OSError:
        return ""


def bounds(checked: Checked, buckets: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(least, greatest) value of histogram buckets by their numbers."""
    number = buckets.astype(np.int64)
    if checked.value == "log2":
        low = np.where(number > 0, np.left_shift(1, np.maximum(number - 1, 0)), -LAST - 1)
        return low, np.where(number >= 63, LAST, np.left_shift(1, np.minimum(number, 62)) - 1)
    if checked.value == "linear":
        least, end, step = checked.linear
        low = least + (number - 1) * step
        high = np.minimum(low + step, end) - 1
        over = number > (end - least + step - 1) // step
        return (
            np.where(number == 0, -LAST - 1, np.where(over, end, low)),
            np.where(number == 0, least - 1, np.where(over, LAST, high)),
        )
    nothing = np.zeros(len(number), np.int64)
    return nothing, nothing


class Columns:
    """Decoders of one probe; what they know of cgroups is shared."""

    def __init__(self, cgroups: Cgroups) -> None:
        self._decoders = Decoders(Clock(), cgroups, Symbols())
        self._plain = Numbers(str)
        self._named = {
            "errno": Numbers(lambda number: errno.errorcode.get(number, str(number))),
            "syscall": Numbers(lambda number: syscalls.get(number, str(number))),
        }
        self._cgroup = Numbers(cgroups.name)
        syscalls = syscall_names()

    def make(
        self, head: Mapping[str, Any], checked: Checked, keys: tuple[str, ...], stream: Stream,
        parts: tuple[NDArray[Any], ...], now_us: int, interval_us: int,
    ) -> dict[str, Column]:  # fmt: skip
        """Columns from the arrays of a ring (one part) or of an aggregate (keys and values).

        ``head``: probe, revision and value; ``keys``: the struct's field of each key.
        """
        rows = len(parts[0])
        raw = {name: part[name] for part in parts for name in part.dtype.names or ()}
        decoded = self._decoders.columns(stream, *parts)
        columns = self._empty(rows)
        columns |= {name: same(str(head[name]), rows) for name in ("probe", "value")}
        columns["revision"] = np.full(rows, head["revision"], np.int64)
        columns["interval_us"] = np.full(rows, interval_us, np.int64)
        if checked.value == "event":
            columns["ts"], columns["count"] = decoded["ts"], raw["weight"].astype(np.int64)
        else:
            columns["ts"] = np.full(rows, now_us, np.int64)
            columns["count"], columns["sum"] = raw["count"].astype(np.int64), raw["sum"].astype(np.int64)
            columns["bucket_from"], columns["bucket_to"] = bounds(checked, raw["bucket"])
        self._keys(columns, checked, keys, raw, decoded)
        return columns

    def outstanding(
        self, head: Mapping[str, Any], checked: Checked, pid: int, estimate: Estimate,
        stacks: NDArray[np.uint64], now_us: int,
    ) -> dict[str, Column]:  # fmt: skip
        """Columns of what one process has allocated and not given back."""
        rows = len(estimate.stack)
        columns = self._empty(rows)
        columns |= {name: same(str(head[name]), rows) for name in ("probe", "value")}
        columns["revision"] = np.full(rows, head["revision"], np.int64)
        columns |= {"interval_us": np.zeros(rows, np.int64), "names": same("", rows)}
        columns |= {"ts": np.full(rows, now_us, np.int64), "pid": np.full(rows, pid, np.int64)}
        columns |= {"comm": same(process_name(pid), rows), "user_stack": stacks.astype(np.int64)}
        columns |= {"count": estimate.count, "sum": estimate.bytes, "error": estimate.error}
        return columns

    def _keys(
        self, columns: dict[str, Column], checked: Checked, keys: tuple[str, ...],
        raw: Mapping[str, NDArray[Any]], decoded: Mapping[str, Column],
    ) -> None:  # fmt: skip
        others = []
        for key, name in zip(checked.keys, keys, strict=True):
            if key.standard:
                assert isinstance(key.tree, Name)
                self._standard(columns, key.tree.name, raw[name], decoded[name])
                continue
            others.append(key.name)
            number = len(others)
            if isinstance(decoded[name], Dictionary):
                columns[f"key{number}"] = decoded[name]
            else:
                columns[f"int{number}"] = raw[name].astype(np.int64)
                columns[f"key{number}"] = self._namer(checked, key)(raw[name])
        columns["names"] = same(",".join(others), len(columns["ts"]))

    def _standard(self, columns: dict[str, Column], name: str, raw: NDArray[Any], decoded: Column) -> None:
        if name == "cgroup":
            columns["cgroup"] = self._cgroup(raw)
        elif name == "comm":
            columns["comm"] = decoded
        else:
            columns[MERGED.get(name, name)] = raw.astype(np.int32 if name == "cpu" else np.int64)

    def _namer(self, checked: Checked, key: Key) -> Numbers:
        """How a number reads: errors and system calls have names."""
        if isinstance(key.tree, Name):
            if key.tree.name == "errno":
                return self._named["errno"]
            if key.tree.name == "id" and checked.at.parts[0] == "raw_syscalls":
                return self._named["syscall"]
        return self._plain

    def _empty(self, rows: int) -> dict[str, Column]:
        zero = np.zeros(rows, np.int64)
        columns: dict[str, Column] = {f"key{n}": same("", rows) for n in range(1, KEYS + 1)}
        columns |= {f"int{n}": zero for n in range(1, KEYS + 1)}
        for name in ("pid", "kernel_stack", "user_stack", "sum", "bucket_from", "bucket_to", "error"):
            columns[name] = zero
        columns |= {"comm": same("", rows), "cgroup": same("", rows), "cpu": np.full(rows, -1, np.int32)}
        return columns
