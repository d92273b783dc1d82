"""Simulated rows on their way: a batch of each host and stream, numbered and marked, into Kafka."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.events import Events
from fleet.simulate import generate
from fleet.simulate.plan import Absence, Event, Fleet, Incident, micros
from schemas import declare, rows, simulated, topics, wire
from schemas.admin import prepare
from schemas.columns import Column, Dictionary
from schemas.config import Config
from schemas.declare import Field, Stream

OF_A_HOST, OF_ALL = 2_000, 100_000  # rows of a stream that are made at once


class Shipment:
    """One run. ``sent`` says how many rows of each stream went out; lost batches are not among them."""

    def __init__(self, config: Config, fleet: Fleet, incidents: Sequence[Incident], usual: Iterable[Event],
                 scale: float = 1.0) -> None:  # fmt: skip
        self._config, self._fleet, self._scale = config, fleet, scale
        self._effects = [effect for each in incidents for effect in each.effects]
        self._absences = [absence for each in incidents for absence in each.absences]
        self._events = sorted([*usual, *(event for each in incidents for event in each.events)],
                              key=lambda each: each.ts)  # fmt: skip
        self._events = [each for each in self._events if fleet.begin <= each.ts < fleet.end]
        self._numbers: dict[tuple[str, str], int] = {}
        self._pen = Events(config)
        self.sent: dict[str, int] = {}

    def total(self) -> int:
        """Rows that there will be, about."""
        return sum(generate.rows_of(name, self._fleet, self._scale) for name in generate.STREAMS)

    def boots(self) -> list[bytes]:
        """The boot ids of all batches."""
        return sorted({self._boot(host) for host, _ in self._numbers})

    def run(self, client: Any, progress: Callable[[int], None]) -> None:
        """Make and send all of it; ``client``: where SQL is computed. Raises :class:`BpfleetError`."""
        streams = declare.streams()
        names = [*generate.STREAMS, *{each.stream for each in self._events} - set(generate.STREAMS)]
        prepare(self._config, [streams[name] for name in names])
        for name in names:
            if name in generate.STREAMS:
                self._stream(client, streams[name], progress)
            self._tell(streams[name], float("inf"))
            self._pen.settle()

    def _stream(self, client: Any, stream: Stream, progress: Callable[[int], None]) -> None:
        own = generate.STREAMS[stream.name][1]
        all_rows = generate.rows_of(stream.name, self._fleet, self._scale)
        seconds = 60 / generate.STREAMS[stream.name][0] / self._scale
        step = min(OF_A_HOST * generate.hosts_of(stream.name, self._fleet), OF_ALL)
        for first in range(0, all_rows, step):
            many = min(step, all_rows - first)
            sql = generate.statement(
                stream, own, self._fleet, all_rows, seconds=seconds, first=first, many=many,
                effects=self._effects, absences=self._absences,
            )  # fmt: skip
            for host, times, columns in _by_host(client, stream, sql, self._made(stream.name)):
                self._batch(stream, host, times, columns)
            reached = (first + many) / all_rows
            self._tell(stream, self._fleet.begin + (self._fleet.end - self._fleet.begin) * reached)
            progress(many)

    def _made(self, stream: str) -> set[str]:
        """The columns that a statement gives beside ``ts`` and ``host``."""
        changed = {name for each in self._effects if each.stream == stream for name in each.columns}
        return {*generate.STREAMS[stream][1], *changed} - {"host"}

    def _batch(self, stream: Stream, host: str, times: NDArray[Any], columns: dict[str, Column]) -> None:
        """Send a host's rows; of a batch that is lost, only the number is used."""
        lost = _within(self._absences, host, stream.name, times)
        edges = [0, *(np.flatnonzero(np.diff(lost.astype(np.int8))) + 1).tolist(), len(times)]
        for begin, end in itertools.pairwise(edges):
            if lost[begin]:
                self._number(host, stream.name)
            else:
                self._send(stream, host, {name: _slice(each, begin, end) for name, each in columns.items()})

    def _tell(self, stream: Stream, until: float) -> None:
        """Send the stream's own rows of incidents up to that moment."""
        due = [each for each in self._events if each.stream == stream.name and each.ts < until]
        for host in dict.fromkeys(each.host for each in due):
            told = [dict(each.columns) | {"ts": micros(each.ts)} for each in due if each.host == host]
            self._send(stream, host, rows.columns(stream, told))
        self._events = [each for each in self._events if each not in due]

    def _send(self, stream: Stream, host: str, columns: dict[str, Column]) -> None:
        for first in range(0, len(columns["ts"]), OF_A_HOST):
            part = {name: _slice(each, first, first + OF_A_HOST) for name, each in columns.items()}
            self._send_batch(stream, host, part)

    def _send_batch(self, stream: Stream, host: str, columns: dict[str, Column]) -> None:
        envelope = wire.Envelope(host, self._boot(host), self._number(host, stream.name))
        self._pen.produce(topics.topic(stream.name), wire.encode(stream, envelope, columns), host.encode())
        self.sent[stream.name] = self.sent.get(stream.name, 0) + len(columns["ts"])

    def _number(self, host: str, stream: str) -> int:
        number = self._numbers.get((host, stream), 0)
        self._numbers[host, stream] = number + 1
        return number

    def _boot(self, host: str) -> bytes:
        return simulated.boot(f"{self._fleet.seed} {self._fleet.end} {host}")


def _within(absences: Iterable[Absence], host: str, stream: str, times: NDArray[Any]) -> NDArray[np.bool_]:
    lost = np.zeros(len(times), np.bool_)
    for each in absences:
        if each.host == host and each.stream == stream:
            lost |= (times >= micros(each.begin)) & (times < micros(each.end))
    return lost


def _by_host(
    client: Any, stream: Stream, sql: str, own: set[str]
) -> Iterator[tuple[str, NDArray[Any], dict[str, Column]]]:
    """Rows as the engine makes them, host by host and in order of time."""
    fields = [each for each in stream.fields if each.name == "ts" or each.name in own]
    inner, _, settings = sql.partition(" SETTINGS ")
    read = ", ".join(_read(each) for each in fields)
    answer = client.query(
        f"SELECT host, {read} FROM ({inner}) ORDER BY host, ts SETTINGS {settings}", column_oriented=True
    )
    hosts, *values = answer.result_columns or [[]]
    made = {each.name: rows.column(each, column) for each, column in zip(fields, values, strict=False)}
    for field in stream.fields:
        if field.name not in made:
            made[field.name] = rows.column(field, [None] * len(hosts))
    names, begins = np.unique(np.array(hosts, dtype=object), return_index=True)
    for name, begin, end in zip(names, begins, [*begins[1:], len(hosts)], strict=True):
        part = {column: _slice(each, begin, end) for column, each in made.items()}
        yield str(name), np.asarray(part["ts"]), part


def _read(field: Field) -> str:
    """A column as plain numbers and bytes."""
    if field.is_time:
        return f"toUnixTimestamp64Micro(toDateTime64({field.name}, 6, 'UTC')) AS `{field.name}_`"
    if field.avro_kind == "fixed" and field.decode == "ip":
        return f"reinterpret(toIPv6({field.name}), 'FixedString(16)') AS `{field.name}_`"
    if field.avro_kind in ("long", "int"):
        return f"toInt64({field.name}) AS `{field.name}_`"
    return f"{field.name} AS `{field.name}_`"


def _slice(column: Column, begin: int, end: int) -> Column:
    if isinstance(column, Dictionary):
        return Dictionary(column.values, column.index[begin:end])
    return column[begin:end]
