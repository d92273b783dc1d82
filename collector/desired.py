"""Desired state on this host: from Kafka, disk and files, through the judge, to the handlers.

One thread reads and judges; each kind's handler has a thread of its own, so that a slow one holds up nobody.
The agent starts it, ships what :meth:`DesiredState.rows` gives, and stops it.

Until it is known what is wanted (the topic was read whole, or an earlier collector's state was found on
disk, or there are files) no handler is called: what a former collector left in the kernel stays in force.
"""

import logging
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from collector.companion import Companion, Row
from collector.desired_files import DesiredFiles
from collector.desired_ledger import Accepted, Ledger
from collector.desired_topic import DesiredTopic
from collector.desired_worker import APPLIED, Gone, Handler, Outcome, State, Worker
from schemas import desired, signing
from schemas.config import Config
from schemas.desired import Refused, Sealed, Trust, now_us

__all__ = ["APPLIED", "DesiredState", "Handler", "Outcome"]

log = logging.getLogger("bpfleet.collector")
WAIT_S, FILES_S = 1.0, 0.5  # for a message, between two looks at times, and at files where there are any
GRACE_S = 2.0  # how long Kafka may take before the state on disk counts
SKEW_US = 300_000_000  # clocks further apart are worth a word
REFUSALS, REFUSALS_S = 200, 10.0  # so many refused messages are reported in so many seconds
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}/[\w.:@-]{1,128}", re.ASCII)


