"""Put a result together from the engine's pieces, each of which it writes as a document of its own.

Most streaming formats simply follow one another. Some repeat a header in every piece, which is cut from all
but the first; the formats not named here are made whole, in memory.
"""

import re
from collections.abc import Callable

_FOLLOW = {
    "Native", "TabSeparated", "TSV", "TabSeparatedRaw", "TSVRaw", "Raw", "CSV", "RowBinary", "JSONEachRow",
    "JSONLines", "NDJSON", "JSONCompactEachRow", "JSONStringsEachRow", "JSONCompactStringsEachRow",
}  # fmt: skip
_CSV_LINE = re.compile(rb'(?:"(?:[^"]|"")*"|[^"\r\n])*\r?\n')
_ARROW_MARK = b"\xff\xff\xff\xff"
_ARROW_END = _ARROW_MARK + b"\0\0\0\0"


def _lines(count: int) -> Callable[[bytes], int]:
    def header(piece: bytes) -> int:
        end = 0
        for _ in range(count):
            end = piece.index(b"\n", end) + 1
        return end

    return header


def _csv_line(piece: bytes) -> int:
    line = _CSV_LINE.match(piece)
    return line.end() if line else 0


def _arrow_schema(piece: bytes) -> int:
    """A message is a mark, the length of its metadata, the metadata; a schema has no body."""
    assert piece.startswith(_ARROW_MARK)
    return 8 + int.from_bytes(piece[4:8], "little")


# Format → where a piece's header ends.
_HEADERS: dict[str, Callable[[bytes], int]] = {
    "TabSeparatedWithNames": _lines(1),
    "TSVWithNames": _lines(1),
    "TabSeparatedWithNamesAndTypes": _lines(2),
    "TSVWithNamesAndTypes": _lines(2),
    "CSVWithNames": _csv_line,
    "ArrowStream": _arrow_schema,
}


def possible(form: str) -> bool:
    """Whether a result in ``form`` can be sent in pieces."""
    return form in _FOLLOW or form in _HEADERS


def has_header(form: str) -> bool:
    """Whether a result with no rows is more than nothing."""
    return form in _HEADERS


class Join:
    """Takes the engine's pieces in order, gives what to send for each; end() what comes last."""

    def __init__(self, form: str) -> None:
        self._header = _HEADERS.get(form)
        self._arrow = form == "ArrowStream"
        self._first = True

    def add(self, piece: bytes) -> bytes:
        """The part of ``piece`` that belongs into the result."""
        start = 0 if self._first or not self._header else self._header(piece)
        self._first = False
        return piece[start:].removesuffix(_ARROW_END) if self._arrow else piece[start:]

    def end(self) -> bytes:
        """After the last piece."""
        return _ARROW_END if self._arrow else b""
