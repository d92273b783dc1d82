"""Compression in pieces, both ways: HTTP's, as clients of ClickHouse use it, and ClickHouse's own blocks."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from sinks.store import blocks
from sinks.store.errors import CANNOT_DECOMPRESS, UNKNOWN_COMPRESSION_METHOD, StoreError


class Encoder(Protocol):
    """Takes pieces in order; flush() ends the stream."""

    def compress(self, data: bytes) -> bytes:
        """The next piece, maybe empty."""
        ...

    def flush(self) -> bytes:
        """What is left."""
        ...


class _Lz4Encoder:
    def __init__(self) -> None:
        import lz4.frame

        self._frame = lz4.frame.LZ4FrameCompressor()
        self._begun = False

    def compress(self, data: bytes) -> bytes:
        begin = b"" if self._begun else self._frame.begin()
        self._begun = True
        return bytes(begin + self._frame.compress(data))

    def flush(self) -> bytes:
        begin = b"" if self._begun else self._frame.begin()
        return bytes(begin + self._frame.flush())


def _zstd_encoder() -> Any:
    import zstandard

    return zstandard.ZstdCompressor(level=1).compressobj()


def _zstd_decoder() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()


def _lz4_decoder() -> Any:
    import lz4.frame

    return lz4.frame.LZ4FrameDecompressor()


_ENCODERS: dict[str, Callable[[], Any]] = {
    "lz4": _Lz4Encoder,
    "zstd": _zstd_encoder,
    "gzip": lambda: zlib.compressobj(1, zlib.DEFLATED, 31),
    "deflate": lambda: zlib.compressobj(1, zlib.DEFLATED, 15),
}
BLOCKS = "ClickHouse"
_DECODERS: dict[str, Callable[[], Any]] = {
    BLOCKS: blocks.Decoder,
    "lz4": _lz4_decoder,
    "zstd": _zstd_decoder,
    "gzip": lambda: zlib.decompressobj(47),
    "deflate": lambda: zlib.decompressobj(15),
}


@dataclass(frozen=True, slots=True)
class Encoding:
    """How an answer travels: ``http`` names its Content-Encoding, ``in_blocks`` is `compress=1`."""

    http: str = ""
    in_blocks: bool = False

    def start(self) -> Encoder:
        """For one answer."""
        stages = [blocks.Encoder()] if self.in_blocks else []
        return _Chain([*stages, *([_ENCODERS[self.http]()] if self.http else [])])


PLAIN = Encoding()


class _Chain:
    """Encoders, each of which takes what the one before it gave."""

    def __init__(self, stages: list[Any]) -> None:
        self._stages = stages

    def compress(self, data: bytes) -> bytes:
        for stage in self._stages:
            data = stage.compress(data)
        return data

    def flush(self) -> bytes:
        data = b""
        for stage in self._stages:
            data = stage.compress(data) + stage.flush()
        return data


class Decoder:
    """A request's body, piece by piece, frame after frame; a broken or cut one is the client's error.

    ``in_blocks``: below its Content-Encoding it is ClickHouse's blocks (`decompress=1`).
    """

    def __init__(self, encoding: str, in_blocks: bool = False) -> None:
        self._stages = [_Stage(each) for each in (encoding, BLOCKS if in_blocks else "") if each]

    def feed(self, data: bytes) -> bytes:
        """The plain bytes of the next piece."""
        for stage in self._stages:
            data = stage.feed(data)
        return data

    def end(self) -> None:
        """The body is over: so must the compressed streams be."""
        for stage in self._stages:
            stage.end()


class _Stage:
    def __init__(self, encoding: str) -> None:
        if encoding != "identity" and encoding not in _DECODERS:
            raise StoreError(UNKNOWN_COMPRESSION_METHOD, f"Unknown compression method: {encoding[:32]}")
        self._encoding = encoding
        self._fresh = _DECODERS.get(encoding)
        self._frame: Any = None  # None between frames

    def feed(self, data: bytes) -> bytes:
        if self._fresh is None:
            return data
        plain = []
        while data:
            self._frame = self._frame or self._fresh()
            try:
                plain.append(bytes(self._frame.decompress(data)))
            except StoreError:
                raise
            except Exception as error:
                message = f"Cannot decompress {self._encoding} body: {error}"
                raise StoreError(CANNOT_DECOMPRESS, message) from None
            data = b""
            if self._frame.eof:
                data = bytes(self._frame.unused_data or b"")
                self._frame = None
        return b"".join(plain)

    def end(self) -> None:
        if self._frame is not None:
            raise StoreError(CANNOT_DECOMPRESS, f"The {self._encoding} body ends in the middle")


def choose(accepted: str) -> str:
    """The encoding of an answer: the first one named in Accept-Encoding that we have; empty for none."""
    names = (each.split(";")[0].strip().lower() for each in accepted.split(","))
    return next((name for name in names if name in _ENCODERS), "")
