"""What this host has accepted of desired state; kept on disk, so that it outlives a restart without Kafka.

The file is a log of lines that is only appended to, and written anew at a start when most of it is old.
A signed document is stored as it came and verified again when it is read back. Of every revision ever
accepted the number is remembered for as long as an older one could still be in force: that is what a
replayed message runs into.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from math import inf
from pathlib import Path

import msgspec
from msgspec import Struct

from schemas.config import Config
from schemas.desired import Document, Kind, Refused, Sealed, Trust, now_us

log = logging.getLogger("bpfleet.collector")
DAY_US = 86_400_000_000
MAX_DOCUMENTS = 10_000  # of one kind, for one host: unsigned kinds take no room from others
MAX_NUMBERS = 100_000  # of one kind: revisions remembered
SLACK_BYTES = 64 << 20  # of appended lines while it runs: likewise
SLACK_LINES = 200  # more stale lines than this, and than entries: the log is written anew


@dataclass(frozen=True)
class Accepted:
    """A revision that this host accepted."""

    document: Document  # without its spec unless it is for this host
    digest: str
    signer: str
    source: str  # kafka, disk or file
    mine: bool  # in scope
    until: int | None  # µs; when no revision accepted so far can be in force any more; None: never
    at: float  # monotonic seconds of its arrival

    def live(self, at_us: int) -> bool:
        """Whether it is to be in force here now."""
        return self.mine and not self.document.deleted and not self.document.expired(at_us)


class _Line(Struct, omit_defaults=True):
    name: str
    revision: int
    digest: str
    until: int | None = None
    sealed: Sealed | None = None  # None: not for this host, only the number counts


class Ledger:
    """The newest accepted revision of every document. For one thread."""

    def __init__(self, config: Config, trust: Trust, kinds: Mapping[str, Kind]) -> None:
        """Touches nothing; :meth:`load` does."""
        self._host, self._labels = config.host, dict(config.collector.labels)
        self._trust, self._kinds = trust, kinds
        self._file = Path(config.state_dir) / "desired" / "accepted.jsonl"
        self._log: int | None = None
        self.entries: dict[str, Accepted] = {}
        self._held: dict[str, set[str]] = {each: set() for each in kinds}  # names of those for this host
        self._numbers: Counter[str] = Counter()  # entries of each kind
        self._appended, self._bound = 0, SLACK_BYTES  # bytes since the log was written anew

    # ── Judging ──────────────────────────────────────────────────────────────────────────────────

    def take(self, name: str | None, sealed: Sealed) -> Accepted | None:
        """Accept a document that arrived under the key ``name``; None when it is already known.

        Raises :class:`Refused`; what was accepted before then stays as it was.
        """
        accepted = self._judge(name, sealed, "kafka")
        if accepted is not None:
            self._keep(accepted)
            self._write(_encode(_line(accepted, sealed)))
        return accepted

    def _judge(self, name: str | None, sealed: Sealed, source: str) -> Accepted | None:
        document = sealed.document
        if name != document.name:
            raise Refused(f"it came under the key `{name}`; that of {document.name} is expected")
        kind = self._kinds.get(document.kind)
        if kind is None:
            raise Refused(f"this collector knows no kind `{document.kind}`; upgrade it")
        known, digest = self.entries.get(document.name), document.digest
        if known is not None and (document.revision, digest) == (known.document.revision, known.digest):
            return None  # heard again, as at each start: its content was verified
        signer = self._trust.signer(sealed)
        if known is not None and document.revision <= known.document.revision:
            newest = known.document.revision
            raise Refused(f"revision {document.revision} is not newer than {newest}, which was accepted here")
        kind.judge(document)
        mine = document.scope.covers(self._host, self._labels)
        self._check_room(document, mine)
        until = document.expires if known is None else _later(known.until, document.expires)
        kept = document if mine else msgspec.structs.replace(document, spec=None)
        return Accepted(kept, digest, signer, source, mine, until, time.monotonic())

    def _check_room(self, document: Document, mine: bool) -> None:
        kind, name = document.kind, document.name
        if mine and name not in self._held[kind] and len(self._held[kind]) >= MAX_DOCUMENTS:
            now = now_us()
            self._held[kind] = {each for each in self._held[kind] if self.entries[each].live(now)}
        if mine and name not in self._held[kind] and len(self._held[kind]) >= MAX_DOCUMENTS:
            raise Refused(f"this host already holds {MAX_DOCUMENTS:,} documents of {kind}; remove some")
        if name not in self.entries and self._numbers[kind] >= MAX_NUMBERS:
            raise Refused(f"this host already remembers {MAX_NUMBERS:,} documents of {kind}; use fewer ids")

    def _keep(self, accepted: Accepted) -> None:
        name, kind = accepted.document.name, accepted.document.kind
        self._numbers[kind] += name not in self.entries
        self.entries[name] = accepted
        held = self._held.setdefault(kind, set())
        if accepted.mine and not accepted.document.deleted:
            held.add(name)
        else:
            held.discard(name)

    # ── Answers ──────────────────────────────────────────────────────────────────────────────────

    def live(self, at_us: int) -> list[Accepted]:
        """What is to be in force on this host now."""
        names = chain.from_iterable(self._held.values())
        return [each for name in names if (each := self.entries[name]).live(at_us)]

    def next_expiry(self, at_us: int) -> int | None:
        """When the next live document ends."""
        return min(
            (each.document.expires for each in self.live(at_us) if each.document.expires), default=None
        )

    # ── On disk ──────────────────────────────────────────────────────────────────────────────────

    def load(self, refuse: Callable[[Sealed, str], None]) -> bool:
        """Read the log back; whether there was one. What no longer passes is told to ``refuse``.

        A torn or damaged line ends in the log's loss of that document only, and in a warning.
        """
        found = self._latest()
        if found is None:
            return False
        latest, stale = found
        for line in latest.values():
            self._restore(line, refuse)
        if stale > max(SLACK_LINES, len(latest)):
            self._rewrite(list(latest.values()))
        return True

    def _latest(self) -> tuple[dict[str, _Line], float] | None:
        """The log's last line of each name, and how many others it has (a torn one: no end of them)."""
        try:
            data = self._file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("cannot read %s: %s; waiting for Kafka instead", self._file, error.strerror)
            return None
        lines = 0
        latest: dict[str, _Line] = {}
        for raw in data.splitlines():
            lines += 1
            try:
                line = msgspec.json.decode(raw, type=_Line)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                log.warning("%s: line %d is damaged and skipped", self._file, lines)
                continue
            latest[line.name] = line
        horizon = now_us() - DAY_US
        latest = {name: each for name, each in latest.items() if each.until is None or each.until > horizon}
        torn = bool(data) and not data.endswith(b"\n")
        return latest, inf if torn else lines - len(latest)

    def _restore(self, line: _Line, refuse: Callable[[Sealed, str], None]) -> None:
        if line.sealed is not None:
            try:
                accepted = self._judge(line.name, line.sealed, "disk")
            except Refused as error:
                refuse(line.sealed, str(error))
            else:
                if accepted is not None:
                    self._keep(replace(accepted, until=line.until))
                return
        # Nothing older: but this very revision may come again and be for this host now, or be the true one.
        kind, _, identity = line.name.partition("/")
        number = Document(kind=kind, id=identity, revision=line.revision - 1, created=0)
        self._keep(Accepted(number, "", "", "disk", False, line.until, time.monotonic()))

    def _write(self, data: bytes) -> None:
        try:
            if self._log is None:
                self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                self._log = os.open(self._file, flags, 0o600)
            os.write(self._log, data)
            self._appended += len(data)
            if self._appended > self._bound:
                self._tidy()
        except OSError as error:
            log.warning("cannot keep desired state in %s: %s; it lasts until the next restart only",
                        self._file, error.strerror)  # fmt: skip

    def _tidy(self) -> None:
        """Write the log anew while it runs, so that many revisions do not fill the disk."""
        found = self._latest()
        if found is not None:
            self.close()
            self._rewrite(list(found[0].values()))
        self._appended = 0
        self._bound = max(SLACK_BYTES, self._file.stat().st_size)

    def begin(self) -> None:
        """Kafka's topic was read whole: from now on there is a state, even if it is empty."""
        if self._log is None:
            self._write(b"")

    def _rewrite(self, lines: list[_Line]) -> None:
        fresh = self._file.with_suffix(".new")
        try:
            with fresh.open("wb") as out:  # in a directory that nobody else may enter
                out.writelines(_encode(each) for each in lines)
                out.flush()
                os.fsync(out.fileno())
            fresh.replace(self._file)
        except OSError as error:
            log.warning("cannot write %s: %s", fresh, error.strerror)

    def close(self) -> None:
        """Give the file back."""
        if self._log is not None:
            os.close(self._log)
            self._log = None


def _line(accepted: Accepted, sealed: Sealed) -> _Line:
    document = accepted.document
    whole = sealed if accepted.mine else None
    return _Line(document.name, document.revision, accepted.digest, accepted.until, whole)


def _encode(line: _Line) -> bytes:
    return msgspec.json.encode(line, order="sorted") + b"\n"


def _later(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else max(one, other)
