"""Declarations: what is wrong in one is named, nothing unknown passes, and every shipped one is whole."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ddl, declare
from schemas.config import Clickhouse
from schemas.errors import UsageError

TIME = {"type": "long", "logicalType": "timestamp-micros"}
TS = {"name": "ts", "type": TIME, "c.type": "u64", "decode": "ktime"}


def record(*fields: Any, **more: Any) -> dict[str, Any]:
    return {"type": "record", "name": "x", "c.from": "ring", "fields": [TS, *fields], **more}


def field(**more: Any) -> dict[str, Any]:
    return {"name": "f", "type": "long", "c.type": "u32", **more}


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        (record(field(), **{"c.form": "ring"}), "unknown annotation `c.form`"),
        (record(field(**{"ch.tpye": "x"})), "unknown annotation `ch.tpye`"),
        (record(field(**{"c.type": "u33"})), "c.type `u33`"),
        (record(field(**{"c.type": "u64"})), "needs c.bound"),
        (record(field(**{"c.type": "u64", "c.bound": 2**63})), "needs c.bound"),
        (record(field(decode="geoip")), "unknown decoder `geoip`"),
        (record(field(decode="ip")), "cannot be `long`"),
        (record(field(type="string", decode="ip")), "cannot be `string`"),
        (record(field(type="string", decode="text")), "does not take u32"),
        (record(field(type="string", decode="enum")), "argument"),
        (record(field(type="int")), "needs `long`"),
        (record(field(), field()), "declared twice"),
        (record(field(name="seq")), "in every envelope"),
        (record(field(**{"c.key": True})), "no c.key"),
        (record(field(), **{"c.from": "aggregate"}), "needs a field with c.key"),
        (record(field(), **{"c.from": "host"}), "made by the host"),
        (record(field(), **{"ch.order": ["nope"]}), "which is no field"),
        (record(field(), **{"ch.ttl_days": 0}), "positive"),
        (record(field(), **{"c.rare": "yes"}), "true or false"),
        (record(field(), **{"c.entries": 16}), "of aggregates"),
        (record(field(), **{"c.from": "aggregate", "c.entries": 0}), "up to 2^20"),
        (record(field(), name="X-1"), "not a stream's name"),
        ({"type": "enum"}, "expected an Avro record"),
        ([], "declares no record"),
        ({"type": "record", "name": "x", "fields": [field()]}, "declares `ts`"),
        (record(field(**{"ch.codec": "ZSTD(1)) ENGINE = Null --"})), "not a type or codec"),
        (record(field(**{"ch.type": "UInt32 DEFAULT (SELECT 1)"})), "not a type or codec"),
        (record(field(type={"items": "long"})), "an Avro type"),
        (record(field(type=None)), "an Avro type"),
    ],
)
def test_a_wrong_declaration_is_named(tree: Any, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        declare.parse("x", tree)
    assert says in str(caught.value) and "\n" not in str(caught.value)


KEYS = sorted(declare.FIELD_KEYS | declare.RECORD_KEYS)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8)
    | st.sampled_from(["record", "ring", "aggregate", "long", "string", "u32", "char[16]", "ktime"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=6),
    max_leaves=20,
)  # fmt: skip


@given(tree=json_values)
def test_any_json_is_read_or_refused(tree: Any) -> None:
    """Fuzz: a declaration from the schemas topic may be anything."""
    fields = tree if isinstance(tree, list) else [tree]
    for whole in (tree, record(*fields), record(field(type=tree)), record(field(decode=tree))):
        try:
            declare.parse("x", whole)
        except UsageError as error:
            assert "\n" not in str(error)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.avsc").write_text("{")
    with pytest.raises(UsageError, match=r"broken\.avsc"):
        declare.load(tmp_path)


def test_a_stream_belongs_to_one_probe(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.avsc").write_text(json.dumps(record(field())))
    with pytest.raises(UsageError, match="declared twice"):
        declare.load(tmp_path)


def test_every_shipped_stream_says_what_it_means() -> None:
    for stream in declare.streams().values():
        assert len(stream.doc) > 20, stream.name
        for each in stream.fields:
            assert each.doc, f"{stream.name}.{each.name} has no doc"


def test_tables_on_a_cluster_are_replicated_and_distributed() -> None:
    stream = declare.parse("x", record(field())).streams[0]
    local, distributed = ddl.create(stream, Clickhouse(cluster="main"))
    assert "ON CLUSTER `main`" in local and "ReplicatedMergeTree('/clickhouse/tables/{shard}" in local
    assert (
        "`x_local`" in local and "Distributed(`main`, `bpfleet`, `x_local`, cityHash64(host))" in distributed
    )


def test_a_table_grows_only_by_fields_with_a_default() -> None:
    old = declare.parse("x", record(field())).streams[0]
    existing = {name: kind for name, (kind, _) in ddl.columns(old).items()}
    new = declare.parse("x", record(field(), field(name="g", default=7))).streams[0]
    (statement,) = ddl.evolve(new, existing, Clickhouse())
    assert "ADD COLUMN IF NOT EXISTS `g` UInt32 DEFAULT 7" in statement
    assert ddl.evolve(old, existing, Clickhouse()) == []
    with pytest.raises(UsageError, match="has no default"):
        ddl.evolve(declare.parse("x", record(field(), field(name="g"))).streams[0], existing, Clickhouse())
    with pytest.raises(UsageError, match="x_v2"):
        changed = declare.parse("x", record(field(**{"c.type": "u16"}))).streams[0]
        ddl.evolve(changed, existing, Clickhouse())
