"""``bpfleet run``: the whole of bpfleet on this machine, with a live view."""

import contextlib
import signal
import sys
import time
from typing import Any

import click

from fleet import live, live_view, supervise
from schemas.clickhouse import connect, explain
from schemas.config import Config
from schemas.errors import Unreachable

PLAIN_EVERY_S = 5.0
PATIENCE_S = 60.0  # a store that does not answer while it runs is no reason to stop everything
EXAMPLES = """\b
Examples:
  bpfleet run                      until Ctrl-C
  bpfleet run --seconds 60 | cat   plain lines, for a minute
"""


@click.command(epilog=EXAMPLES)
@click.option("--seconds", type=float, help="Stop by itself after so long.")
@click.pass_obj
def run(config: Config, seconds: float | None) -> None:
    """Start Kafka, the ClickHouse endpoint, the sink, a collector and the diagnosis here, and watch them.

    Data stays in the state directory; a second run goes on with it. Ctrl-C stops everything in order.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):  # the latter: its terminal was closed
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    parts = supervise.parts_of(config)
    try:
        supervise.start(parts, _say)
        _watch(config, parts, None if seconds is None else time.monotonic() + seconds)
    except KeyboardInterrupt:
        _say("stopping")
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C does not cut the flush short
        supervise.stop(parts, _say)
    _say(f"stopped; the data is in {config.state_dir}")


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads any more: what runs is stopped in order all the same
        click.echo(f"▸ {text}")


def _watch(config: Config, parts: list[supervise.Part], until: float | None) -> None:
    watch = live.Watch(connect(config.clickhouse), config.clickhouse.database)
    processes = {part.name: live.Process(part.process.pid) for part in parts if part.process}
    delays, delay = live.Delays(config.sink.metrics_port), None
    footer = f'SQL: bpfleet sql "SELECT …" · {config.clickhouse.url} · Ctrl-C stops'
    view = _terminal(footer) if sys.stdout.isatty() else _lines()
    next(view)
    answered = time.monotonic()
    while until is None or time.monotonic() < until:
        for part in parts:
            part.check()
        costs = {name: process.look() for name, process in processes.items()}
        try:
            seen = _look(watch, config)
        except Unreachable:
            if time.monotonic() - answered > PATIENCE_S:
                raise
            time.sleep(1.0)
            continue
        answered = time.monotonic()
        seen.delay = delay = delays.look() or delay
        view.send((seen, costs))
        time.sleep(1.0)
    view.close()


def _look(watch: live.Watch, config: Config) -> live.Snapshot:
    from clickhouse_connect.driver.exceptions import ClickHouseError

    try:
        return watch.look(time.monotonic())
    except (ClickHouseError, OSError) as error:
        raise explain(error, config.clickhouse) from None


def _terminal(footer: str) -> Any:
    """Take (snapshot, costs) and redraw the screen."""
    from rich.live import Live

    with Live(screen=False, auto_refresh=False) as screen:
        while True:
            seen, costs = yield
            screen.update(live_view.draw(seen, costs, footer, screen.console), refresh=True)


def _lines() -> Any:
    """Take (snapshot, costs) and print a line now and then."""
    last = 0.0
    while True:
        seen, costs = yield
        if time.monotonic() - last >= PLAIN_EVERY_S:
            last = time.monotonic()
            click.echo(live_view.plain(seen, costs))
            sys.stdout.flush()
