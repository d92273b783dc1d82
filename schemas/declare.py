"""Read the declarations: ``<probe>.avsc`` is a probe, each record in it is a stream.

A declaration is plain Avro (https://avro.apache.org/docs/1.12.0/specification/) plus annotations with a
dot in their names or in :data:`FIELD_KEYS`; an annotation that is not known here is an error.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from schemas import storage
from schemas.errors import UsageError
from schemas.storage import Storage

DIRECTORY = Path(__file__).parent
RECORD_KEYS = {
    "type", "name", "namespace", "doc", "fields", "c.from", "c.entries", "c.every", "c.rare", "ch.order",
    "ch.ttl_days",
    *storage.KEYS,
}  # fmt: skip
FIELD_KEYS = {"name", "type", "doc", "default", "decode", "c.type", "c.key", "c.bound", "ch.type", "ch.codec"}
INTEGERS = {f"{sign}{bits}": bits // 8 for sign in "us" for bits in (8, 16, 32, 64)}
# decoder → (what the kernel hands over; "" for columns the host makes, Avro types it may become)
DECODERS: dict[str, tuple[str, set[str]]] = {
    "": ("any", {"int", "long", "float", "double", "boolean", "string", "fixed", "array"}),
    "ktime": ("u64", {"long"}),
    "now": ("", {"long"}),
    "interval": ("", {"long"}),
    "ip": ("u8[16]", {"fixed"}),
    "text": ("char", {"string"}),
    "cgroup": ("u64", {"string"}),
    "ksym": ("u64", {"string"}),
    "device": ("u32", {"string"}),
    "errno": ("integer", {"string"}),
    "syscall": ("integer", {"string"}),
    "stack": ("u64", {"long"}),
    "enum": ("integer", {"string"}),
    "names": ("integer", {"string"}),
}
MAP_ENTRIES = 4096  # keys of an aggregate that does not state `c.entries`
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
Source = Literal["ring", "aggregate", "host"]


@dataclass(frozen=True)
class CType:
    """A C type of a closed set: ``u32``, ``char[16]``, ``u64[27]``; little-endian like the kernel's."""

    base: str
    count: int | None = None

    @property
    def item_size(self) -> int:
        """Bytes of one element, which is its alignment too."""
        return 1 if self.base == "char" else INTEGERS[self.base]

    @property
    def size(self) -> int:
        """Bytes of the whole."""
        return self.item_size * (self.count or 1)

    def __str__(self) -> str:
        return self.base if self.count is None else f"{self.base}[{self.count}]"


@dataclass(frozen=True, eq=False)
class Field:
    """One column of a stream, and where its values come from."""

    name: str
    doc: str
    avro: Any  # the Avro type, as JSON
    default: Any  # appended fields have one; None otherwise
    c: CType | None  # what the kernel hands over; None: the host makes it
    key: bool  # part of an aggregate's key
    decode: str  # "" or a name of DECODERS
    argument: str  # what follows the decoder's colon
    bound: int | None  # larger values of a u64 are clamped to it
    ch_type: str
    ch_codec: str

    @property
    def avro_kind(self) -> str:
        """The name of the Avro type: ``long``, ``string``, ``fixed``, ``array`` …."""
        return str(self.avro["type"] if isinstance(self.avro, dict) else self.avro)

    @property
    def is_time(self) -> bool:
        """Whether its values are µs since 1970."""
        logical = self.avro.get("logicalType") if isinstance(self.avro, dict) else None
        return self.name == "ts" or self.decode in ("ktime", "now") or logical == "timestamp-micros"


@dataclass(frozen=True, eq=False)
class Stream:
    """A typed sequence of rows: one topic, one table."""

    name: str
    probe: str
    source: Source
    doc: str
    fields: tuple[Field, ...]
    order: tuple[str, ...]  # sort key of its table
    ttl_days: int
    declaration: str  # the record as JSON, annotations included
    entries: int = MAP_ENTRIES  # keys an aggregate has room for
    rare: bool = False  # a host in good health may never have a row of it
    storage: Storage = field(default_factory=Storage)
    every: int = 1  # an aggregate is read at one look in so many (``collector.aggregate_ms``)

    @property
    def kernel_fields(self) -> tuple[Field, ...]:
        """The fields that lie in the kernel's struct, in its order."""
        return tuple(each for each in self.fields if each.c is not None)


@dataclass(frozen=True, eq=False)
class Probe:
    """What one file declares: the unit that is loaded, attached and measured."""

    name: str
    streams: tuple[Stream, ...]


