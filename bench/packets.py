"""Packet-like events for benchmarks: 25 columns from the kernel, values as traffic has them."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas import declare, wire
from schemas.columns import Column, Dictionary
from schemas.declare import Stream

IP = {"type": "fixed", "name": "address", "size": 16}
TIME = {"type": "long", "logicalType": "timestamp-micros"}
REASONS = ["NOT_SPECIFIED", "NO_SOCKET", "PKT_TOO_SMALL", "TCP_CSUM", "SOCKET_FILTER", "NETFILTER_DROP",
           "OTHERHOST", "IP_RPFILTER", "SOCKET_RCVBUFF", "TCP_FLAGS"]  # fmt: skip
VERDICTS = ["pass", "drop", "sample", "redirect"]
COMMS = [f"worker-{number}" for number in range(40)]
SYMBOLS = [f"tcp_v{number % 2 + 4}_rcv_{number}" for number in range(60)]


def declared() -> Stream:
    """The declaration: 25 columns of every common kind."""

    def field(name: str, c: str, avro: Any = "long", **more: Any) -> dict[str, Any]:
        return {"name": name, "type": avro, "c.type": c, **more}

    fields = [
        field("ts", "u64", TIME, decode="ktime"),
        field("src", "u8[16]", IP, decode="ip"), field("dst", "u8[16]", "address", decode="ip"),
        field("src_port", "u16", "int"), field("dst_port", "u16", "int"),
        field("protocol", "u8", "int"), field("tcp_flags", "u8", "int"), field("ttl", "u8", "int"),
        field("tos", "u8", "int"), field("length", "u16", "int"), field("payload", "u16", "int"),
        field("ip_id", "u16", "int"), field("window", "u16", "int"),
        field("tcp_seq", "u32"), field("tcp_ack", "u32"), field("interface", "u32"),
        field("queue", "u16", "int"),
        field("cpu", "u16", "int"), field("mark", "u32"), field("latency_ns", "u32"),
        field("bytes", "u64", **{"c.bound": 2**62}), field("rule", "u32"),
        field("reason", "u32", "string", decode="enum:skb_drop_reason"),
        field("verdict", "u8", "string", decode="names:" + ",".join(VERDICTS)),
        field("comm", "char[16]", "string", decode="text"),
    ]  # fmt: skip
    for each in fields:
        if each["type"] == "address":
            each["type"] = {**IP, "name": f"address_{each['name']}"}
    record = {"type": "record", "name": "bench_packet", "c.from": "ring", "fields": fields,
              "ch.order": ["toStartOfFiveMinutes(ts)", "reason", "dst", "src", "ts"]}  # fmt: skip
    return declare.parse("bench_packet", record).streams[0]


STREAM = declared()


def _addresses(rng: np.random.Generator, rows: int, hosts: int) -> NDArray[np.uint8]:
    pool = np.zeros((hosts, 16), np.uint8)
    pool[:, 10:12] = 255
    pool[:, 12:] = rng.integers(0, 256, (hosts, 4))
    return pool[np.minimum(rng.zipf(1.3, rows) - 1, hosts - 1)]


def columns(rows: int, seed: int = 1, start_us: int = 0) -> dict[str, Column]:
    """Columns as a collector has them after decoding: times rise, few values are common, many are small."""
    rng = np.random.default_rng(seed)

    def small(high: int, dtype: Any) -> NDArray[Any]:
        return np.minimum(rng.zipf(1.5, rows), high - 1).astype(dtype)

    def named(values: list[str]) -> Dictionary:
        return Dictionary(values, np.minimum(rng.zipf(1.6, rows) - 1, len(values) - 1).astype(np.uint32))

    length = rng.choice([40, 52, 60, 576, 1500], rows, p=[0.35, 0.25, 0.1, 0.1, 0.2]).astype(np.uint16)
    return {
        "ts": start_us + np.cumsum(rng.exponential(20, rows)).astype(np.int64),
        "src": _addresses(rng, rows, 20_000), "dst": _addresses(rng, rows, 200),
        "src_port": rng.integers(1024, 65_536, rows).astype(np.uint16),
        "dst_port": rng.choice([80, 443, 53, 22, 8080, 9000], rows).astype(np.uint16),
        "protocol": rng.choice([6, 17], rows, p=[0.8, 0.2]).astype(np.uint8),
        "tcp_flags": rng.choice([2, 16, 17, 18, 24], rows).astype(np.uint8),
        "ttl": rng.choice([52, 57, 63, 64, 117, 128], rows).astype(np.uint8),
        "tos": np.zeros(rows, np.uint8), "length": length, "payload": np.maximum(length, 40) - 40,
        "ip_id": np.zeros(rows, np.uint16), "window": rng.choice([501, 502, 65_535], rows).astype(np.uint16),
        "tcp_seq": rng.integers(0, 2**32, rows).astype(np.uint32),
        "tcp_ack": np.where(rng.random(rows) < 0.7, 0, rng.integers(0, 2**32, rows)).astype(np.uint32),
        "interface": np.full(rows, 2, np.uint32), "queue": rng.integers(0, 4, rows).astype(np.uint16),
        "cpu": rng.integers(0, 4, rows).astype(np.uint16), "mark": np.zeros(rows, np.uint32),
        "latency_ns": (rng.lognormal(7, 1, rows)).astype(np.uint32),
        "bytes": length.astype(np.uint64) + 14, "rule": small(40, np.uint32),
        "reason": named(REASONS), "verdict": named(VERDICTS), "comm": named(COMMS),
    }  # fmt: skip


def messages(count: int, rows: int, start_us: int) -> list[bytes]:
    """``count`` batches of one host."""
    boot = bytes(range(16))
    return [
        wire.encode(
            STREAM, wire.Envelope("host-1", boot, seq), columns(rows, seq, start_us + seq * rows * 20)
        )
        for seq in range(count)
    ]


def row_schema() -> dict[str, Any]:
    """The ordinary schema, one record a row."""
    schema: dict[str, Any] = json.loads(json.dumps(wire.row_schema(STREAM)))
    return schema
