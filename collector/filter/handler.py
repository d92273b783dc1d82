"""The kind `filter` on a host: documents into the kernel, and what the filter sees into streams.

Desired state calls :meth:`Filters.apply`; a thread of its own reads samples and counters and guards rules.
Both hold the lock while they touch the filter. A filter that commands of this host made
(`bpfleet drop local`) is watched and shipped, and left alone.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from numpy.typing import NDArray

from collector import bpf_sys, xdp, xdp_chain
from collector.companion import Companion
from collector.desired import DesiredState
from collector.desired_worker import Outcome
from collector.filter import events, place, sets, wanted
from collector.filter.figures import Figures
from collector.filter.guard import Guard
from collector.filter.host import Applied, Filter
from collector.filter.interfaces import chosen, indexes
from collector.filter.language import Document as HostDocument
from collector.filter.language import Rule
from collector.filter.lists import Lists
from collector.filter.seeing import BATCH_ROWS, Seeing
from collector.filter.skeleton import skeleton
from collector.filter.state import Standing, State
from collector.filter.stats import Stats
from collector.filter.wanted import Wanted
from collector.passage import NOBODY, Way
from collector.watch import Watch
from schemas.config import Config
from schemas.desired import Document
from schemas.errors import BpfleetError
from schemas.filter import FILTER, expression_of
from schemas.filter_expression import MAX_MADE, compile_expression

if TYPE_CHECKING:
    from collector.agent import Agent

log = logging.getLogger("bpfleet.collector")
LOOK_S, COUNT_S, TOP_S, PLACES_S = (
    0.1,
    1.0,
    5.0,
    2.0,
)  # how often: samples, counters, heavy hitters, interfaces
IDLE_S = 5.0  # for a filter of this host's own is waited, and looked this often
STOP_S = 5.0
LOCAL = "this host has a filter of its own; end it with `bpfleet drop local remove`, or leave the host out"


class Filters(Companion):
    """Handler and companion in one. See the module."""

    kind = FILTER

    def __init__(self, config: Config, again: Callable[[], None], way: Way = NOBODY) -> None:
        """``again`` has :meth:`apply` called once more, with what it was given last; ``way``: of counters."""
        super().__init__()
        self._directory = Path(config.state_dir) / place.DIRECTORY
        self._labels, self._again = config.collector.labels, again
        self._pins = xdp.pin_directory(config.collector.filter_pins or place.instance())
        self._claim = xdp.Claim(self._pins.name)
        self._balancer = xdp.PINS / config.collector.lb_pins
        self._host: Filter | None = None
        self._seeing: Seeing | None = None
        self._stats = Stats(self._directory / "shipped.json", way)
        self._guard, self._lists = Guard(), Lists()
        self._wanted, self._known = Wanted(), wanted.Known()
        self._held: dict[str, tuple[str, str]] = {}  # rule → digest of its document, why it is in shadow
        self._refused: dict[str, str] = {}  # document → digest; those that were told of
        self._places: dict[str, int] = {}
        self._cost: dict[str, bpf_sys.ProgInfo] = {}
        self._mark = 0  # of the state that commands of this host write
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._idle = Watch(self._directory)
        self._thread = threading.Thread(target=self._run, name="filter", daemon=True)

    # ── Desired state ────────────────────────────────────────────────────────────────────────────

    def apply(self, documents: list[Document]) -> dict[str, Outcome]:
        """See :class:`collector.desired_worker.Handler`."""
        begin = time.monotonic()
        if documents and not self._claim.holds():
            return {each.id: Outcome("refused", self._claim.refusal) for each in documents}
        gathered = wanted.gather(documents, self._known)
        with self._lock:
            state = self._host.state if self._host else State.read(self._directory / "state.json")
            if state.interfaces and not state.fleet:
                return {each.id: Outcome("refused", LOCAL) for each in documents}
            if not gathered.rules and not gathered.watches:
                self._end(begin)
                return wanted.outcome_of(gathered, documents, {}, {})
            host = self._open()
            self._idle.wake()
            self._look(host)
            held = self._hold(gathered, host)
            applied = self._bring(host, gathered, held, begin)
            self._tell_refused(gathered, {each.id: each for each in documents})
            return wanted.outcome_of(gathered, documents, held, applied.trouble)

    def _open(self) -> Filter:
        if self._host is None:
            pins = xdp.pin_directory(self._pins.name)
            self._host = Filter(self._directory, labels=self._labels, pins=pins, balancer=self._balancer)
            self._seeing = Seeing(self._host.maps, lambda: self._host.state.slots if self._host else {})
            for name, each in self._host.state.since.items():
                if each.held:
                    self._held[name] = (each.digest, each.held)
        return self._host

    def _bring(self, host: Filter, gathered: Wanted, held: Mapping[str, str], begin: float) -> Applied:
        """Into the kernel; rules that the verifier will not have are left out and refused."""
        host.interfaces = chosen(gathered.scopes, gathered.watches)
        self._places = indexes()
        lists = self._lists.parsed(gathered.sets)
        before, figures = host.state.since, self._seeing.figures() if self._seeing else {}
        host.state.fleet = True
        maps = dict(host.maps)

        def put() -> Applied:
            rules = [msgspec.structs.replace(each, mode="shadow") if each.id in held else each
                     for each in gathered.rules]  # fmt: skip
            gathered.rules = rules
            document = HostDocument(allow=gathered.allow, rules=rules)
            return host.apply(document, lists, samples=gathered.samples, strict=False)

        try:
            applied = put()
        except Exception as error:  # also a fault of our own: one rule must not keep the others from changing
            log.warning("filter: %s", error, exc_info=not isinstance(error, BpfleetError))
            if not self._leave_out(host, gathered, str(error)):
                raise
            applied = put()
        assert maps["packet_sample"] is host.maps["packet_sample"]
        self._wanted = gathered
        host.state.since = events.standing(gathered, held)
        host.state.write(self._directory / "state.json")
        duration = int((time.monotonic() - begin) * 1e6)
        for row in events.Teller(figures, host.interfaces, duration).changes(before, host.state.since):
            self.put("filter_event", row)
        return applied

    def _leave_out(self, host: Filter, gathered: Wanted, reason: str) -> bool:
        """Refuse the rules at fault: of those that are new, the ones that fail alone; else all new ones."""
        known = host.state.since
        fresh = [each for each in gathered.rules
                 if each.id not in known or known[each.id].content != each.content]  # fmt: skip
        guilty = {each.id: why for each in fresh if (why := host.trial(each, [*gathered.sets]))}
        guilty = guilty or dict.fromkeys((each.id for each in fresh), reason)
        gathered.rules = [each for each in gathered.rules if each.id not in guilty]
        gathered.refused |= {name: Outcome("refused", why) for name, why in guilty.items()}
        return bool(guilty)

    def _hold(self, gathered: Wanted, host: Filter) -> dict[str, str]:
        """Rules that a guard keeps in shadow, and why."""
        digests = {name: each.digest for name, each in gathered.documents.items()}
        self._held = {name: each for name, each in self._held.items()
                      if digests.get(name) == each[0] and name not in gathered.forced}  # fmt: skip
        for rule in gathered.rules:
            stood = host.state.since.get(rule.id)
            same = stood and (stood.mode, stood.content) == ("enforce", rule.content)
            if _drops(rule) and not same and rule.id not in gathered.forced and rule.id not in self._held:
                verdict = self._guard.before(rule, self._edges(rule, gathered))
                if verdict:
                    self._held[rule.id] = (digests[rule.id], verdict.reason)
        return {name: reason for name, (_, reason) in self._held.items() if name in digests}

    def _edges(self, rule: Rule, gathered: Wanted) -> dict[str, NDArray[Any]]:
        """The address sets that a rule names, to be searched."""
        lists = self._lists.parsed(gathered.sets)
        named = compile_expression(expression_of(rule), MAX_MADE).sets()
        return {name: sets.edges(lists[name]) for name in named}

    def _tell_refused(self, gathered: Wanted, documents: Mapping[str, Document]) -> None:
        """Each refusal once."""
        told = {name: documents[name].digest for name in gathered.refused}
        for name, digest in told.items():
            if self._refused.get(name) != digest:
                reason = gathered.refused[name].reason
                self.put("filter_event", events.refused(name, digest, documents[name].author, reason))
        self._refused = told

    def _end(self, begin: float) -> None:
        """Nothing is wanted: take the filter off, if there is one."""
        state = State.read(self._directory / "state.json")
        if self._host is None and not state.fleet:
            return
        host = self._open()
        self._look(host)
        self._count()
        figures = self._seeing.figures() if self._seeing else {}
        duration = int((time.monotonic() - begin) * 1e6)
        rows = events.Teller(figures, host.state.interfaces, duration).changes(host.state.since, {})
        host.detach()
        (self._directory / "state.json").unlink(missing_ok=True)
        self._close()
        self._wanted, self._held = Wanted(), {}
        for row in rows:
            self.put("filter_event", row)

    def _close(self) -> None:
        if self._seeing:
            self._seeing.close()
        if self._host:
            self._host.close()
        self._host = self._seeing = None

    # ── The thread ───────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """See :class:`Companion`."""
        self._stats.start()
        self._thread.start()

    def stop(self) -> None:
        """Read what is left; the filter stays in force."""
        self._stopping.set()
        self._idle.wake()
        if self._thread.is_alive():
            self._thread.join(STOP_S)
        self._idle.close()
        with self._lock:
            if self._host:
                self._look(self._host)
                self._count()
            self._close()
        self._claim.close()

    def _run(self) -> None:
        due = {self._count_and_guard: COUNT_S, self._tops: TOP_S, self._check_places: PLACES_S}
        at = dict.fromkeys(due, time.monotonic())
        try:
            skeleton(self._directory / "compiled")  # now, not when the first attack is there
        except BpfleetError as error:
            log.warning("the filter is not available: %s", error)
        state = str(self._directory / "state.json")
        while not self._stopping.wait(0 if self._host is None else LOOK_S):
            if self._host is None:
                self._idle.wait(IDLE_S)
            if self._host is None and not os.path.exists(state):  # noqa: PTH110 (asked often)
                continue
            try:
                with self._lock:
                    self._look_for_local()
                    if self._host is None:
                        continue
                    self._look(self._host)
                    for task, seconds in due.items():
                        if self._host and time.monotonic() - at[task] >= seconds:
                            at[task] = time.monotonic()
                            task()
                self._follow()
            except Exception:  # whatever one look met: the next may be well, and rules stay in force
                log.exception("filter: a fault of our own")
                self._stopping.wait(COUNT_S)

    def _look_for_local(self) -> None:
        """Follow a filter that commands of this host make and change."""
        file = self._directory / "state.json"
        if self._host is not None and not self._host.state.fleet:
            if not file.exists():
                self._close()
            elif file.stat().st_mtime_ns != self._mark:
                self._close()
                self._look_for_local()
        elif self._host is None and file.exists():
            mark = file.stat().st_mtime_ns
            state = State.read(file)
            if state.interfaces and not state.fleet and self._pins.exists():
                self._mark = mark
                self._open()

    def _look(self, host: Filter) -> None:
        """Ship samples, and remember them for the guard."""
        assert self._seeing is not None
        samples = self._seeing.samples()
        self._guard.take(samples)
        for start in range(0, len(samples), BATCH_ROWS):
            self.put_columns("packet_sample", self._seeing.columns(samples[start : start + BATCH_ROWS]))

    def _count(self) -> Mapping[str, Figures]:
        assert self._seeing is not None and self._host is not None
        counted = self._seeing.figures()
        self.put_all("filter_stats", self._stats.rows(self._host.maps, counted))
        return counted

    def _count_and_guard(self) -> None:
        counted = self._count()
        assert self._host is not None
        spared = self._wanted.forced | self._held.keys()
        rules = {each.id: each for each in self._wanted.rules if _drops(each) and each.id not in spared}
        for name, verdict in self._guard.during(rules.values(), counted).items():
            self._host.shadow(rules[name])
            digest = self._wanted.documents[name].digest
            self._held[name] = (digest, verdict.reason)
            stood = self._host.state.since.get(name, Standing("shadow", "drop", "", "", digest, 0))
            shadowed = msgspec.structs.replace(stood, mode="shadow", held=verdict.reason)
            self._host.state.since = {**self._host.state.since, name: shadowed}
            self._host.state.write(self._directory / "state.json")
            teller = events.Teller(counted, self._host.interfaces)
            self.put("filter_event", teller.row(
                name, "rolled_back", verdict.reason, shadowed, source="guard", samples=verdict.samples,
                legitimate=verdict.share,
            ))  # fmt: skip
            self._again()

    def _tops(self) -> None:
        assert self._seeing is not None and self._host is not None
        for row in self._seeing.tops(int(TOP_S * 1e6)):
            self.put("filter_top", row)

    def _check_places(self) -> None:
        """Interfaces come and go, and balancers."""
        host = self._host
        if not host or not host.state.fleet:
            return
        gone = {*filter(None, host.running)} - {*xdp_chain.interfaces(self._pins.name, alive=True)}
        if not self._pins.exists():  # bpffs was unmounted, and links went with it
            self._close()
        elif not gone and indexes() == self._places and not host.balancer_changed():
            return
        self._again()

    def _follow(self) -> None:
        """Follow connections, for samples and guards; the first time takes a second, without the lock."""
        host = self._host
        if host is None or not host.state.fleet or host.followed:
            return
        host.follow()
        with self._lock:
            if self._host is host:
                host.use_followed()

    # ── Costs ────────────────────────────────────────────────────────────────────────────────────

    def run_times(self) -> dict[str, bpf_sys.ProgInfo]:
        """What the programs cost, by their interface. From the agent's loop, which must not wait."""
        if self._lock.acquire(blocking=False):
            try:
                running = self._host.running if self._host else {}
                self._cost = {
                    f"xdp:{name}": bpf_sys.prog_info(each.fd) for name, each in running.items() if name
                }
            finally:
                self._lock.release()
        return self._cost


def _drops(rule: Rule) -> bool:
    return rule.mode == "enforce" and rule.action not in ("pass", "sample")


def handler(agent: "Agent") -> Filters:
    """For the entry point ``bpfleet.handlers``; before privileges are given up."""

    def again() -> None:
        for each in agent.companions:
            if isinstance(each, DesiredState):
                each.again(FILTER.name)

    made = Filters(agent.config, again, Way.of(agent, "filter_stats"))
    agent.companions.append(made)
    agent.costs["filter"] = made.run_times
    return made
