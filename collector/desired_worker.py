"""A kind's handler at work: a thread hands it the whole set, again when that changed or something failed."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from collector.desired_ledger import Accepted
from schemas.desired import Document, Kind
from schemas.errors import BpfleetError

log = logging.getLogger("bpfleet.collector")
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0
STOP_S = 5.0
State = Literal["applied", "refused", "failed", "expired", "removed"]


class Outcome(NamedTuple):
    """What became of one document: ``refused`` when it is at fault, ``failed`` when this host is."""

    state: Literal["applied", "refused", "failed"] = "applied"
    reason: str = ""


APPLIED = Outcome()


class Handler(Protocol):
    """Brings one kind of document into force. Its methods are called from one thread, its own."""

    kind: Kind

    def apply(self, documents: list[Document]) -> dict[str, Outcome]:
        """Make the host such that exactly these documents are in force; the outcome of each by its id.

        Called at the start, also with none, and whenever the set changed; again and again while one failed.
        Doing it twice is doing it once. One bad document must not keep the others from being applied; what
        is raised counts as the failure of all.
        """


@dataclass(frozen=True)
class Gone:
    """A document that was in force and is no longer wanted."""

    accepted: Accepted  # its last revision, or the tombstone
    state: Literal["expired", "removed"]
    reason: str = ""


Tell = Callable[[Accepted, State, str], None]


class Worker:
    """The thread of one handler. ``tell`` hears each outcome that is news."""

    def __init__(self, handler: Handler, tell: Tell) -> None:
        self.handler, self._tell = handler, tell
        self.offered: dict[str, Accepted] = {}  # by id; what the handler was last given, or soon will be
        self._gone: list[Gone] = []
        self._told: dict[str, tuple[int, Outcome]] = {}
        self._retry_s = FIRST_RETRY_S
        self._due: float | None = None  # monotonic
        self._known = False  # what is wanted
        self._stopping = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"desired {handler.kind.name}", daemon=True)

    def start(self) -> None:
        """Begin; the handler is not called before the first :meth:`offer`."""
        self._thread.start()

    def offer(self, wanted: dict[str, Accepted], gone: list[Gone]) -> None:
        """This is the set from now on."""
        with self._wake:
            self.offered, self._known = wanted, True
            self._gone += gone
            self._due, self._retry_s = 0.0, FIRST_RETRY_S
            self._wake.notify()

    def again(self) -> None:
        """Call the handler once more: something of its own accord has changed. From any thread."""
        with self._wake:
            if self._known:
                self._due = 0.0
                self._wake.notify()

    def stop(self) -> None:
        """End the thread; what is in force stays in force."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._stopping and (self._due is None or self._due > time.monotonic()):
                    self._wake.wait(None if self._due is None else self._due - time.monotonic())
                if self._stopping:
                    return
                wanted, gone = self.offered, self._gone
                self._gone, self._due = [], None
            self._reconcile(wanted, gone)

    def _reconcile(self, wanted: dict[str, Accepted], gone: list[Gone]) -> None:
        outcomes, raised = self._apply(wanted)
        if raised:  # nobody knows whether they are gone
            with self._wake:
                self._gone = gone + self._gone
        else:
            for each in gone:
                self._told.pop(each.accepted.document.id, None)
                self._tell(each.accepted, each.state, each.reason)
        for name, accepted in wanted.items():
            news = (accepted.document.revision, outcomes[name])
            if self._told.get(name) != news:
                self._told[name] = news
                self._tell(accepted, *outcomes[name])
        if raised or any(each.state == "failed" for each in outcomes.values()):
            with self._wake:
                self._due = self._due if self._due is not None else time.monotonic() + self._retry_s
                self._retry_s = min(self._retry_s * 2, LAST_RETRY_S)

    def _apply(self, wanted: dict[str, Accepted]) -> tuple[dict[str, Outcome], bool]:
        try:
            answers = self.handler.apply([each.document for each in wanted.values()])
        except Exception as error:  # one kind's fault must not end the collector
            known = isinstance(error, BpfleetError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            if not known:
                log.exception("desired state: the handler of %s failed", self.handler.kind.name)
            return dict.fromkeys(wanted, Outcome("failed", reason)), True
        silent = Outcome("failed", f"the handler of {self.handler.kind.name} said nothing about it")
        return {name: answers.get(name, silent) for name in wanted}, False
