"""``bpfleet status``: is every part up, what lags, and when was each stream last seen?"""

import json
import time
from collections.abc import Callable
from typing import Any

import click

from schemas.config import Config, kafka_options
from schemas.errors import BpfleetError
from schemas.topics import stream_of, unreachable

LAG_SHOWN = 20
EXAMPLES = """\b
Examples:
  bpfleet status
  bpfleet status --json | jq '.parts[] | select(.up | not)'
"""


@click.command(epilog=EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.pass_obj
def status(config: Config, as_json: bool) -> int:
    """Show every part (up or not), lag per partition and the last row of each stream.

    Exits with 1 when a part is down or no collector was seen for a minute.
    """
    seen: dict[str, Any] = {"parts": [], "lag": [], "streams": [], "hosts": []}
    _part(seen, "kafka", config.kafka.servers, lambda: _kafka(config, seen))
    _part(seen, "clickhouse", config.clickhouse.url, lambda: _clickhouse(config, seen))
    alive = [each for each in seen["hosts"] if each["age_s"] < 60]
    silent = f"{len(alive)} of {len(seen['hosts'])} hosts seen in the last minute"
    seen["parts"].append({"part": "collectors", "where": "fleet", "up": bool(alive), "detail": silent})
    if as_json:
        click.echo(json.dumps(seen, indent=2, default=str))
    else:
        _print(seen)
    return 0 if all(each["up"] for each in seen["parts"]) else 1


def _part(seen: dict[str, Any], name: str, where: str, ask: Callable[[], str]) -> None:
    try:
        detail, up = ask(), True
    except BpfleetError as error:
        detail, up = str(error), False
    seen["parts"].append({"part": name, "where": where, "up": up, "detail": detail})


def _kafka(config: Config, seen: dict[str, Any]) -> str:
    from confluent_kafka import Consumer, KafkaException, TopicPartition

    options = kafka_options(config.kafka)
    consumer = Consumer({**options, "group.id": config.sink.group, "enable.auto.commit": False})
    try:
        topics = consumer.list_topics(timeout=5).topics
        places = [
            TopicPartition(name, number)
            for name, topic in topics.items()
            if stream_of(name)
            for number in topic.partitions
        ]
        for place in consumer.committed(places, timeout=5) if places else []:
            low, high = consumer.get_watermark_offsets(
                TopicPartition(place.topic, place.partition), timeout=5
            )
            behind = high - max(place.offset, low)
            if high > low:
                seen["lag"].append({"topic": place.topic, "partition": place.partition, "lag": behind})
    except KafkaException as error:
        raise unreachable(options, error, consumer) from None
    finally:
        consumer.close()
    behind = sum(each["lag"] for each in seen["lag"])
    return f"{len(topics)} topics; the sink is {behind} messages behind"


def _clickhouse(config: Config, seen: dict[str, Any]) -> str:
    from clickhouse_connect.driver.exceptions import ClickHouseError

    from schemas.clickhouse import connect, explain

    client = connect(config.clickhouse, timeout=5, database="")
    try:
        database = {"database": config.clickhouse.database}
        tables = client.query(
            "SELECT name FROM system.tables WHERE database = {database:String} AND engine LIKE '%MergeTree'"
            " OR database = {database:String} AND engine = 'Distributed' ORDER BY name",
            parameters=database,
        ).result_rows
        names = [name for (name,) in tables if not name.endswith("_local")]
        seen["streams"] = [_stream(client, config.clickhouse.database, name) for name in names]
        if "host" in names:
            seen["hosts"] = _hosts(client, config.clickhouse.database)
        version = client.command("SELECT version()")
    except (ClickHouseError, OSError) as error:
        raise explain(error, config.clickhouse) from None
    finally:
        client.close()
    return f"version {version}; {len(names)} tables, {sum(each['rows'] for each in seen['streams']):,} rows"


def _stream(client: Any, database: str, name: str) -> dict[str, Any]:
    from schemas.ddl import quote

    rows, last = client.query(
        f"SELECT count(), toUnixTimestamp64Micro(max(ts)) FROM {quote(database)}.{quote(name)}"
    ).first_row
    age = round(time.time() - last / 1e6, 1) if rows else None
    return {"stream": name, "rows": rows, "age_s": age}


def _hosts(client: Any, database: str) -> list[dict[str, Any]]:
    from schemas.ddl import quote

    rows = client.query(
        f"SELECT host, toUnixTimestamp64Micro(max(ts)) FROM {quote(database)}.host"
        " WHERE ts > now() - INTERVAL 1 DAY GROUP BY host ORDER BY host"
    ).result_rows
    return [{"host": host, "age_s": round(time.time() - last / 1e6, 1)} for host, last in rows]


def _print(seen: dict[str, Any]) -> None:
    from fleet.sql import console, table

    out = console()
    parts = [("up" if p["up"] else "DOWN", p["part"], p["where"], p["detail"]) for p in seen["parts"]]
    out.print(table(("", "part", "where", "detail"), parts))
    worst = sorted((each for each in seen["lag"] if each["lag"]), key=lambda each: -each["lag"])[:LAG_SHOWN]
    if worst:
        out.print(table(("topic", "partition", "messages behind"), [tuple(each.values()) for each in worst]))
    if seen["streams"]:
        rows = [(s["stream"], s["rows"], _age(s["age_s"])) for s in seen["streams"]]
        out.print(table(("stream", "rows", "last row"), rows))
    if seen["hosts"]:
        out.print(table(("host", "last seen"), [(h["host"], _age(h["age_s"])) for h in seen["hosts"]]))


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size * 2:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.1f} s ago"