def load(directory: Path = DIRECTORY) -> dict[str, Probe]:
    """Every probe declared in ``directory``, by name. Raises :class:`UsageError` at the first fault."""
    probes = {file.stem: read(file) for file in sorted(directory.glob("*.avsc"))}
    names = [stream.name for probe in probes.values() for stream in probe.streams]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"stream {name} is declared twice; give each record its own name")
    return probes


def streams(directory: Path = DIRECTORY) -> dict[str, Stream]:
    """Every stream declared in ``directory``, by name."""
    return {stream.name: stream for probe in load(directory).values() for stream in probe.streams}


def read(file: Path) -> Probe:
    """One declaration file. Raises :class:`UsageError` naming the file and the fault."""
    try:
        tree = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: not a readable Avro schema: {error}") from None
    return parse(file.stem, tree, str(file))


def parse(probe: str, tree: Any, source: str = "declaration") -> Probe:
    """A probe from parsed JSON: a record, or a union of records."""
    if not NAME.fullmatch(probe):
        raise UsageError(f"{source}: a probe's name is lower case letters, digits and _, at most 40")
    records = tree if isinstance(tree, list) else [tree]
    if not records:
        raise UsageError(f"{source}: declares no record")
    try:
        return Probe(probe, tuple(_stream(probe, record) for record in records))
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from None


