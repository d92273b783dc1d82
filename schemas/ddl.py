"""The ClickHouse side of a declaration: tables, codecs, sort keys, retention, and their cluster variant.

Codecs are measured (docs/benchmarks.md): time Delta + ZSTD(1), integers T64 + ZSTD(1), the rest, and single
bytes, which have no high bits to cut, ZSTD(1).
``INDEX ts`` is free and lets ``ts >= …`` prune although the sort key holds only its five minutes.
"""

from collections.abc import Iterable, Mapping

from schemas import storage
from schemas.config import Clickhouse
from schemas.declare import Field, Stream
from schemas.errors import UsageError

# Inserts of one (topic, partition, range, day) carry the same token; the store remembers this many.
DEDUPLICATION_WINDOW = 100_000
# Uncompressed bytes from which a part has files for each column. An insert stays below: sixty files a part,
# soon merged and deleted, cost ext4 more CPU than writing them (it steps over inodes deleted lately).
WIDE_PART = 48 << 20
ENVELOPE = {
    "host": ("LowCardinality(String)", "ZSTD(1)"),
    "boot": ("UUID", "ZSTD(1)"),
    "seq": ("UInt64", "Delta, ZSTD(1)"),
    "sample_rate": ("UInt32", "T64, ZSTD(1)"),
}
UNSORTED_SEQ = "T64, ZSTD(1)"  # where rows of many hosts mix, numbers don't follow each other
# Rollups' columns have no codec of their own: this is half of what the engine's default leaves.
OTHER_CODEC = "default_compression_codec = 'ZSTD(1)'"
HOST_MADE = {"int": "Int32", "long": "Int64", "float": "Float32", "double": "Float64", "boolean": "Bool"}
TIME = "DateTime64(6, 'UTC')"


def quote(identifier: str) -> str:
    """An identifier as ClickHouse reads it, whatever it contains."""
    return "`" + identifier.replace("\\", "\\\\").replace("`", "\\`") + "`"


def column_type(field: Field) -> str:
    """The ClickHouse type of a field."""
    if field.ch_type:
        return field.ch_type
    kind = field.avro_kind
    if kind == "string":
        return "LowCardinality(String)"
    if field.is_time:
        return TIME
    if kind == "fixed":
        return "IPv6" if field.decode == "ip" else f"FixedString({field.avro['size']})"
    if kind == "boolean":
        return "Bool"
    if field.c is None:
        return HOST_MADE[kind]
    sign = "UInt" if field.c.base[0] == "u" else "Int"
    scalar = f"{sign}{field.c.item_size * 8}"
    return scalar if field.c.count is None else f"Array({scalar})"


def column_codec(field: Field) -> str:
    """The codec of a field; its annotation, or what its type does best with."""
    if field.ch_codec:
        return field.ch_codec
    kind = column_type(field)
    if kind.startswith("DateTime"):
        return "Delta, ZSTD(1)"
    wide = kind.startswith(("UInt", "Int")) and not kind.endswith("Int8")
    return "T64, ZSTD(1)" if wide else "ZSTD(1)"


def columns(stream: Stream) -> dict[str, tuple[str, str]]:
    """Every column of a stream's table, envelope included: name → (type, codec)."""
    table = {"host": ENVELOPE["host"]}
    table |= {each.name: (column_type(each), column_codec(each)) for each in stream.fields}
    table |= ENVELOPE
    if not {"host", "target_host"} & set(stream.order):
        table["seq"] = (table["seq"][0], UNSORTED_SEQ)
    return table


def _define(table: Mapping[str, tuple[str, str]]) -> str:
    return ", ".join(f"{quote(name)} {kind} CODEC({codec})" for name, (kind, codec) in table.items())


def database(config: Clickhouse) -> str:
    """``CREATE DATABASE``, on every node when there is a cluster."""
    return f"CREATE DATABASE IF NOT EXISTS {quote(config.database)}{_on_cluster(config)}"


def _on_cluster(config: Clickhouse) -> str:
    return f" ON CLUSTER {quote(config.cluster)}" if config.cluster else ""


