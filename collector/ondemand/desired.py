"""The handler of kind `probe`: documents become running probes, and their figures rows.

Two threads meet here, under one lock: that of desired state, which begins and ends probes, and one that
reads them. Where a probe ends of its own accord (its budget), desired state is asked to call again, and the
document's outcome says so.
"""

import logging
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collector import loader
from collector.cgroup import Cgroups
from collector.companion import Companion
from collector.desired_files import own_text
from collector.desired_worker import APPLIED, Outcome
from collector.ondemand import bind as binding
from collector.ondemand import heap, heap_library
from collector.ondemand.budget import Budget
from collector.ondemand.columns import Columns
from collector.ondemand.homes import Homes
from collector.ondemand.naming import Naming
from collector.ondemand.running import Running
from schemas import c_header, probe_c
from schemas.desired import Document, now_us
from schemas.errors import BpfleetError, UsageError
from schemas.probe_spec import PROBE, Checked, check

if TYPE_CHECKING:
    from collector.agent import Agent

log = logging.getLogger("bpfleet.collector")
TICK_S, EAGER_S, EVENTS_S, READ_S = 0.05, 2.0, 0.25, 1.0
KEYS, RING_BYTES = 8192, 1 << 19


@dataclass
class Item:
    """A probe and what is watched of it."""

    document: Document
    checked: Checked
    running: Running | heap.Heap
    budget: Budget
    columns: Columns
    attached_at: float = field(default_factory=time.monotonic)
    told: bool = False  # its first rows are out
    due: float = 0.0
    reason: str = ""  # it was detached: why

    @property
    def head(self) -> dict[str, Any]:
        """What every row says."""
        return {"probe": self.document.id, "revision": self.document.revision, "value": self.checked.value}


