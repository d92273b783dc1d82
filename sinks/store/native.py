"""The one block we write ourselves: the answer to clickhouse-go's greeting."""

import re
import struct

_GREETING = re.compile(
    r"\s*SELECT\s+displayName\(\),\s*version\(\),\s*revision\(\),\s*timezone\(\)", re.IGNORECASE
)
_CUSTOM_SERIALISATION = 54_454  # from here on a column says whether it is serialised in a way of its own


def greeting(text: str, revision: int, name: str, version: str, timezone: str) -> bytes:
    """clickhouse-go reads this block at its own protocol revision, and later ones at the one we announce.

    Announcing revision 0 makes the engine's plain Native right for all of them. Empty for any other text, and
    for a client of ``revision`` 0, who reads the engine's own answer.
    """
    if not revision or not _GREETING.match(text):
        return b""
    own = b"\x00" if revision >= _CUSTOM_SERIALISATION else b""
    block = b"\x01\x00\x02" + struct.pack("<i", -1) + b"\x00"  # block info: no overflow, no bucket
    block += b"\x04\x01"  # columns, rows
    for column, value in (("displayName()", name), ("version()", version)):
        block += _string(column) + _string("String") + own + _string(value)
    block += _string("revision()") + _string("UInt32") + own + struct.pack("<I", 0)
    return block + _string("timezone()") + _string("String") + own + _string(timezone)


def _string(text: str) -> bytes:
    data = text.encode()
    assert len(data) < 128  # one byte of length
    return bytes([len(data)]) + data
