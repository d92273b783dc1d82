"""The structs of bpf/xdp/filter_structs.h that Python writes and reads; sizes are compared with the
kernel's maps."""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_RULES = 4096
MAX_SETS = 31  # bit 0 is the allow-list
NO_RULE = 0xFFFF
RULE = struct.Struct("=QQQIBBBB")
CONFIG = struct.Struct("=QIIII")
CHUNK = np.dtype([("first", "<u4"), ("count", "<u4")])
SPAN = np.dtype([("start", "<u4"), ("sets", "<u4")])
COUNTER = np.dtype([("packets", "<u8", (3,)), ("bytes", "<u8", (3,))])
SCRATCH = np.dtype(
    {
        "names": ["packets", "bytes", "allowed", "lost"],
        "formats": ["<u8"] * 4,
        "offsets": [520, 528, 560, 568],
        "itemsize": 632,
    }
)
TOP_KEY = np.dtype([("item", "u1", (16,)), ("kind", "u1"), ("verdict", "u1"), ("zero", "u1", (6,))])
TOP_VALUE = np.dtype([("packets", "<u8"), ("bytes", "<u8")])
SIZES = {
    "filter_rules": RULE.size, "filter_config": CONFIG.size, "filter_chunks": CHUNK.itemsize,
    "filter_spans": SPAN.itemsize, "filter_counters": COUNTER.itemsize, "filter_scratch": SCRATCH.itemsize,
    "filter_top": TOP_VALUE.itemsize,
}  # fmt: skip

ACTIONS = {"": 0, "drop": 1, "pass": 2, "sample": 3, "limit": 4}
MODES = {"shadow": 0, "enforce": 1}
VERDICTS = ("pass", "drop", "shadow")
TOP_KINDS = ("source", "source_net", "destination", "port", "length", "ttl")
SETS4, SETS6, LIMITS, ALLOWING = 1, 2, 8, 16  # flags of the configuration
SHIFTS = 24  # at most one packet in 2^23 is sampled
WINDOW_MS = 100  # of adaptive sampling
BURST_NS = 100_000_000  # what a limit lets through at once


@dataclass(frozen=True)
class Control:
    """A rule's part that changes by map update alone."""

    action: str = ""
    mode: str = "shadow"
    deadline: int = 0  # jiffies
    budget: int = 0  # samples of a CPU in a window
    packets_per_second: int = 0
    prefix: int = 32

    def pack(self) -> bytes:
        """The struct."""
        interval = 1_000_000_000 // self.packets_per_second if self.packets_per_second else 0
        burst = max(BURST_NS, interval)
        return RULE.pack(
            self.deadline,
            interval,
            burst,
            self.budget,
            ACTIONS[self.action],
            MODES[self.mode],
            self.prefix,
            0,
        )


def window_budget(per_second: int, cpus: int) -> int:
    """Samples that one CPU may take in a window so that all together take ``per_second``."""
    return max(1, round(per_second * WINDOW_MS / 1000 / cpus)) if per_second else 0


def gaps() -> NDArray[np.uint32]:
    """``filter_gaps``: means of 1024 equal slices of the exponential distribution (12 bits behind the point),
    then for each shift the factor (8 bits behind the point) that makes them gaps of mean 2^shift."""
    edges = np.arange(1025) / 1024
    rest = 1 - edges
    area = np.where(rest > 0, rest * np.log(np.where(rest > 0, rest, 1)), 0.0) + edges  # ∫ -ln(1-p) dp
    slices = np.round(np.diff(area) * 1024 * 4096).astype(np.uint64)
    factors = [0] + [_factor(slices, shift) for shift in range(1, SHIFTS)]
    return np.concatenate([slices, np.array(factors, np.uint64)]).astype(np.uint32)


def _factor(slices: NDArray[np.uint64], shift: int) -> int:
    """The factor whose mean gap, rounded down as the kernel does, is nearest to 2^shift; by halving."""
    low, high = 1, 1 << (shift + 9)
    while low < high:
        middle = (low + high) // 2
        if float((1 + (slices * np.uint64(middle) >> np.uint64(20))).mean()) < 2.0**shift:
            low = middle + 1
        else:
            high = middle
    return min(low, 0xFFFFFFFF)
