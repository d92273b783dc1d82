"""The live view of `bpfleet probe run`: what hosts answered, and the results so far, from SQL."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from fleet.acknowledge import Answer, Watch, in_scope, live_hosts
from fleet.desired import Board, Draft
from fleet.desired_options import How
from fleet.probe_results import Question, Results, as_json, as_table, ask, question
from schemas.config import Config
from schemas.desired import Document, now_us
from schemas.errors import BpfleetError
from schemas.probe_spec import Checked
from schemas.signing import private_key

ROWS = 25
POLL_S, SHOW_S = 0.1, 1.0
LAST_S = 1.5  # after its end: what is still on its way


@contextmanager
def store(config: Config) -> Iterator[Any]:
    """A client of ClickHouse; its errors become one line."""
    from clickhouse_connect.driver.exceptions import ClickHouseError

    from schemas.clickhouse import connect, explain

    client = connect(config.clickhouse)
    try:
        yield client
    except (ClickHouseError, OSError) as error:
        raise explain(error, config.clickhouse) from None
    finally:
        client.close()


class Live:
    """One probe, watched."""

    def __init__(self, config: Config, checked: Checked, document: Document, hosts: set[str]) -> None:
        self.checked, self.document, self.hosts = checked, document, hosts
        self.answers: dict[str, Answer] = {}
        self.first_row_s: float | None = None
        self.results = Results([], [])

    def asked(self, limit: int = ROWS) -> Question:
        """The question for its results."""
        since = (now_us() - self.document.created) / 1e6 + 60
        name, revision = self.document.id, self.document.revision
        return question(self.checked, name, revision, since, limit, len(self.hosts) > 1)

    def hear(self, answers: list[Answer]) -> None:
        """Keep what hosts said of this revision."""
        for each in answers:
            if each.name == self.document.name and each.revision >= self.document.revision:
                self.answers[each.host] = each

    def look(self, client: Any) -> None:
        """Ask for the results."""
        self.results = ask(client, self.asked())
        if self.results.rows and self.first_row_s is None:
            self.first_row_s = (now_us() - self.document.created) / 1e6

    @property
    def all_refused(self) -> bool:
        """Whether no host is left that could have results."""
        bad = {host for host, each in self.answers.items() if each.state in ("refused", "failed")}
        return bool(bad) and bad >= self.hosts

    def status(self) -> list[str]:
        """Lines about the hosts."""
        running = sum(each.state == "applied" for each in self.answers.values())
        lines = [f"{self.document.id}: runs on {running} of {max(len(self.hosts), len(self.answers))} hosts"]
        for host, each in sorted(self.answers.items()):
            if each.state in ("refused", "failed"):
                lines.append(f"{host} {each.state}: {each.reason}")
        if self.first_row_s is not None:
            lines.append(f"first row after {self.first_row_s:.2f} s")
        return lines

    def draw(self) -> Any:
        """Everything as a rich renderable."""
        from rich.console import Group
        from rich.text import Text

        blocks = [Text(line, style="dim") for line in self.status()]
        return Group(*blocks, as_table(self.results)) if self.results.rows else Group(*blocks)


def follow(config: Config, draft: Draft, checked: Checked, how: How, seconds: int | None, keep: bool) -> None:
    """Publish, show until Ctrl-C or for ``seconds``, end it unless it is to stay."""
    board = Board(config, private_key(how.key_file) if how.key_file else None)
    watch = Watch(config)
    try:
        with store(config) as client:
            (document,) = board.publish([draft])
            live = Live(config, checked, document, in_scope(document, live_hosts(config)))
            try:
                _watch(live, watch, client, seconds, quiet=how.as_json)
            except KeyboardInterrupt:
                pass
            finally:
                if not keep:
                    board.delete([document.name], "the one who watched it ended it")
            _finish(live, client, keep, how.as_json)
    finally:
        watch.close()
        board.close()
    if live.all_refused:
        raise BpfleetError(f"no host runs it; `bpfleet probe show {draft.id}` says why")


def _watch(live: Live, watch: Watch, client: Any, seconds: int | None, quiet: bool) -> None:
    from rich.live import Live as Screen

    from fleet.sql import console

    end = time.monotonic() + seconds if seconds else None
    shown = 0.0
    with Screen(console=console(), auto_refresh=False, transient=True) as screen:
        while (end is None or time.monotonic() < end) and not live.all_refused:
            live.hear(watch.poll(POLL_S))
            now = time.monotonic()
            if live.first_row_s is None or now - shown > SHOW_S:
                live.look(client)
                shown = now
                if sys.stdout.isatty() and not quiet:
                    screen.update(live.draw(), refresh=True)


def _finish(live: Live, client: Any, keep: bool, machine: bool) -> None:
    """Wait for the last figures, print them, say what became of it."""
    from fleet.sql import console

    if live.answers and not live.all_refused:
        time.sleep(LAST_S)
    live.results = ask(client, live.asked(1000))
    if machine:
        for line in as_json(live.results):
            click.echo(line)
        return
    console().print(live.draw())
    name = live.document.id
    left = f"it runs on; `bpfleet probe stop {name}` ends it" if keep else "it was ended"
    click.echo(f"{left}; `bpfleet probe results {name}` shows this again")
