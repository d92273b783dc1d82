"""What tests of mitigation share: packet samples as hosts make them, from frames, into a real store."""

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from schemas import ddl, declare
from schemas.columns import Dictionary
from schemas.config import Config
from schemas.wire import Batch, Envelope
from sinks import native
from sinks.writer import Table, Writer

STREAMS = declare.streams()
RAW = 128


def columns(frames: Sequence[bytes]) -> dict[str, np.ndarray]:
    """The columns that the XDP program fills from a frame's bytes (bpf/xdp/filter_parse.h)."""
    raw = np.zeros((len(frames), RAW), np.uint8)
    for at, frame in enumerate(frames):
        raw[at, : len(frame[:RAW])] = np.frombuffer(frame[:RAW], np.uint8)
    length = np.array([len(each) for each in frames], np.uint32)
    tagged = (raw[:, 12] == 0x81) & (raw[:, 13] == 0)
    behind = raw.copy()
    behind[tagged, 12:124] = raw[tagged, 16:128]
    return parsed(behind, length) | {"raw": raw}


def parsed(raw: np.ndarray, length: np.ndarray) -> dict[str, np.ndarray]:
    count = len(raw)
    kind = raw[:, 12].astype(np.uint16) << 8 | raw[:, 13]
    four, six = kind == 0x0800, kind == 0x86DD
    source, destination = np.zeros((count, 16), np.uint8), np.zeros((count, 16), np.uint8)
    for into, at4, at6 in ((source, 26, 22), (destination, 30, 38)):
        into[four, 10:12] = 255
        into[four, 12:] = raw[four, at4 : at4 + 4]
        into[six] = raw[six, at6 : at6 + 16]
    protocol = np.where(four, raw[:, 23], np.where(six, raw[:, 20], 0)).astype(np.uint8)
    fragment = np.where(four, raw[:, 20].astype(np.uint16) << 8 | raw[:, 21], 0)
    start = 14 + np.where(four, (raw[:, 14] & 15) * 4, 40)
    ported = np.isin(protocol, (6, 17)) & (fragment & 0x1FFF == 0) & (four | six)
    rows = np.arange(count)

    def word(offset: int) -> np.ndarray:
        value = raw[rows, start + offset].astype(np.uint16) << 8 | raw[rows, start + offset + 1]
        return np.where(ported, value, 0).astype(np.uint16)

    flags = np.where(ported & (protocol == 6), raw[rows, start + 13], 0).astype(np.uint8)
    return {
        "source": source, "destination": destination, "length": length, "ethertype": kind,
        "source_port": word(0), "destination_port": word(2), "fragment": fragment.astype(np.uint16),
        "captured": np.minimum(length, RAW).astype(np.uint16), "protocol": protocol,
        "ttl": np.where(four, raw[:, 22], np.where(six, raw[:, 21], 0)).astype(np.uint8),
        "tcp_flags": flags, "raw": raw,
    }  # fmt: skip


class Samples:
    """The tables of one database of the store, and the pen to write samples (and attacks) into it."""

    def __init__(self, url: str, name: str = "") -> None:
        self.config = Config(host="operator")
        self.config.clickhouse.url = url
        self.config.clickhouse.database = name or f"m{uuid.uuid4().hex[:12]}"
        self.writer = Writer(self.config.clickhouse)
        self.writer.execute(ddl.database(self.config.clickhouse))
        for each in ("packet_sample", "attack", "attack_event", "filter_stats", "desired", "applied"):
            for statement in ddl.create(STREAMS[each], self.config.clickhouse):
                self.writer.execute(statement)
        self.number = 0

    def put(
        self, host: str, frames: Sequence[bytes] | dict[str, np.ndarray], ts: Any, weight: Any = 1,
        verdict: str = "pass", established: Any = False, rule: str = "",
    ) -> None:  # fmt: skip
        """Samples of a host; ``ts`` in µs, ``weight``, ``established``: one, or one each."""
        made = dict(frames) if isinstance(frames, dict) else columns(frames)
        count = len(made["raw"])
        made |= {
            "ts": np.broadcast_to(np.asarray(ts, np.int64), count),
            "weight": np.broadcast_to(np.asarray(weight, np.uint32), count),
            "established": np.broadcast_to(np.asarray(established, np.uint8), count),
            "slot": np.full(count, 1 if rule else 65535, np.uint16), "ifindex": np.full(count, 2, np.uint32),
            "verdict": _same(verdict, count), "rule": _same(rule, count), "interface": _same("eth0", count),
        }  # fmt: skip
        self.rows("packet_sample", host, {name: np.ascontiguousarray(value) if isinstance(value, np.ndarray)
                                          else value for name, value in made.items()}, count)  # fmt: skip

    def rows(self, stream: str, host: str, made: dict[str, Any], count: int) -> None:
        """Columns of any stream, as the sink inserts them."""
        types = self.writer.columns(stream)
        batch = Batch(stream, Envelope(host, bytes(16), self.number), count, made)
        for day, part in native.split(batch):
            self.number += 1
            self.writer.insert(Table(stream, types), [part], f"{self.number}:{day}")

    def close(self) -> None:
        self.writer.execute(f"DROP DATABASE {ddl.quote(self.config.clickhouse.database)}")
        self.writer.close()


def _same(text: str, count: int) -> Dictionary:
    return Dictionary([text], np.zeros(count, np.uint32))
