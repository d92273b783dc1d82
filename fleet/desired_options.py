"""What every command that publishes desired state shares: scope, time to live, signature, waiting, report."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from fleet.acknowledge import Answer, Watch, complaint, in_scope, live_hosts
from fleet.desired import Board
from schemas import desired
from schemas.config import Config
from schemas.desired import Document, Scope
from schemas.errors import UsageError
from schemas.signing import private_key

F = TypeVar("F", bound=Callable[..., Any])
Publish = Callable[[Board], list[Document]]


def scope_options(command: F) -> F:
    """Adds --host, --label and --interface; the command takes one argument ``scope``."""

    @click.option(
        "--host", "hosts", multiple=True, metavar="NAME", help="Hosts: names or patterns; !NAME leaves out."
    )
    @click.option(
        "--label", "labels", multiple=True, metavar="NAME=VALUE", help="Only hosts with this label."
    )
    @click.option("--interface", "interfaces", multiple=True, metavar="NAME", help="Only these interfaces.")
    @wraps(command)
    def taking(*args: Any, hosts: tuple[str, ...], labels: tuple[str, ...], interfaces: tuple[str, ...],
               **more: Any) -> Any:  # fmt: skip
        pairs = [each.partition("=") for each in labels]
        for name, separator, _ in pairs:
            if not name or not separator:
                raise UsageError(f"--label takes NAME=VALUE, not `{name}`")
        scope = Scope(hosts, {name: value for name, _, value in pairs}, interfaces)
        return command(*args, scope=scope, **more)

    return taking  # type: ignore[return-value]


def publish_options(command: F) -> F:
    """Adds --comment, --key, --wait, --timeout and --json; the command takes ``how``: a :class:`How`."""

    @click.option("--comment", default="", help="Why; kept in the audit trail.")
    @click.option("--key", "key_file", type=click.Path(path_type=Path), help="Sign with this private key.")
    @click.option("--wait", is_flag=True, help="Return when the hosts in scope have acknowledged.")
    @click.option("--timeout", default=10.0, show_default=True, help="Seconds to wait for them at most.")
    @click.option("--json", "as_json", is_flag=True, help="For machines.")
    @wraps(command)
    def taking(*args: Any, comment: str, key_file: Path | None, wait: bool, timeout: float, as_json: bool,
               **more: Any) -> Any:  # fmt: skip
        return command(*args, how=How(comment, key_file, timeout if wait else None, as_json), **more)

    return taking  # type: ignore[return-value]


class How:
    """How to publish, and what to do then."""

    def __init__(
        self,
        comment: str = "",
        key_file: Path | None = None,
        wait_s: float | None = None,
        as_json: bool = False,
    ) -> None:
        self.comment, self.key_file, self.wait_s, self.as_json = comment, key_file, wait_s, as_json

    def run(self, config: Config, publish: Publish) -> list[Document]:
        """Publish; with --wait hear the hosts, print what each said, and raise if one did otherwise."""
        board = Board(config, private_key(self.key_file) if self.key_file else None)
        watch = Watch(config) if self.wait_s is not None else None
        try:
            hosts = live_hosts(config) if watch else {}
            documents = publish(board)
            if watch is None or self.wait_s is None:
                self._say([{"name": each.name, "revision": each.revision} for each in documents], documents)
                return documents
            answers = watch.wait(documents, hosts, self.wait_s)
        finally:
            board.close()
            if watch:
                watch.close()
        print_answers(documents, answers, self.as_json)
        trouble = complaint(answers)
        if trouble is not None:
            raise trouble
        return documents

    def _say(self, rows: list[dict[str, Any]], documents: Sequence[Document]) -> None:
        if self.as_json:
            click.echo(json.dumps(rows))
        else:
            for each in documents:
                click.echo(
                    f"{each.name} {'is to end' if each.deleted else 'is published'}, revision {each.revision}"
                )


def print_answers(
    documents: Sequence[Document], answers: dict[tuple[str, str], Answer | None], as_json: bool
) -> None:
    """A row for each document and host: what it said, and how long after publication."""
    created = {each.name: each.created for each in documents}
    rows = []
    for (name, host), answer in answers.items():
        row: dict[str, Any] = {
            "document": name,
            "host": host,
            "state": "not heard",
            "reason": "",
            "after_ms": None,
        }
        if answer is not None:
            row |= {key: value for key, value in asdict(answer).items() if key in ("state", "reason")}
            row["after_ms"] = round((answer.heard - created[name]) / 1000, 1) if answer.heard else None
        rows.append(row)
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
    from fleet.sql import console, table

    names = ("document", "host", "state", "ms", "reason")
    console().print(
        table(names, [(r["document"], r["host"], r["state"], r["after_ms"], r["reason"]) for r in rows])
    )


def ttl(text: str | None) -> int | None:
    """The value of a --ttl option in seconds."""
    return None if text is None else desired.seconds(text)


def expected(document: Document, config: Config) -> set[str]:
    """The hosts heard lately that the document is for."""
    return in_scope(document, live_hosts(config))
