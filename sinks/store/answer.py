"""The headers and small bodies of answers, as a ClickHouse server sends them."""

import json
from dataclasses import dataclass, field
from typing import Any

from sinks.store.codec import PLAIN, Encoding
from sinks.store.errors import StoreError

_TYPES = {
    "JSON": "application/json; charset=UTF-8",
    "JSONCompact": "application/json; charset=UTF-8",
    "JSONEachRow": "application/x-ndjson; charset=UTF-8",
    "CSV": "text/csv; charset=UTF-8; header=absent",
    "CSVWithNames": "text/csv; charset=UTF-8; header=present",
    "TabSeparated": "text/tab-separated-values; charset=UTF-8",
    "TSV": "text/tab-separated-values; charset=UTF-8",
    "TabSeparatedWithNamesAndTypes": "text/tab-separated-values; charset=UTF-8",
    "Native": "application/octet-stream",
    "ArrowStream": "application/vnd.apache.arrow.stream",
    "Parquet": "application/octet-stream",
}


@dataclass(slots=True)
class Summary:
    """What X-ClickHouse-Summary tells."""

    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    result_rows: int = 0
    result_bytes: int = 0
    elapsed: float = 0.0

    @classmethod
    def of(cls, result: Any) -> "Summary":
        """From the engine's result object."""
        return cls(
            result.storage_rows_read(), result.storage_bytes_read(), result.rows_written(),
            result.bytes_written(), result.rows_read(), result.size(), result.elapsed(),
        )  # fmt: skip

    def header(self) -> str:
        """Numbers travel as strings there."""
        return json.dumps(
            {
                "read_rows": str(self.read_rows),
                "read_bytes": str(self.read_bytes),
                "written_rows": str(self.written_rows),
                "written_bytes": str(self.written_bytes),
                "total_rows_to_read": "0",
                "result_rows": str(self.result_rows or self.written_rows),
                "result_bytes": str(self.result_bytes or self.written_bytes),
                "elapsed_ns": str(int(self.elapsed * 1e9)),
            },
            separators=(",", ":"),
        )


@dataclass(slots=True)
class Answer:
    """A whole answer, small enough to hold."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Server:
    """What every answer says about this server."""

    version: str
    timezone: str
    name: str

    @property
    def name_version_timezone(self) -> tuple[str, str, str]:
        """What drivers ask first."""
        return self.name[:100], self.version, self.timezone

    def headers(self, query_id: str = "", form: str = "", encoding: Encoding = PLAIN) -> dict[str, str]:
        """The common headers; ``form`` is the output format."""
        headers = {
            "X-ClickHouse-Server-Display-Name": self.name,
            "X-ClickHouse-Timezone": self.timezone,
            "Keep-Alive": "timeout=30",
        }
        if query_id:
            headers["X-ClickHouse-Query-Id"] = "".join(each for each in query_id if each.isprintable())
        if form:
            headers["X-ClickHouse-Format"] = form
        headers["Content-Type"] = _TYPES.get(form, "text/plain; charset=UTF-8")
        if encoding.http:
            headers["Content-Encoding"] = encoding.http
        return headers

    def whole(self, body: bytes, summary: Summary, query_id: str, form: str, encoding: Encoding) -> Answer:
        """A finished answer."""
        headers = self.headers(query_id, form, encoding)
        headers["X-ClickHouse-Summary"] = summary.header()
        encoder = encoding.start()
        return Answer(200, encoder.compress(body) + encoder.flush(), headers)

    def error(self, error: StoreError, query_id: str = "", in_blocks: bool = False) -> Answer:
        """ClickHouse's text and number; who asked for blocks reads this as blocks too."""
        headers = self.headers(query_id) | {"X-ClickHouse-Exception-Code": str(error.code)}
        encoder = Encoding(in_blocks=in_blocks).start()
        body = encoder.compress(error.text(self.version).encode()) + encoder.flush()
        return Answer(error.status, body, headers)