class DesiredState(Companion):
    """Everything between the sources and the handlers."""

    def __init__(self, config: Config, handlers: Iterable[Handler], *, kafka: bool = True) -> None:
        """``kafka`` False: files only. Raises UsageError for keys that it cannot read."""
        super().__init__()
        keys = signing.trusted_keys(config.collector.trusted_keys)
        trust = Trust(keys, tuple(config.collector.signed_kinds))
        self._workers = {each.kind.name: Worker(each, self._tell) for each in handlers}
        kinds = {name: each.handler.kind for name, each in self._workers.items()}
        self._ledger = Ledger(config, trust, kinds)
        self._files = DesiredFiles(config, kinds)
        self._topic = DesiredTopic(config) if kafka else None
        self._on_disk = False
        self._changed = True
        self._distributed = False  # the handlers know what is wanted
        self._caught_up = False  # what the topic held at the start was heard
        self._ended: list[Gone] = []  # what ended without having been offered
        self._shadowed: dict[str, str] = {}
        self._next_expiry: int | None = None
        self._started = 0.0
        # Apart, so that garbage does not drown the answer to an operator's mistake.
        self._quotas = {"unreadable messages": _Quota(), "documents": _Quota()}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="desired", daemon=True)

    # ── For the agent ────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Begin to read; handlers are called from now on."""
        self._thread.start()

    def again(self, kind: str) -> None:
        """Have this kind's handler called again: something of its own accord has changed. From any thread."""
        self._workers[kind].again()

    @property
    def settled(self) -> bool:
        """Whether the handlers have been told what is wanted."""
        return self._distributed

    def stop(self) -> None:
        """End the threads. What is in force stays in force."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(WAIT_S + 2)
        for worker in self._workers.values():
            worker.stop()

    # ── The thread ───────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        self._started = time.monotonic()
        self._on_disk = self._ledger.load(lambda sealed, reason: self._refuse(None, sealed, reason, "disk"))
        for worker in self._workers.values():
            worker.start()
        while not self._stopping.is_set():
            try:
                self._pass()
            except Exception:  # whatever a message did: the others must still be heard
                log.exception("desired state: a fault of our own")
                self._stopping.wait(1.0)
        if self._topic is not None:
            self._topic.close()
        self._ledger.close()

    def _pass(self) -> None:
        """Hear, judge, distribute, once."""
        wait = self._wait_s()
        if self._topic is None:
            self._stopping.wait(wait)
        else:
            for key, value in self._topic.poll(wait):
                self._receive(key, value)
        self._caught_up = self._topic is None or self._topic.whole
        self._look_at_files()
        if self._next_expiry is not None and now_us() >= self._next_expiry:
            self._changed = True
        if self._changed and self._known():
            self._distribute()
        self._sum_up_refusals()

    def _wait_s(self) -> float:
        left = FILES_S if self._files.configured else WAIT_S
        if self._next_expiry is not None:
            left = min(left, (self._next_expiry - now_us()) / 1e6)
        if not self._distributed:
            left = min(left, 0.1)
        return max(0.0, left)

    def _known(self) -> bool:
        """Whether it is settled what is wanted, as far as that can be."""
        if self._topic is None or self._topic.whole:
            self._ledger.begin()
            return True
        has_state = self._on_disk or self._files.configured
        return self._distributed or (has_state and time.monotonic() - self._started > GRACE_S)

    def _receive(self, key: bytes | None, value: bytes | None) -> None:
        if value is None:  # Kafka's own tombstone only tidies up: a deletion is a document
            return
        name = None if key is None else key.decode("utf-8", "replace")
        sealed = None
        try:
            sealed = desired.unseal(value)
            known = self._ledger.entries.get(sealed.document.name)
            accepted = self._ledger.take(name, sealed)
        except Refused as error:
            self._refuse(name, sealed, str(error), "kafka")
        except Exception as error:  # whatever a message does: the others must still be heard
            log.exception("desired state: a fault of our own")
            self._refuse(name, None, f"a fault of the collector's: {type(error).__name__}: {error}", "kafka")
        else:
            if accepted is not None:
                self._changed = True
                self._note_end(accepted, known)

    def _note_end(self, accepted: Accepted, known: Accepted | None) -> None:
        """A tombstone of what is not in force, or a document that came too late, wants an answer too.

        Not one that lay on the topic before this host first heard of it.
        """
        document = accepted.document
        if document.id in self._workers[document.kind].offered or not accepted.mine:
            return
        if not self._caught_up and (known is None or not known.mine):
            return
        if document.deleted:
            self._ended.append(Gone(accepted, "removed", "it was not in force here"))
        elif document.expired(now_us()):
            self._ended.append(Gone(accepted, "expired", "its time to live was over before it arrived"))

    def _look_at_files(self) -> None:
        self._changed |= self._files.poll()
        for accepted in self._files.fresh:
            self.put("desired", _audit(accepted))
        for name, reason in self._files.refusals:
            log.warning("desired state: %s: %s", name, reason)
            self._refuse(name, None, reason, "file")

    # ── To the handlers ──────────────────────────────────────────────────────────────────────────

    def _distribute(self) -> None:
        now = now_us()
        live = {each.document.name: each for each in self._ledger.live(now)}
        own = {name: each for name, each in self._files.documents.items() if each.live(now)}
        self._tell_shadowed({name: live[name] for name in live.keys() & own.keys()})
        live |= own
        ends = [each.document.expires for each in live.values() if each.document.expires is not None]
        self._next_expiry = min(ends, default=None)
        for kind, worker in self._workers.items():
            wanted = {each.document.id: each for each in live.values() if each.document.kind == kind}
            gone = [self._gone(each, now) for name, each in worker.offered.items() if name not in wanted]
            gone += [each for each in self._ended if each.accepted.document.kind == kind]
            if not self._distributed or gone or _marks(wanted) != _marks(worker.offered):
                worker.offer(wanted, gone)
        self._ended.clear()
        self._changed, self._distributed = False, True

    def _gone(self, last: Accepted, now: int) -> Gone:
        newest = self._ledger.entries.get(last.document.name, last)
        if last.source == "file" or newest.document.revision < last.document.revision:
            newest = last
        at = replace(newest, at=time.monotonic()) if newest is last else newest
        if not newest.document.deleted and newest.mine and newest.document.expired(now):
            return Gone(at, "expired")
        if newest.document.deleted:
            return Gone(at, "removed", newest.document.comment)
        if newest is last:
            return Gone(at, "removed", "it is no longer in the host's own files")
        return Gone(at, "removed", "it is no longer for this host")

    # ── Reports ──────────────────────────────────────────────────────────────────────────────────

    def _tell_shadowed(self, shadowed: dict[str, Accepted]) -> None:
        for name, each in shadowed.items():
            if self._shadowed.get(name) != each.digest:
                self._tell(each, "refused", "a file of this host's own has the same kind and id")
        self._shadowed = {name: each.digest for name, each in shadowed.items()}

    def _tell(self, accepted: Accepted, state: State, reason: str) -> None:
        ahead = accepted.document.created - now_us()
        if ahead > SKEW_US:
            reason = (
                f"{reason}; " * bool(reason) + f"this clock is {ahead // 1_000_000:,} s behind its author's"
            )
        duration = int((time.monotonic() - accepted.at) * 1e6)
        row = {**_row(accepted), "state": state, "reason": reason[:1000], "duration_us": duration}
        self.put("applied", row)

    def _refuse(
        self, name: str | None, sealed: Sealed | None, reason: str, source: Literal["kafka", "disk", "file"]
    ) -> None:
        if not self._quotas["unreadable messages" if sealed is None else "documents"].take():
            return
        row: Row = {"ts": now_us(), "state": "refused", "reason": reason[:1000], "source": source}
        if sealed is not None:
            row |= _identity(sealed.document) | {"digest": sealed.document.digest}
        elif name is not None and NAME.fullmatch(name):
            row["kind"], _, row["id"] = name.partition("/")
        else:
            row["id"] = repr(name)[:128]
        self.put("applied", row)

    def _sum_up_refusals(self) -> None:
        for what, quota in self._quotas.items():
            more = quota.over()
            if more:
                reason = f"{more:,} more {what} were refused within {REFUSALS_S:.0f} s"
                log.warning("desired state: %s; who may write to the topic?", reason)
                row = {"ts": now_us(), "state": "refused", "reason": reason, "source": "kafka"}
                self.put("applied", row)


@dataclass
class _Quota:
    """So many rows in so many seconds; the rest is counted."""

    used: int = 0
    since: float = 0.0

    def take(self) -> bool:
        """Whether there is room for one more."""
        if not self.used:
            self.since = time.monotonic()
        self.used += 1
        return self.used <= REFUSALS

    def over(self) -> int:
        """At the end of the time: how many there was no room for; then it begins anew."""
        if not self.used or time.monotonic() - self.since < REFUSALS_S:
            return 0
        more, self.used = max(0, self.used - REFUSALS), 0
        return more


def _marks(wanted: dict[str, Accepted]) -> dict[str, tuple[int, str]]:
    return {name: (each.document.revision, each.digest) for name, each in wanted.items()}


def _identity(document: desired.Document) -> Row:
    return {
        "kind": document.kind, "id": document.id, "revision": document.revision,
        "author": document.author, "created": document.created,
    }  # fmt: skip


def _row(accepted: Accepted) -> Row:
    identity = _identity(accepted.document)
    return identity | {
        "ts": now_us(), "signer": accepted.signer, "source": accepted.source, "digest": accepted.digest,
    }  # fmt: skip


def _audit(accepted: Accepted) -> Row:
    """A row of `desired` for a document that no publisher has entered."""
    return desired.audit_row(accepted.document, "", accepted.document.author)
