"""Filters, rollups and longer lives of a table: what the engine does with them, and what is refused."""

import json
import time
from typing import Any

import pytest
from conftest import StoreProcess

from schemas import ddl, declare
from schemas.clickhouse import connect
from schemas.config import Clickhouse
from schemas.errors import UsageError

DAY = 86_400


def record(**more: Any) -> dict[str, Any]:
    fields = [
        {"name": "ts", "type": "long", "doc": "when"},
        {"name": "verdict", "type": "string", "doc": "what"},
        {"name": "weight", "type": "long", "doc": "how many"},
        {"name": "length", "type": "long", "doc": "bytes"},
    ]
    return {"type": "record", "name": "kept", "doc": "d", "ch.ttl_days": 30, "fields": fields, **more}


FULL = record(**{
    "ch.key": 1, "ch.order": ["verdict", "ts"], "ch.bloom": ["length"],
    "ch.ttl_longer": {"verdict": {"drop": 400}},
    "ch.rollups": [{"by": ["toStartOfMinute(ts)", "verdict"], "sums": ["weight", "length * weight"]}],
})  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"ch.bloom": ["nothing"]}, "no field"),
        ({"ch.bloom": "length"}, "list of text"),
        ({"ch.rollups": [{"by": ["ts) FROM system.tables --"]}]}, "no field"),
        ({"ch.rollups": [{"by": ["verdict"], "sums": ["weight + 1"]}]}, "product of two"),
        ({"ch.rollups": [{"by": ["verdict"], "having": "1"}]}, "`by` and `sums`"),
        ({"ch.ttl_longer": {"verdict": {"drop', 1)--": 4}}}, "plain value"),
        ({"ch.ttl_longer": {"verdict": {"drop": "4"}}}, "a number"),
        ({"ch.ttl_longer": {"verdict": 4}}, "column"),
        ({"ch.key": 3, "ch.order": ["verdict", "ts"]}, "part of ch.order"),
        ({"ch.key": "1) --"}, "part of ch.order"),
    ],
)
def test_what_is_no_declaration_is_refused(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        declare.parse("kept", record(**wrong))


def test_the_engine_keeps_sums_and_lets_rows_go_by_importance(store: StoreProcess) -> None:
    config = Clickhouse(url=store.url, database=f"kept{time.monotonic_ns()}")
    client = connect(config, database="")
    (stream,) = declare.parse("kept", FULL).streams
    plain = declare.parse("kept", json.loads(json.dumps(record()))).streams[0]
    try:
        for statement in (ddl.database(config), *ddl.create(plain, config)):
            client.command(statement)
        for statement in (*ddl.extras(stream, config), *ddl.extras(stream, config)):
            client.command(statement)  # a table from before, twice
        table = f"{config.database}.kept"
        client.command(f"DROP TABLE {table} SYNC")
        (create,) = ddl.create(stream, config)
        client.command(create)
        now = int(time.time()) // DAY * DAY
        for age, verdict, count in ((40, "drop", 5), (40, "pass", 7), (1, "pass", 11), (401, "drop", 13)):
            client.command(
                f"INSERT INTO {table} (host, ts, verdict, weight, length) "
                f"SELECT 'h', toDateTime64({now - age * DAY}, 6) + number, '{verdict}', number + 1, 100 "
                f"FROM numbers({count})"
            )
        client.command(f"OPTIMIZE TABLE {table} FINAL")
        query = (
            "SELECT verdict, count(), sum(weight), sum(length * weight) FROM {database:Identifier}.kept "
            "WHERE toStartOfMinute(ts) >= toDateTime64(1000, 6) GROUP BY verdict ORDER BY verdict"
        )
        wanted = [("drop", 5, 15, 1500), ("pass", 11, 66, 6600)]
        for use in (0, 1):
            settings = {"optimize_use_projections": use}
            assert client.query(query, {"database": config.database}, settings=settings).result_rows == wanted
        explained = client.query(f"EXPLAIN {query}", {"database": config.database}).result_rows
        assert any("rollup_" in line for (line,) in explained)
    finally:
        client.command(f"DROP DATABASE IF EXISTS {config.database} SYNC")
        client.close()


def test_a_table_from_before_gets_what_is_declared_now(store: StoreProcess) -> None:
    """Its old rollup goes, the new one comes, for older rows too; then nothing is left to do."""
    config = Clickhouse(url=store.url, database=f"before{time.monotonic_ns()}")
    client = connect(config, database="")
    (stream,) = declare.parse("kept", FULL).streams
    table = f"{config.database}.kept"

    def run(backfill: bool) -> int:
        def names(source: str) -> list[str]:
            rows = client.query(f"SELECT name FROM system.{source} WHERE database = '{config.database}'")
            return [name for (name,) in rows.result_rows]

        there = dict.fromkeys(names("data_skipping_indices"), "INDEX")
        there |= dict.fromkeys(names("projections"), "PROJECTION")
        definition = str(client.command(f"SHOW CREATE TABLE {table}")).replace("\\'", "'")
        todo = list(ddl.renew_extras(stream, there, definition, config, backfill))
        for each in todo:
            client.command(each, settings={"mutations_sync": 1})
        return len(todo)

    try:
        older = record(**{"ch.rollups": [{"by": ["verdict"], "sums": ["length"]}]})
        for each in (ddl.database(config), *ddl.create(declare.parse("kept", older).streams[0], config)):
            client.command(each)
        client.command(f"ALTER TABLE {table} MODIFY SETTING default_compression_codec = 'LZ4'")
        client.command(f"INSERT INTO {table} (ts, verdict, weight, length) VALUES (now(), 'drop', 3, 4)")
        assert run(backfill=True) == 6  # codec; the old one; an index and a rollup, built
        parts = client.query("SELECT name, sum(rows) FROM system.projection_parts "
                             f"WHERE active AND database = '{config.database}' GROUP BY name")  # fmt: skip
        found = [(name in ddl.extra_names(stream), rows) for name, rows in parts.result_rows]
        assert found == [(True, 1)]
        assert run(backfill=True) == 0
        assert client.query(f"SELECT sum(length * weight) FROM {table}").result_rows == [(12,)]
    finally:
        client.command(f"DROP DATABASE IF EXISTS {config.database} SYNC")
        client.close()


def test_retention_and_tiering_are_settings(store: StoreProcess) -> None:
    """The engine's own policy has one volume, `default`: enough to see that it takes what we declare."""
    tiered = {"storage_policy": "default", "cold_volume": "default", "cold_days": 14}
    config = Clickhouse(url=store.url, database=f"tiers{time.monotonic_ns()}", retention_days={"kept": 77},
                        **tiered)  # fmt: skip
    client = connect(config, database="")
    try:
        for declared, life in ((FULL, "multiIf(verdict = 'drop', 400, 77)"), (record(), "toIntervalDay(77)")):
            (stream,) = declare.parse("kept", json.loads(json.dumps(declared))).streams
            for statement in (ddl.database(config), *ddl.create(stream, config)):
                client.command(statement)
            made = str(client.command(f"SHOW CREATE TABLE {config.database}.kept")).replace("\\'", "'")
            assert life in made and "toIntervalDay(14) TO VOLUME 'default'" in made
            assert "storage_policy = 'default'" in made
            client.command(f"DROP TABLE {config.database}.kept")
        clustered = Clickhouse(cluster="prod", **tiered)
        assert "TO VOLUME 'default'" in ddl.create(stream, clustered)[0]
        assert "VOLUME" not in ddl.create(stream, Clickhouse(cluster="prod", cold_days=14))[0]
    finally:
        client.command(f"DROP DATABASE IF EXISTS {config.database}")
        client.close()
