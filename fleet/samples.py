"""Stored packet samples as numpy blocks: one fixed-size record a sample, with no Python statement per sample.

ClickHouse writes RowBinary, which for columns of fixed size is exactly the memory of a numpy record array.
Which samples stand for traffic: those that no rule decided on (slot 65535), and dropped ones. A frame that
a shadow rule matched is sampled for the rule *and* as passed traffic; counting both would count it twice.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.config import Clickhouse
from schemas.filter_expression import Judge

Block = NDArray[Any]  # of RECORD
Mask = NDArray[np.bool_]
# Names, how ClickHouse makes them, and as what they arrive.
FIELDS: tuple[tuple[str, str, Any], ...] = (
    ("ts", "toInt64(toUnixTimestamp64Micro(ts))", "<i8"),
    ("host", "cityHash64(host)", "<u8"),
    ("source", "toFixedString(reinterpretAsFixedString(source), 16)", "S16"),
    ("destination", "toFixedString(reinterpretAsFixedString(destination), 16)", "S16"),
    ("weight", "toUInt32(weight)", "<u4"),
    ("length", "toUInt32(length)", "<u4"),
    ("captured", "toUInt16(captured)", "<u2"),
    ("source_port", "toUInt16(source_port)", "<u2"),
    ("destination_port", "toUInt16(destination_port)", "<u2"),
    ("fragment", "toUInt16(fragment)", "<u2"),
    ("ethertype", "toUInt16(ethertype)", "<u2"),
    ("protocol", "toUInt8(protocol)", "u1"),
    ("ttl", "toUInt8(ttl)", "u1"),
    ("tcp_flags", "toUInt8(tcp_flags)", "u1"),
    ("verdict", "toUInt8(multiIf(verdict = 'drop', 1, verdict = 'shadow', 2, 0))", "u1"),
    ("established", "toUInt8(established)", "u1"),
    ("raw", "raw", ("u1", (128,))),
)
RECORD = np.dtype([(name, kind) for name, _, kind in FIELDS])
PASSED, DROPPED, SHADOW = 0, 1, 2  # values of `verdict`
TRAFFIC = "(verdict = 'drop' OR slot = 65535)"
BLOCK_ROWS = 65_536


def select(where: str, tail: str = "", source: str = "packet_sample") -> str:
    """The statement whose answer :func:`blocks` reads; ``where`` holds parameters only."""
    columns = ", ".join(f"{made} AS f_{name}" for name, made, _ in FIELDS)
    return f"SELECT {columns} FROM {source} WHERE {where} {tail}"


def blocks(client: Any, statement: str, parameters: Mapping[str, Any]) -> Iterator[Block]:
    """The answer in pieces as it arrives. ``client`` is of clickhouse-connect; its errors are not caught."""
    size = RECORD.itemsize
    with client.raw_stream(statement, parameters=dict(parameters), fmt="RowBinary") as body:
        held = b""
        while piece := body.read(BLOCK_ROWS * size):
            data = held + piece if held else piece
            whole = len(data) // size * size
            held = data[whole:]
            if whole:
                yield np.frombuffer(data, RECORD, whole // size)


def read(client: Any, where: str, parameters: Mapping[str, Any], tail: str = "") -> Block:
    """All of them in one block: for bounded questions."""
    found = list(blocks(client, select(where, tail), parameters))
    return np.concatenate(found) if found else np.empty(0, RECORD)


def untagged(block: Block) -> Block:
    """Frames as rules of fields see them: without their (up to two) VLAN tags; ``length`` stays."""
    for _ in range(2):
        kind = block["raw"][:, 12].astype(np.uint16) << 8 | block["raw"][:, 13]
        tagged = np.isin(kind, (0x8100, 0x88A8))
        if not tagged.any():
            break
        block = block.copy()
        block["raw"][tagged, 12:124] = block["raw"][tagged, 16:128]
        block["captured"][tagged] -= 4
    return block


def octets(block: Block, name: str) -> NDArray[np.uint8]:
    """A column of addresses as (rows, 16) bytes."""
    return np.ascontiguousarray(block[name]).view(np.uint8).reshape(-1, 16)


def judge(by: Judge, block: Block) -> Mask:
    """Which samples an expression matches."""
    return by.select(
        block["raw"], block["captured"], block["length"], octets(block, "source"),
        octets(block, "destination"), block["established"],
    )  # fmt: skip


def reader(config: Clickhouse) -> Any:
    """A client for these questions. Raises :class:`BpfleetError`."""
    from schemas.clickhouse import connect

    return connect(config)