class Probes(Companion):
    """The on-demand probes of this host."""

    kind = PROBE

    def __init__(self, agent: "Agent") -> None:
        super().__init__()
        self._agent = agent
        self._settings = agent.config.collector
        self._items: dict[str, Item] = {}
        self._refused: dict[str, tuple[int, str]] = {}  # id → (revision, why): not tried again
        self._lock = threading.RLock()
        self._wake = threading.Condition(self._lock)
        self._stopping = False
        self._cgroups = Cgroups()
        self._homes = Homes()
        self._naming = Naming(lambda columns: self.put_columns("stack", columns))
        self._thread = threading.Thread(target=self._run, name="probes", daemon=True)

    # ── Desired state ────────────────────────────────────────────────────────────────────────────

    def apply(self, documents: list[Document]) -> dict[str, Outcome]:
        """Have exactly these run."""
        wanted = {each.id: each for each in documents}
        with self._lock:
            for name, item in list(self._items.items()):
                if name not in wanted or wanted[name].revision != item.document.revision:
                    self._end(item, self._ending(item, name in wanted))
            self._refused = {n: why for n, why in self._refused.items() if n in wanted}
        return {name: self._outcome(document) for name, document in wanted.items()}

    def _ending(self, item: Item, replaced: bool) -> tuple[str, str]:
        expires = item.document.expires
        if replaced:
            return "stopped", "a newer revision takes its place"
        if expires is not None and now_us() >= expires:
            return "expired", "its time to live is over"
        return "stopped", "its author ended it"

    def _outcome(self, document: Document) -> Outcome:
        revision, why = self._refused.get(document.id, (0, ""))
        if revision == document.revision:
            return Outcome("refused", why)
        item = self._items.get(document.id)
        if item is not None:
            return Outcome("refused", item.reason) if item.reason else APPLIED
        try:
            self._begin(document)
        except BpfleetError as error:
            return self._trouble(document, binding.explain(error), isinstance(error, UsageError))
        return APPLIED

    def _trouble(self, document: Document, why: str, at_fault: bool) -> Outcome:
        if at_fault:
            self._refused[document.id] = (document.revision, why)
        word = "refused" if at_fault else "failed"
        self._event({"probe": document.id, "revision": document.revision}, word, why)
        return Outcome("refused" if at_fault else "failed", why)

    def _begin(self, document: Document) -> None:
        begun = time.monotonic()
        checked = check(document.spec)
        share = min(checked.spec.max_cpu, self._settings.probe_max_cpu)
        running = self._make(checked, share)
        compiled = time.monotonic()
        self._agent.timing.hold(document.id)
        try:
            if checked.spec.cgroup:
                running.set_homes(self._homes.ids(checked.spec.cgroup))
            running.attach()
        except BpfleetError:
            self._agent.timing.release(document.id)
            running.close()
            raise
        item = Item(
            document,
            checked,
            running,
            Budget(share * running.leeway, os.cpu_count() or 1),
            Columns(self._cgroups),
        )
        done = time.monotonic()
        with self._wake:
            self._items[document.id] = item
            self._agent.costs[f"probe {document.id}"] = running.run_times
            self._wake.notify()
        times = {
            "compile_us": int((compiled - begun) * 1e6),
            "attach_us": int((done - compiled) * 1e6),
        }
        self._event(item.head, "attached", "", item, times)

    def _make(self, checked: Checked, share: float) -> Running | heap.Heap:
        """Generate, compile and load. Raises :class:`UsageError` for what no retry would mend."""
        pids = self._homes.pids(checked.spec.cgroup) if checked.at.is_user and checked.spec.cgroup else []
        if checked.at.kind == "heap":
            pids = heap_library.processes(checked, pids)
            return heap.Heap(checked, heap_library.load(checked), pids, share, self._naming)
        bound = binding.bind(checked, pids)
        generated = probe_c.generate(checked, bound.bound)
        rate = max(1, checked.spec.rate // (os.cpu_count() or 1))
        size = RING_BYTES if checked.value == "event" else KEYS
        source = loader.Source(
            "probe", text=self._text(checked, generated.text),
            header=c_header.generate(generated.declaration), attach=False,
            sizes={probe_c.STREAM: size}, settings={"sample": checked.spec.sample, "rate": rate},
        )  # fmt: skip
        result = loader.load([source])
        if "probe" in result.failed:
            raise UsageError(f"this kernel does not take it: {result.failed['probe']}")
        return Running(checked, generated, result.loaded["probe"], bound.hooks, self._naming)

    def _text(self, checked: Checked, generated: str) -> str:
        """The C: generated, or of the file of this host's own that the probe names."""
        name, directory = checked.spec.source, self._settings.probe_dir
        if not name:
            return generated
        if not directory:
            raise UsageError(f"this host takes no {name}: its collector.probe_dir is not set")
        try:
            return own_text(Path(directory) / name)[0]
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise BpfleetError(f"cannot read {name} in collector.probe_dir: {why}") from None

    # ── For the overhead budget of the host ──────────────────────────────────────────────────────

    def slow(self, name: str, why: str = "the host's overhead budget") -> int:
        """Have a probe take half as many; one in how many it takes now, 0 when it does not run."""
        with self._lock:
            item = self._items.get(name)
            if item is None or item.reason:
                return 0
            item.running.set_sample(item.running.sample * 2)
            self._event(item.head, "throttled", why, item)
            return item.running.sample

    def detach(self, name: str, why: str) -> bool:
        """End a probe on this host; its document's outcome will say why. Whether it ran."""
        with self._lock:
            item = self._items.get(name)
            if item is None or item.reason:
                return False
            item.reason = f"detached: {why}"
            self._end(item, ("detached", why))
            self._refused[name] = (item.document.revision, item.reason)
        for companion in self._agent.companions:
            again = getattr(companion, "again", None)
            if again is not None:
                again(PROBE.name)
        return True

    def running(self) -> dict[str, Budget]:
        """The probes that run, and the watch over what they cost."""
        with self._lock:
            return {name: item.budget for name, item in self._items.items()}

    # ── Reading ──────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Detach all, ship what is left: a collector that is away measures nothing."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(2.0)
        with self._lock:
            for item in list(self._items.values()):
                self._end(item, ("stopped", "the collector stops"))
            self._naming.close()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._items and not self._stopping:
                    self._wake.wait()
                if self._stopping:
                    return
                for item in list(self._items.values()):
                    try:
                        self._look(item, time.monotonic())
                    except Exception as error:
                        log.exception("probe %s", item.document.id)
                        self._fail(item, error)
                pause = self._pause()
            time.sleep(pause)

    def _pause(self) -> float:
        """Until the next look: shortly after a beginning, so that first results are there at once."""
        now = time.monotonic()
        eager = any(not each.told and now - each.attached_at < EAGER_S for each in self._items.values())
        return TICK_S if eager else EVENTS_S

    def _look(self, item: Item, now: float) -> None:
        due = now >= item.due or not item.told
        self._ship(item, due)
        if due:
            item.due = now + READ_S
            if item.checked.spec.cgroup:
                item.running.set_homes(self._homes.ids(item.checked.spec.cgroup))
        verdict = item.budget.judge(item.running.cost(), now)
        if verdict == "throttle":
            item.running.set_sample(item.budget.thinner(item.running.sample))
            self._event(item.head, "throttled", item.budget.words(), item)
        elif verdict == "detach":
            self.detach(item.document.id, item.budget.words())

    def _fail(self, item: Item, error: Exception) -> None:
        self.detach(item.document.id, f"a fault of the collector: {type(error).__name__}: {error}")

    def _ship(self, item: Item, due: bool) -> None:
        for made in item.running.results(item.columns, item.head, due):
            self.put_columns("probe_result", made)
            item.told = True

    def _end(self, item: Item, ending: tuple[str, str]) -> None:
        """Detach, ship what is left, say so."""
        self._items.pop(item.document.id, None)
        self._agent.costs.pop(f"probe {item.document.id}", None)
        item.running.detach()
        if not item.reason.startswith("detached: a fault"):
            self._ship(item, True)
        self._event(item.head, *ending, item)
        self._agent.timing.release(item.document.id)
        item.running.close()

    def _event(
        self, head: dict[str, Any], event: str, why: str, item: Item | None = None,
        more: dict[str, int] | None = None,
    ) -> None:  # fmt: skip
        row: dict[str, Any] = dict.fromkeys(
            ("programs", "sample", "runs", "lost", "compile_us", "attach_us"), 0
        ) | dict.fromkeys(("cpu_share", "budget", "runs_per_s", "ns_per_run"), 0.0)
        row |= {"ts": now_us(), "probe": head["probe"], "revision": head["revision"]}
        row |= {"event": event, "reason": why} | (more or {})
        if item is not None:
            figures = item.budget.figures
            row |= {
                "programs": item.running.programs, "sample": item.running.sample,
                "cpu_share": figures.cpu_share, "budget": item.budget.share,
                "runs_per_s": figures.runs_per_s, "ns_per_run": figures.ns_per_run,
                "runs": item.running.cost().runs, "lost": item.running.lost(),
            }  # fmt: skip
        self.put("probe_event", row)


def handler(agent: "Agent") -> Probes:
    """The handler of this agent; its rows travel with the agent's."""
    made = Probes(agent)
    agent.companions.append(made)
    return made
