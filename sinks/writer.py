"""Rows into ClickHouse: one Native block an insert, with a token that makes a second attempt a no-op."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clickhouse_connect.driver.exceptions import ClickHouseError

from schemas import clickhouse, ddl
from schemas.config import Clickhouse
from schemas.errors import UsageError
from schemas.wire import Batch
from sinks import native

# What the server says of data that no retry will make better. Everything else is the server's trouble.
# https://github.com/ClickHouse/ClickHouse/blob/master/src/Common/ErrorCodes.cpp
DATA_ERRORS = {
    6: "CANNOT_PARSE_TEXT", 27: "CANNOT_PARSE_INPUT_ASSERTION_FAILED", 53: "TYPE_MISMATCH",
    69: "ARGUMENT_OUT_OF_BOUND", 70: "CANNOT_CONVERT_TYPE", 117: "INCORRECT_DATA",
    128: "TOO_LARGE_ARRAY_SIZE", 131: "TOO_LARGE_STRING_SIZE", 190: "SIZES_OF_ARRAYS_DONT_MATCH",
    321: "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE", 349: "CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN",
    469: "VIOLATED_CONSTRAINT", 691: "UNKNOWN_ELEMENT_OF_ENUM",
}  # fmt: skip
ANSWER_SECONDS = 60.0  # an insert takes a hundredth of it; a server that hangs is asked again after it
# A Distributed table must not acknowledge what it has only queued; asynchronous inserts have other tokens.
SETTINGS = {"distributed_foreground_insert": 1, "async_insert": 0, "insert_deduplicate": 1}


# table → its columns' types, the names of its indexes and rollups
Known = dict[str, tuple[dict[str, str], frozenset[str]]]


class ServerTrouble(Exception):
    """The server could not do it now; the same again later may succeed."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code  # ClickHouse's, if it came to that


class Rejected(Exception):
    """The server took offence at the data itself."""


@dataclass(frozen=True)
class Table:
    """Where a schema's rows go: the table's name, its columns' types, its sort key."""

    stream: str
    types: Mapping[str, str]
    order: Sequence[str] = ()


class Writer:
    """Inserts into one database; thread-safe. The constructor connects.

    Raises :class:`schemas.errors.Unreachable` when no server answers, :class:`BpfleetError` when it
    does not let us in.
    """

    def __init__(self, config: Clickhouse) -> None:
        self.database = config.database
        self._client = clickhouse.connect(config, database="", answer_timeout=ANSWER_SECONDS)

    def insert(self, table: Table, batches: Sequence[Batch], token: str) -> int:
        """Insert all rows, or none if an insert of the same token was done before; returns bytes sent.

        ``batches`` have the same columns and one day. Raises :class:`Rejected` or :class:`ServerTrouble`.
        """
        try:
            data = native.block(table.types, batches, table.order)
        except (ValueError, TypeError, OverflowError, UsageError) as error:
            raise Rejected(f"no block can be made of it: {error}") from None
        names = [each for each in table.types if each in native.ENVELOPE or each in batches[0].columns]
        try:
            self._client.raw_insert(
                f"{ddl.quote(self.database)}.{ddl.quote(table.stream)}", [ddl.quote(each) for each in names],
                data, fmt="Native", settings={**SETTINGS, "insert_deduplication_token": token},
            )  # fmt: skip
        except Exception as error:
            raise _sort_out(error) from None
        return len(data)

    def execute(self, statement: str) -> None:
        """Run a statement without an answer. Raises :class:`Rejected` or :class:`ServerTrouble`."""
        try:
            self._client.command(statement)
        except Exception as error:
            raise _sort_out(error) from None

    def rows(self, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """The answer of a query. Raises :class:`Rejected` or :class:`ServerTrouble`."""
        try:
            answer: list[tuple[Any, ...]] = self._client.query(query, parameters=parameters).result_rows
        except Exception as error:
            raise _sort_out(error) from None
        return answer

    def columns(self, stream: str) -> dict[str, str]:
        """The columns of a stream's table and their types; empty when there is no such table."""
        query = (
            "SELECT name, type FROM system.columns "
            "WHERE database = {database:String} AND table = {stream:String}"
        )
        return dict(self.rows(query, database=self.database, stream=stream))

    def tables(self) -> Known:
        """Every table of the database: its columns and types, its indexes and rollups, in three queries."""
        where = "WHERE database = {database:String}"
        found: dict[str, tuple[dict[str, str], set[str]]] = {}
        for table, name, kind in self.rows(
            f"SELECT table, name, type FROM system.columns {where} ORDER BY table, position",
            database=self.database,
        ):
            found.setdefault(table, ({}, set()))[0][name] = kind
        for source in ("data_skipping_indices", "projections"):
            for table, name in self.rows(
                f"SELECT table, name FROM system.{source} {where}", database=self.database
            ):
                if table in found:
                    found[table][1].add(name)
        return {table: (columns, frozenset(extras)) for table, (columns, extras) in found.items()}

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()


def _sort_out(error: Exception) -> Exception:
    """The driver's exception as one of ours; what is no server's error at all passes through."""
    if not isinstance(error, ClickHouseError | OSError):
        return error
    text = " ".join(str(error).split())
    text = re.sub(r" with url: .*?\(Caused by ", " (", text)[:500]
    code = getattr(error, "code", None)
    return Rejected(text) if code in DATA_ERRORS else ServerTrouble(text, code)