def _unknown(keys: Any, known: set[str], where: str) -> None:
    for key in keys:
        if key not in known:
            raise UsageError(f"{where}: unknown annotation `{key}`; known are {', '.join(sorted(known))}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


def _stream(probe: str, record: Any) -> Stream:
    _require(isinstance(record, dict) and record.get("type") == "record", "expected an Avro record")
    name = str(record.get("name"))
    _require(bool(NAME.fullmatch(name)), f"{name}: not a stream's name (lower case, digits, _)")
    _unknown(record, RECORD_KEYS, name)
    source = record.get("c.from", "host")
    _require(source in ("ring", "aggregate", "host"), f"{name}: c.from is ring, aggregate or host")
    _require(isinstance(record.get("fields"), list), f"{name}: has no fields")
    fields = tuple(_field(name, each) for each in record["fields"])
    names = [each.name for each in fields]
    _require(len(set(names)) == len(names), f"{name}: a field is declared twice")
    _require("ts" in names, f"{name}: every stream declares `ts`")
    order = tuple(record.get("ch.order", ("host", "ts")))
    for column in order:
        bare = column.removeprefix("toStartOfFiveMinutes(").removesuffix(")")
        _require(bare in (*names, "host"), f"{name}: ch.order names `{column}`, which is no field")
    days = record.get("ch.ttl_days", 30)
    _require(isinstance(days, int) and days > 0, f"{name}: ch.ttl_days is a positive number")
    entries, rare = record.get("c.entries", MAP_ENTRIES), record.get("c.rare", False)
    _require(isinstance(rare, bool), f"{name}: c.rare is true or false")
    _require(isinstance(entries, int) and 0 < entries <= 1 << 20, f"{name}: c.entries is a number up to 2^20")
    every = record.get("c.every", 1)
    _require(isinstance(every, int) and 0 < every <= 60, f"{name}: c.every is a number up to 60")
    _require("c.every" not in record or source == "aggregate", f"{name}: c.every is of aggregates")
    _require("c.entries" not in record or source == "aggregate", f"{name}: c.entries is of aggregates")
    stream = Stream(
        name, probe, cast(Source, source), str(record.get("doc", "")), fields, order, days,
        json.dumps(record), entries, rare, storage.parse(record, set(names)), every,
    )  # fmt: skip
    _check_source(stream)
    return stream


def _check_source(stream: Stream) -> None:
    keys = [each for each in stream.fields if each.key]
    if stream.source == "host":
        _require(not stream.kernel_fields, f"{stream.name}: made by the host, yet a field has c.type")
    elif stream.source == "ring":
        _require(bool(stream.kernel_fields) and not keys, f"{stream.name}: a ring's events have no c.key")
    else:
        _require(bool(keys), f"{stream.name}: an aggregate needs a field with c.key")
        _require(len(stream.kernel_fields) > len(keys), f"{stream.name}: an aggregate needs a value")


def _field(stream: str, tree: Any) -> Field:
    _require(isinstance(tree, dict) and isinstance(tree.get("name"), str), f"{stream}: a field has no name")
    where = f"{stream}.{tree['name']}"
    _require(bool(NAME.fullmatch(tree["name"])), f"{where}: lower case letters, digits and _ only")
    _require(
        tree["name"] not in ("host", "boot", "seq", "sample_rate", "rows"), f"{where}: is in every envelope"
    )
    _unknown(tree, FIELD_KEYS, where)
    _check_annotations(where, tree)
    c = _c_type(where, tree["c.type"]) if "c.type" in tree else None
    decode, _, argument = str(tree.get("decode", "")).partition(":")
    result = Field(
        tree["name"], str(tree.get("doc", "")), tree.get("type"), tree.get("default"), c,
        bool(tree.get("c.key", False)), decode, argument, tree.get("c.bound"),
        str(tree.get("ch.type", "")), str(tree.get("ch.codec", "")),
    )  # fmt: skip
    _check_field(where, result)
    return result


def _check_annotations(where: str, tree: dict[str, Any]) -> None:
    kind = tree.get("type")
    named = kind if isinstance(kind, str) else kind.get("type") if isinstance(kind, dict) else None
    _require(isinstance(named, str), f"{where}: `type` is an Avro type's name, or an object with one")
    if isinstance(kind, dict) and named == "fixed":
        size = kind.get("size")
        _require(isinstance(size, int) and 0 < size <= 65536, f"{where}: a fixed needs a size")
    for name in ("c.type", "decode", "doc", "ch.type", "ch.codec"):
        _require(isinstance(tree.get(name, ""), str), f"{where}: `{name}` is text")
    for name in ("ch.type", "ch.codec"):
        _require(_is_type_text(tree.get(name, "")), f"{where}: `{name}` is not a type or codec of ClickHouse")


def _is_type_text(text: str) -> bool:
    """Only names, numbers and balanced parentheses: a declaration may come from a topic, and this is SQL."""
    reduced, seen = text, ""
    while reduced != seen:
        reduced, seen = re.sub(r"\w+\([\w, ]*\)", "x", reduced), reduced
    return re.fullmatch(r"[\w, ]*", reduced) is not None


def _c_type(where: str, text: str) -> CType:
    match = re.fullmatch(r"(char|[us](?:8|16|32|64))(?:\[(\d{1,4})\])?", text)
    _require(
        match is not None, f"{where}: c.type `{text}` is not one of u8…s64, char[N], with [N] or without"
    )
    assert match is not None
    count = int(match[2]) if match[2] else None
    _require(count != 0 and (match[1] != "char" or count is not None), f"{where}: c.type `{text}` is empty")
    return CType(match[1], count)


def _check_field(where: str, field: Field) -> None:
    _require(
        field.decode in DECODERS, f"{where}: unknown decoder `{field.decode}`; known: {', '.join(DECODERS)}"
    )
    wanted, kinds = DECODERS[field.decode]
    _require(
        field.avro_kind in kinds, f"{where}: {field.decode or 'a plain field'} cannot be `{field.avro_kind}`"
    )
    if field.c is None:
        _require(wanted in ("", "any"), f"{where}: decoder {field.decode} needs a c.type")
        _require(field.avro_kind != "array", f"{where}: an array needs a c.type, which fixes its length")
        return
    fits = {
        "": False,
        "any": field.c.base != "char",
        "integer": field.c.count is None and field.c.base != "char",
        "char": field.c.base == "char",
    }.get(wanted, wanted == str(field.c))
    _require(fits, f"{where}: {field.decode or 'a plain field'} does not take {field.c}")
    _require(
        bool(field.argument) == (field.decode in ("enum", "names")), f"{where}: decode takes no argument"
    )
    if field.decode == "":
        _check_plain(where, field, field.c)


def _check_plain(where: str, field: Field, c: CType) -> None:
    kind = field.avro_kind
    if c.count is not None:
        fixed = kind == "fixed" and c.base == "u8" and field.avro.get("size") == c.count
        array = kind == "array" and field.avro.get("items") in ("int", "long") and c.base != "char"
        _require(fixed or array, f"{where}: {c} is an Avro fixed of its size or an array of long")
        return
    _require(kind in ("int", "long", "boolean"), f"{where}: {c} cannot be `{kind}`")
    if kind == "int":
        _require(c.base in ("u8", "u16", "s8", "s16", "s32"), f"{where}: {c} needs `long`")
    if c.base == "u64" and kind == "long":
        bound = field.bound
        _require(
            isinstance(bound, int) and 0 < bound < 2**63, f"{where}: u64 as long needs c.bound below 2^63"
        )
