"""The structs of bpf/xdp/filter_structs.h that Python writes and reads; sizes are compared with the
kernel's maps."""

import struct
from dataclasses import dataclass

import numpy as np

MAX_RULES = 4096
TABLE, TABLE_RULES = 4032, 64  # the first slot of table rules, and how many there are
MAX_SETS = 31  # bit 0 is the allow-list
NO_RULE = 0xFFFF
RULE = struct.Struct("=QQQIBBBB")
CONFIG = struct.Struct("=QIIIIQ")
FIELDS = struct.Struct("=16s16s16s16s16s16sIIIIHBBI")
CHUNK = np.dtype([("first", "<u4"), ("count", "<u4")])
SPAN = np.dtype([("start", "<u4"), ("sets", "<u4")])
SPAN6 = np.dtype([("high", "<u8"), ("low", "<u8"), ("sets", "<u4"), ("zero", "<u4")])
COUNTER = np.dtype([("packets", "<u8", (3,)), ("bytes", "<u8", (3,)), ("established", "<u8")])
SCRATCH = np.dtype(
    {
        "names": ["packets", "bytes", "allowed", "lost"],
        "formats": ["<u8"] * 4,
        "offsets": [8, 16, 576, 584],
        "itemsize": 792,
    }
)
TOP_KEY = np.dtype([("item", "u1", (16,)), ("kind", "u1"), ("verdict", "u1"), ("zero", "u1", (6,))])
TOP_VALUE = np.dtype([("packets", "<u8"), ("bytes", "<u8")])
SIZES = {
    "filter_rules": RULE.size, "filter_config": CONFIG.size, "filter_chunks": CHUNK.itemsize,
    "filter_spans": SPAN.itemsize, "filter_chunks6": CHUNK.itemsize, "filter_spans6": SPAN6.itemsize,
    "filter_counters": COUNTER.itemsize, "filter_scratch": SCRATCH.itemsize,
    "filter_top": TOP_VALUE.itemsize, "filter_fields": FIELDS.size,
}  # fmt: skip

ACTIONS = {"": 0, "drop": 1, "pass": 2, "sample": 3, "limit": 4}
MODES = {"shadow": 0, "enforce": 1}
VERDICTS = ("pass", "drop", "shadow")
TOP_KINDS = ("source", "source_net", "destination", "port", "length", "ttl")
SETS4, SETS6, LIMITS, ALLOWING, FOLLOWED = 1, 2, 8, 16, 32  # flags of the configuration
WINDOW_MS = 100  # of adaptive sampling
BURST_NS = 100_000_000  # what a limit lets through at once


@dataclass(frozen=True)
class Config:
    """What one update of the kernel's configuration puts in force."""

    flags: int = 0
    window: int = 0  # of sampling, jiffies
    budget: int = 0  # samples of passed traffic of a CPU in a window
    half: int = 0  # of filter_chunks
    half6: int = 0  # of filter_chunks6 and filter_hints6
    table: int = 0  # table rules, a bit for each

    def pack(self) -> bytes:
        """The struct."""
        return CONFIG.pack(self.flags, self.window, self.budget, self.half, self.half6, self.table)

    @classmethod
    def unpack(cls, value: bytes) -> "Config":
        """From the struct."""
        return cls(*CONFIG.unpack(value))


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
