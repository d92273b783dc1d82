"""``bpfleet simulate``: a fleet to look at, to test with, and to size a store by."""

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from fleet import supervise
from fleet.render.window import seconds
from fleet.simulate.plan import LEAST_HOSTS, LEAST_HOURS, Fleet, Incident
from schemas.clickhouse import connect, explain
from schemas.config import Config
from schemas.errors import UsageError

MAX_ROWS = 200_000_000
EXAMPLES = """\b
Examples:
  bpfleet simulate                                     12 hosts, a day, every incident
  bpfleet simulate --hosts 40 --days 7 --incidents flood,slow-disk
  bpfleet simulate --scale 60 --incidents none         rows every second, as real hosts have: for sizing
  bpfleet render fleet --since 3h -o fleet.html        look at it
  bpfleet forensics replay simulated-flood --since 3h  ask about it
  bpfleet simulate --remove                            and away with it
"""


@click.command(epilog=EXAMPLES)
@click.option("--hosts", default=12, show_default=True, type=click.IntRange(LEAST_HOSTS, 2000),
              help="One in four is an edge with filter and balancer.")  # fmt: skip
@click.option("--days", default=1.0, show_default=True, type=click.FloatRange(LEAST_HOURS / 24, 30),
              help="How far back it goes.")  # fmt: skip
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0, 2**31),
              help="The same seed and end make the same rows.")  # fmt: skip
@click.option("--incidents", default="all", show_default=True, metavar="NAMES",
              help="all, none, or names with commas.")  # fmt: skip
@click.option("--until", type=int, help="End of the history, seconds since 1970; default: now.")
@click.option("--scale", default=1.0, show_default=True, type=click.FloatRange(0.1, 60),
              help="So many times the rows; 1 is about one a minute for each cgroup and stream.")  # fmt: skip
@click.option("--among-real-data", is_flag=True, help="Even into a store that has rows of real hosts.")
@click.option("--remove", is_flag=True, help="Delete all simulated rows from the store, and nothing else.")
@click.option("--json", "as_json", is_flag=True, help="What was planted, an object a line.")
@click.pass_obj
def simulate(
    config: Config, hosts: int, days: float, seed: int, incidents: str, until: int | None, scale: float,
    among_real_data: bool, remove: bool, as_json: bool,
) -> None:  # fmt: skip
    """Fill the store with a fleet that is not there: hosts × days, known incidents, by Kafka and sink.

    Kafka, store and sink that should run here and do not are started for it. Simulated hosts are named
    sim-…, and every row has a boot id that no kernel makes; --remove finds them by it.
    """
    from fleet.simulate.incidents import planned

    end = float(until or int(time.time()))
    fleet = Fleet(hosts, end - days * 86_400, end, seed)
    chosen = planned(fleet, incidents)
    parts = [
        each
        for each in supervise.parts_of(config)
        if each.name not in ("collect", "diagnose") and not each.answers()
    ]
    if remove:
        parts = [each for each in parts if each.name == "store"]
    try:
        supervise.start(parts, _say)
        if remove:
            _remove(config)
        else:
            _fill(config, fleet, chosen, scale, among_real_data)
            _tell(chosen, until, as_json)
    finally:
        supervise.stop(parts, _say)


def _say(text: str) -> None:
    click.echo(f"▸ {text}", err=True)


def _fill(config: Config, fleet: Fleet, chosen: Sequence[Incident], scale: float, among_real: bool) -> None:
    from clickhouse_connect.driver.exceptions import ClickHouseError

    from fleet.simulate import store
    from fleet.simulate.edge_incidents import usual
    from fleet.simulate.ship import Shipment

    shipment = Shipment(config, fleet, chosen, usual(fleet), scale)
    if shipment.total() > MAX_ROWS:
        raise UsageError(
            f"that would be {shipment.total():,} rows; take fewer hosts, days, or a smaller --scale"
        )
    client = connect(config.clickhouse, database="")
    try:
        _refuse(client, config, among_real)
        began = time.monotonic()
        with click.progressbar(length=shipment.total(), label="into Kafka    ") as bar:
            shipment.run(client, bar.update)
        with click.progressbar(length=sum(shipment.sent.values()), label="into the store") as bar:
            store.wait(client, config.clickhouse, shipment.sent, shipment.boots(), bar.update)
        _say(f"{sum(shipment.sent.values()):,} rows in {len(shipment.sent)} tables, "
             f"{time.monotonic() - began:.0f} s")  # fmt: skip
    except (ClickHouseError, OSError) as error:
        raise explain(error, config.clickhouse) from None
    finally:
        client.close()


def _refuse(client: Any, config: Config, among_real: bool) -> None:
    """Raises :class:`UsageError` where the rows would not be welcome."""
    from fleet.simulate import store

    there = [] if among_real else store.real(client, config.clickhouse)
    if there:
        raise UsageError(
            f"{config.clickhouse.url} has rows of real hosts ({there[0]} …); simulate in a store of its own "
            "(BPFLEET_STATE_DIR, BPFLEET_CLICKHOUSE_DATABASE), or say --among-real-data: dashboards, alerts "
            "and a running `bpfleet mitigate` will then take simulated trouble for real"
        )
    if there := store.simulation(client, config.clickhouse):
        raise UsageError(f"there are simulated rows already ({there[0]} …); first: bpfleet simulate --remove")


def _remove(config: Config) -> None:
    from clickhouse_connect.driver.exceptions import ClickHouseError

    from fleet.simulate import store

    client = connect(config.clickhouse, database="")
    try:
        gone = store.remove(client, config.clickhouse)
    except (ClickHouseError, OSError) as error:
        raise explain(error, config.clickhouse) from None
    finally:
        client.close()
    click.echo(f"{sum(gone.values()):,} simulated rows removed from {len(gone)} tables")


def _asked(words: Sequence[str], until: int | None) -> str:
    """The question as one types it; of a history that ended at ``until``, with the times it was then."""
    said = " ".join(("bpfleet forensics", *words))
    if until is None:
        return said
    ends = datetime.fromtimestamp(until, UTC)
    _, since, length = said.partition(" --since ")
    if since:
        begins = ends - timedelta(seconds=seconds(length.split()[0]))
        said = said.replace(f" --since {length.split()[0]}", f" --since {begins:%Y-%m-%dT%H:%M:%S}")
    return f"{said} --until {ends:%Y-%m-%dT%H:%M:%S}"


def _tell(chosen: Sequence[Incident], until: int | None, as_json: bool) -> None:
    """What was planted, and where it shows."""
    for each in chosen:
        begin, end = (datetime.fromtimestamp(at, UTC) for at in (each.begin, each.end))
        shown = [f"{look.board}: {look.panel}" for look in each.looks]
        asked = [_asked(ask.words, until) for ask in each.asks]
        if as_json:
            told = {"name": each.name, "what": each.what, "begin": begin.isoformat(), "end": end.isoformat()}
            click.echo(json.dumps(told | {"panels": shown, "questions": asked}, ensure_ascii=False))
            continue
        click.echo(f"\n{each.name}  {begin:%H:%M:%S} – {end:%H:%M:%S} UTC  {each.what}")
        for line in [*shown, *asked]:
            click.echo(f"    {line}")
