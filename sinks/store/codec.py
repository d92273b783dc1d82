"""HTTP compression, in pieces: what clients of ClickHouse use, both ways."""

import zlib
from collections.abc import Callable
from typing import Any, Protocol

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


ENCODERS: dict[str, Callable[[], Any]] = {
    "lz4": _Lz4Encoder,
    "zstd": _zstd_encoder,
    "gzip": lambda: zlib.compressobj(1, zlib.DEFLATED, 31),
    "deflate": lambda: zlib.compressobj(1, zlib.DEFLATED, 15),
}
_DECODERS: dict[str, Callable[[], Any]] = {
    "lz4": _lz4_decoder,
    "zstd": _zstd_decoder,
    "gzip": lambda: zlib.decompressobj(47),
    "deflate": lambda: zlib.decompressobj(15),
}


class Decoder:
    """A request's body, piece by piece, frame after frame; a broken or cut one is the client's error."""

    def __init__(self, encoding: str) -> None:
        if encoding not in ("", "identity") and encoding not in _DECODERS:
            raise StoreError(UNKNOWN_COMPRESSION_METHOD, f"Unknown compression method: {encoding[:32]}")
        self.encoding = encoding
        self._fresh = _DECODERS.get(encoding)
        self._frame: Any = None  # None between frames

    def feed(self, data: bytes) -> bytes:
        """The plain bytes of the next piece."""
        if self._fresh is None:
            return data
        plain = []
        while data:
            self._frame = self._frame or self._fresh()
            try:
                plain.append(bytes(self._frame.decompress(data)))
            except Exception as error:
                message = f"Cannot decompress {self.encoding} body: {error}"
                raise StoreError(CANNOT_DECOMPRESS, message) from None
            data = b""
            if self._frame.eof:
                data = bytes(self._frame.unused_data or b"")
                self._frame = None
        return b"".join(plain)

    def end(self) -> None:
        """The body is over: so must the compressed stream be."""
        if self._frame is not None:
            raise StoreError(CANNOT_DECOMPRESS, f"The {self.encoding} body ends in the middle")


def choose(accepted: str) -> str:
    """The encoding of an answer: the first one named in Accept-Encoding that we have; empty for none."""
    names = (each.split(";")[0].strip().lower() for each in accepted.split(","))
    return next((name for name in names if name in ENCODERS), "")