def create(stream: Stream, config: Clickhouse) -> list[str]:
    """The statements that make a stream's table where it does not exist yet, in order.

    On a cluster, ``<stream>_local`` is replicated on each shard and ``<stream>`` is distributed over them
    by host, so that one host's rows stay together.
    """
    name = f"{quote(config.database)}.{quote(stream.name)}"
    days = config.retention_days.get(stream.name, stream.ttl_days)
    cold = (config.cold_volume, config.cold_days) if config.storage_policy and config.cold_days else None
    policy = f"storage_policy = '{config.storage_policy}', " if config.storage_policy else ""
    key = f"PRIMARY KEY ({', '.join(stream.order[: stream.storage.key])}) " if stream.storage.key else ""
    clauses = (
        f"PARTITION BY toDate(ts) {key}ORDER BY ({', '.join(stream.order)}) "
        f"{storage.life(stream.storage, days, cold)} "
        f"SETTINGS {policy}index_granularity = 8192, {OTHER_CODEC}, "
        f"ttl_only_drop_parts = {int(not stream.storage.longer)}, min_bytes_for_wide_part = {WIDE_PART}"
    )
    extras = "".join(f", {kind} {text}" for kind, text in storage.definitions(stream.storage))
    body = f"({_define(columns(stream))}, INDEX ts_range ts TYPE minmax GRANULARITY 1{extras})"
    window = f"non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}"
    if not config.cluster:
        return [f"CREATE TABLE IF NOT EXISTS {name} {body} ENGINE = MergeTree {clauses}, {window}"]
    local = f"{quote(config.database)}.{quote(stream.name + '_local')}"
    path = f"'/clickhouse/tables/{{shard}}/{config.database}/{stream.name}', '{{replica}}'"
    window = window.replace("non_replicated", "replicated")
    shards = f"{quote(config.cluster)}, {quote(config.database)}, {quote(stream.name + '_local')}"
    target = f"{shards}, cityHash64(host)"
    return [
        f"CREATE TABLE IF NOT EXISTS {local}{_on_cluster(config)} {body} "
        f"ENGINE = ReplicatedMergeTree({path}) {clauses}, {window}",
        f"CREATE TABLE IF NOT EXISTS {name}{_on_cluster(config)} AS {local} ENGINE = Distributed({target})",
    ]


def evolve(stream: Stream, existing: Mapping[str, str], config: Clickhouse) -> list[str]:
    """``ADD COLUMN`` for what a table lacks; ``existing`` maps its columns to their types.

    Only appending a field with a default is compatible (a row of an older collector reads the default).
    Raises :class:`UsageError` on a changed type or a field without a default: that is a new stream, ``_v2``.
    """
    wanted = columns(stream)
    for name, (kind, _) in wanted.items():
        if name in existing and existing[name] != kind:
            raise UsageError(
                f"{stream.name}.{name} is {existing[name]} in the store and {kind} in the schema; "
                f"declare it as a new stream {stream.name}_v2"
            )
    added = [each for each in stream.fields if each.name not in existing]
    for field in added:
        if field.default is None:
            raise UsageError(
                f"{stream.name}.{field.name} is new and has no default; give it one, "
                f"or declare a new stream {stream.name}_v2"
            )
    return list(_add_columns(stream, added, config))


def extra_names(stream: Stream) -> set[str]:
    """The names of the indexes and rollups that a stream declares."""
    return {text.split()[0] for _, text in storage.definitions(stream.storage)}


def local_name(stream: Stream, config: Clickhouse) -> str:
    """The table that holds the rows: with a cluster, each node's part of it."""
    return stream.name + ("_local" if config.cluster else "")


def extras(
    stream: Stream, config: Clickhouse, existing: Iterable[str] = (), *, backfill: bool = False
) -> Iterable[str]:
    """Indexes and rollups that a table from before may lack; they hold for parts written from now on.

    ``existing``: names of those that are there; ``backfill``: build the others for the rows that are there
    too, in the background.
    """
    there = set(existing)
    for kind, text in storage.definitions(stream.storage):
        name = text.split()[0]
        if name not in there:
            yield f"{_alter(stream, config)} ADD {kind} IF NOT EXISTS {text}"
            if backfill:
                yield f"{_alter(stream, config)} MATERIALIZE {kind} {name}"


def renew_extras(
    stream: Stream, existing: Mapping[str, str], definition: str, config: Clickhouse, backfill: bool
) -> Iterable[str]:
    """What makes a table's indexes and rollups those of its declaration: older ones go, new ones come.

    ``existing``: names and kinds (``INDEX``, ``PROJECTION``) of those that are there; ``definition``: the
    table's own ``CREATE``; ``backfill``: see :func:`extras`.
    """
    if OTHER_CODEC not in definition:
        yield f"{_alter(stream, config)} MODIFY SETTING {OTHER_CODEC}"
    declared = extra_names(stream)
    for name, kind in existing.items():
        if storage.ours(name) and name not in declared:
            yield f"{_alter(stream, config)} DROP {kind} IF EXISTS {quote(name)}"
    yield from extras(stream, config, existing, backfill=backfill)


def _alter(stream: Stream, config: Clickhouse) -> str:
    table = f"{quote(config.database)}.{quote(local_name(stream, config))}"
    return f"ALTER TABLE {table}{_on_cluster(config)}"


def _add_columns(stream: Stream, added: Iterable[Field], config: Clickhouse) -> Iterable[str]:
    suffixes = ["_local", ""] if config.cluster else [""]
    for field in added:
        for suffix in suffixes:
            table = f"{quote(config.database)}.{quote(stream.name + suffix)}{_on_cluster(config)}"
            codec = "" if config.cluster and not suffix else f" CODEC({column_codec(field)})"
            column = f"{quote(field.name)} {column_type(field)}{_default(field)}{codec}"
            yield f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {column}"


def _default(field: Field) -> str:
    value = field.default
    if isinstance(value, str):
        text = value.replace("\\", "\\\\").replace("'", "\\'")
        return f" DEFAULT '{text}'"
    if isinstance(value, bool | int | float):
        return f" DEFAULT {value}"
    return f" DEFAULT {value}" if isinstance(value, list) else ""
