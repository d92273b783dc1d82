"""The balancer of this host, seen: counters, sampled flows, events and drains, shipped by the collector.

A thread beside the agent. It takes no lock: it reads pinned maps and the ledger, whoever writes them, and
finds them again when they were made anew. A balancer that commands of this host made is reported as well.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from collector import bpf_sys, xdp, xdp_chain
from collector.balancer import ledger, next_hop, ring
from collector.balancer.dataplane import PROGRAM, Dataplane
from collector.balancer.journal import Journal
from collector.balancer.layout import REASONS
from collector.balancer.ledger import Ledger
from collector.balancer.state import find_ledger, journal_file, ledger_file
from collector.balancer.stats import Stats, named
from collector.bpf_map import Map
from collector.clock import Clock, now_us
from collector.companion import Companion
from collector.passage import Passage, Way
from collector.ring import Ring
from collector.watch import Watch
from schemas import declare, dtype, lb
from schemas.columns import Column
from schemas.config import Config
from schemas.errors import BpfleetError

log = logging.getLogger("bpfleet.collector")
STATS_S, FLOWS_S, DRAINS_S, WAYS_S, IDLE_S = 1.0, 0.25, 2.0, 5.0, 2.0
FLOW = declare.streams()["lb_flow"]
FLOW_REASONS = {each.number: each.name for each in REASONS} | {len(REASONS): "ring"}


class Reporter(Companion):
    """See the module."""

    def __init__(self, config: Config, way: Way, again: Callable[[], None], claim: xdp.Claim) -> None:
        """``again`` has desired state applied once more; ``way``: of batches of lb_stats."""
        super().__init__()
        self.place = xdp.PINS / config.collector.lb_pins
        self._file = ledger_file(config, self.place)
        self._passage, self._again, self._claim = Passage(way), again, claim
        self._journal = Journal(journal_file(self._file))
        self._stats = Stats(self._file.with_suffix(".shipped"))
        self._clock = Clock()
        self._plane: Dataplane | None = None
        self._flows: Ring | None = None
        self._ledger, self._stamp = Ledger(), 0
        self._due = dict.fromkeys(("stats", "flows", "drains", "ways"), 0.0)
        self._run_times = RunTimes()
        self._stopping = threading.Event()
        self._idle = Watch(self._file.parent)
        self._thread = threading.Thread(target=self._run, name="balancer", daemon=True)

    def start(self) -> None:
        """Begin to report."""
        self._passage.start()
        self._thread.start()

    def stop(self) -> None:
        """End, with a last look at everything."""
        self._stopping.set()
        self._idle.wake()
        if self._thread.is_alive():
            self._thread.join(5)
        self._idle.close()

    def run_times(self) -> dict[str, bpf_sys.ProgInfo]:
        """What the program's runs took so far; for ``Agent.costs``."""
        plane = self._plane
        return self._run_times.read(plane.program) if plane else {}

    # ── The thread ───────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        while not self._stopping.wait(0 if self._is_idle else self._pause()):
            if self._is_idle:
                self._idle.wait(IDLE_S)
            self._pass()
        self._due = dict.fromkeys(self._due, 0.0)
        self._pass()
        self._close()

    @property
    def _is_idle(self) -> bool:
        """Whether this host balances nothing: until its state's directory changes there is nothing to do."""
        return self._plane is None and not self._passage.on_the_way

    def _pause(self) -> float:
        """Short while rows are on their way."""
        return 0.05 if self._passage.on_the_way else FLOWS_S / 2

    def _pass(self) -> None:
        """Whatever is due."""
        try:
            settled = self._settle()
            now = time.monotonic()
            if now >= self._due["flows"]:
                self._due["flows"] = now + FLOWS_S
                self._find()
                self._tell_events()
                self._tell_flows()
            if now >= self._due["stats"] and settled:
                self._due["stats"] = max(self._due["stats"] + STATS_S, now)
                self._tell_stats()
            if now >= self._due["drains"]:
                self._due["drains"] = now + DRAINS_S
                self._tell_drains()
            if now >= self._due["ways"]:
                self._due["ways"] = now + WAYS_S
                if self._ledger.documents and (self._plane is None or self._is_astray(self._plane)):
                    self._again()  # pins that are gone took the link with them
        except BpfleetError as error:
            log.warning("balancer: %s", error)
            self._close()
            self._stopping.wait(1.0)
        except Exception:  # one part's fault must not end the others
            log.exception("balancer: a fault of our own")
            self._stopping.wait(1.0)

    def _find(self) -> None:
        """The maps that are pinned now, and the ledger as it is now."""
        if self._plane is not None and not self._is_current(self._plane):
            self._close()
        if self._plane is None:
            self._plane = Dataplane.pinned(self.place)
            if self._plane is not None and not self._claim.holds():  # whose it is reports of it
                self._close()
            if self._plane is not None:
                self._flows = Ring(self._plane.maps["lb_flow"], dtype.event(FLOW))
        stamp = self._file.stat().st_mtime_ns if self._file.exists() else 0
        if stamp != self._stamp and (stamp or self._plane is None):
            self._ledger, self._stamp = find_ledger(self._file, self.place)[0], stamp

    def _is_current(self, plane: Dataplane) -> bool:
        try:
            program = bpf_sys.obj_get(self.place / PROGRAM)
            table = Map.pinned(self.place / "lb_counters")
        except BpfleetError:
            return False
        same = table.id == plane.maps["lb_counters"].id
        same = same and bpf_sys.prog_info(program).id == bpf_sys.prog_info(plane.program).id
        table.close()
        os.close(program)
        return same

    def _close(self) -> None:
        if self._flows is not None:
            self._flows.close()
        if self._plane is not None:
            self._plane.close()
        self._flows = self._plane = None

    # ── What it tells ────────────────────────────────────────────────────────────────────────────

    def _tell_events(self) -> None:
        for row in self._journal.read():
            self.put("lb_event", row)

    def _tell_stats(self) -> None:
        if self._plane is None:
            return
        columns = self._stats.gained(self._plane, self._ledger, now_us())
        if columns is not None:
            self._stats.pend(self._passage.send(len(columns["ts"])))
            self.put_columns("lb_stats", columns)

    def _settle(self) -> bool:
        """Whether it is known what became of the batch that was last about to be shipped."""
        number = self._stats.doubtful
        if number < 0:
            return True
        arrives = self._passage.arrives(number)
        if arrives is None:
            return False
        self._stats.settle(arrives=arrives)
        return True

    def _tell_flows(self) -> None:
        if self._flows is None:
            return
        events = self._flows.read()
        if not len(events):
            return
        columns: dict[str, Column] = {
            each.name: events[each.name] for each in FLOW.fields if each.c is not None
        }
        columns["ts"] = self._clock.wall_us(events["ts"])
        columns["vip"] = named(events["vip_number"], self._ledger.vips.names())
        columns["reason"] = named(events["reason_number"], FLOW_REASONS)
        self.put_columns("lb_flow", columns)

    def _tell_drains(self) -> None:
        """A real that gets no new flows, and old ones of no slot any more, is drained: told once."""
        if self._plane is None:
            return
        told, now = set(self._stats.shipped.drained), set()
        for name, vip in lb.parse(self._ledger.applied).vips.items():
            idle = {self._ledger.backend(name, real.address): real for real in vip.reals if not real.wanted}
            slots = self._plane.read_ring(self._ledger.vips.taken[name]) if idle else None
            if slots is None:
                continue
            changed = slots[slots["until"] >= ring.now_ticks()]
            busy = {*np.unique(slots["current"]).tolist(), *np.unique(changed["former"]).tolist()}
            now |= {ledger.backend_name(name, real.address) for at, real in idle.items() if at not in busy}
        for each in sorted(now - told):
            vip_name, _, real_name = each.rpartition(" ")
            row = {"ts": now_us(), "event": "drained", "vip": vip_name, "real": real_name}
            self.put("lb_event", row | {"reason": "no slot sends it packets any more: it can be removed"})
        if now != told:
            self._stats.shipped.drained = sorted(now)
            self._stats.write()

    def _is_astray(self, plane: Dataplane) -> bool:
        """An interface was made anew, or the way to a real is another by now."""
        applied = lb.parse(self._ledger.applied)
        if not set(applied.interfaces) <= set(xdp_chain.interfaces(plane.place.name, alive=True)):
            return True
        if applied.next_hop:
            return False
        asked = {
            self._ledger.backend(name, real.address): real.address
            for name, vip in applied.vips.items()
            for real in vip.reals
            if not real.mac
        }
        if not asked:
            return False
        backends, hops = plane.read_backends(), next_hop.in_force(sorted(set(asked.values())))
        return any(
            hops.get(address) != (int(backends[number]["ifindex"]), backends[number]["macs"].tobytes()[:6])
            for number, address in asked.items()
        )


class RunTimes:
    """Run times over all programs that followed each other: each new one begins at 0."""

    def __init__(self) -> None:
        self._former = (0, 0)
        self._last = bpf_sys.ProgInfo(0, 0, "", 0, 0, 0, 0)

    def read(self, program: int) -> dict[str, bpf_sys.ProgInfo]:
        """By hook, as the kernel's numbers for one program would be."""
        now = bpf_sys.prog_info(program)
        if now.id != self._last.id:
            self._former = (
                self._former[0] + self._last.run_time_ns,
                self._former[1] + self._last.run_count,
            )
        self._last = now
        ns, count = self._former[0] + now.run_time_ns, self._former[1] + now.run_count
        return {"xdp:balancer": replace(now, run_time_ns=ns, run_count=count)}
