"""What a query answers, as Grafana's panels get it: named columns of one type each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NUMBERS = ("UInt", "Int", "Float", "Decimal", "Bool")


@dataclass(frozen=True)
class Frame:
    """Columns by name, in order; ``types`` are ClickHouse's, without Nullable and LowCardinality."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    columns: tuple[Sequence[Any], ...]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.columns[0]) if self.columns else 0

    def column(self, name: str) -> Sequence[Any]:
        """The values of a column. Raises KeyError."""
        if name not in self.names:
            raise KeyError(name)
        return self.columns[self.names.index(name)]

    def first(self) -> list[str]:
        """The values of the first column, as text; an empty answer may have no column."""
        return [str(each) for each in self.columns[0]] if self.columns else []

    def numbers(self) -> list[str]:
        """Names of the columns that are numbers."""
        return [name for name, kind in zip(self.names, self.types, strict=True) if kind.startswith(NUMBERS)]

    def texts(self) -> list[str]:
        """Names of the columns that are text."""
        return [name for name, kind in zip(self.names, self.types, strict=True) if is_text(kind)]

    def times(self) -> list[str]:
        """Names of the columns that are moments."""
        return [name for name, kind in zip(self.names, self.types, strict=True) if kind.startswith("Date")]

    def series(self) -> dict[str, tuple[list[Any], list[Any]]]:
        """Long rows as lines: name of the line → (times, values). A line is a value column and its labels."""
        (time, *_), labels, values = self.times(), self.texts(), self.numbers()
        lines: dict[str, tuple[list[Any], list[Any]]] = {}
        marks = (
            list(zip(*(self.column(each) for each in labels), strict=True)) if labels else [()] * self.rows
        )
        for value in values:
            for moment, mark, number in zip(self.column(time), marks, self.column(value), strict=True):
                parts = [str(each) for each in mark] + ([value] if len(values) > 1 or not mark else [])
                at, amounts = lines.setdefault(" ".join(parts), ([], []))
                at.append(moment)
                amounts.append(number)
        return lines


def is_text(kind: str) -> bool:
    """Whether Grafana takes a column of this type as text."""
    return kind.startswith(("String", "FixedString", "Enum", "UUID", "IPv"))


def plain(kind: str) -> str:
    """A type without what only says how it is stored."""
    for wrapper in ("LowCardinality(", "Nullable("):
        if kind.startswith(wrapper):
            return plain(kind[len(wrapper) : -1])
    return kind


def ask(client: Any, sql: str) -> Frame:
    """Run a query. Raises what the driver raises."""
    result = client.query(sql)
    columns = tuple(result.result_columns) or tuple([] for _ in result.column_names)
    return Frame(tuple(result.column_names), tuple(plain(each.name) for each in result.column_types), columns)
