"""ClickHouse's own compressed blocks, as `compress=1` asks for and `decompress=1` announces.

A block: 16 bytes of CityHash128 over all that follows; one byte for the method; its own size from that byte
on and the size of its plain data, four bytes each; the data. Table files and the native protocol use the same
(https://clickhouse.com/docs/interfaces/http, "Compression").
"""

import struct
from collections.abc import Callable

from sinks.store.errors import (
    CANNOT_DECOMPRESS,
    CHECKSUM_DOESNT_MATCH,
    TOO_LARGE_SIZE_COMPRESSED,
    UNKNOWN_COMPRESSION_METHOD,
    StoreError,
)

PLAIN = 1 << 20  # bytes of an answer's data in one block, as a server has it
LARGEST = 128 << 20  # bytes that a block may hold: it is unpacked in memory
_HEAD = struct.Struct("<BII")
_SUM = 16
_LZ4 = 0x82


def _lz4(data: bytes, size: int) -> bytes:
    import lz4.block

    return bytes(lz4.block.decompress(data, uncompressed_size=size))


def _zstd(data: bytes, size: int) -> bytes:
    import zstandard

    return bytes(zstandard.ZstdDecompressor().decompress(data, max_output_size=size))


_METHODS: dict[int, Callable[[bytes, int], bytes]] = {0x02: lambda data, _: data, _LZ4: _lz4, 0x90: _zstd}


def _checksum(data: bytes) -> bytes:
    from clickhouse_cityhash.cityhash import CityHash128

    number: bytes = CityHash128(data).to_bytes(16, "little")
    return number[8:] + number[:8]  # the high half comes first


class Encoder:
    """An answer's pieces to blocks of a megabyte."""

    def __init__(self) -> None:
        self._held = bytearray()

    def compress(self, data: bytes) -> bytes:
        """The next piece; the blocks that are full."""
        self._held += data
        full = len(self._held) // PLAIN * PLAIN
        blocks = b"".join(_block(bytes(self._held[at : at + PLAIN])) for at in range(0, full, PLAIN))
        del self._held[:full]
        return blocks

    def flush(self) -> bytes:
        """The last block; none when there is no data."""
        rest, self._held = bytes(self._held), bytearray()
        return _block(rest) if rest else b""


def _block(plain: bytes) -> bytes:
    import lz4.block

    packed = lz4.block.compress(plain, store_size=False)
    block: bytes = _HEAD.pack(_LZ4, _HEAD.size + len(packed), len(plain)) + packed
    return _checksum(block) + block


class Decoder:
    """Blocks one after the other; ``eof`` after each that is whole, as Python's decompressors have it."""

    unused_data = b""

    def __init__(self) -> None:
        self._held = bytearray()

    @property
    def eof(self) -> bool:
        """Whether no block is open."""
        return not self._held

    def decompress(self, data: bytes) -> bytes:
        """The plain data of the blocks that are whole by now. Raises :class:`StoreError`."""
        self._held += data
        plain, start = [], 0
        while (end := self._end(start)) is not None:
            plain.append(_unpack(bytes(self._held[start:end])))
            start = end
        del self._held[:start]
        return b"".join(plain)

    def _end(self, start: int) -> int | None:
        """Where the block that starts there ends; None until that much has come."""
        if len(self._held) < start + _SUM + _HEAD.size:
            return None
        method, size, plain_size = _HEAD.unpack_from(self._held, start + _SUM)
        if method not in _METHODS:
            raise StoreError(UNKNOWN_COMPRESSION_METHOD, f"Unknown compression method: 0x{method:02x}")
        if size < _HEAD.size or max(size, plain_size) > LARGEST:
            message = f"A compressed block of {size} bytes for {plain_size}; at most {LARGEST}"
            raise StoreError(TOO_LARGE_SIZE_COMPRESSED, f"{message}. Most likely corrupted data")
        end = start + _SUM + size
        return int(end) if end <= len(self._held) else None


def _unpack(block: bytes) -> bytes:
    if _checksum(block[_SUM:]) != block[:_SUM]:
        raise StoreError(CHECKSUM_DOESNT_MATCH, "Checksum doesn't match: corrupted data")
    method, _, size = _HEAD.unpack_from(block, _SUM)
    plain = _METHODS[method](block[_SUM + _HEAD.size :], size)
    if len(plain) != size:
        raise StoreError(CANNOT_DECOMPRESS, f"A block has {len(plain)} bytes, not {size}")
    return plain
