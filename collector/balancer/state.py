"""Make the kernel's maps say what the configuration says, with as few changes as that takes.

    with State.open(config) as state:
        state.apply(balancer)          # all of it, or nothing and a BpfleetError
        state.changes(balancer)        # what apply would do, in lines for people

Order of an application, so that at no moment a packet meets half of it: the ledger (so that a successor knows
the numbers even if this process dies at any point), new backends, rings of new VIPs, the table of VIPs, rings
that change, and at last what is not needed any more. Applying again what is applied changes nothing.
"""

import copy
import fcntl
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import msgspec
import numpy as np

from collector import xdp, xdp_chain
from collector.balancer import checks, dataplane, encode, events, ledger, recover, ring
from collector.balancer.dataplane import Dataplane, u32
from collector.balancer.journal import Journal
from collector.balancer.layout import FLAGS
from collector.balancer.ledger import Ledger
from collector.balancer.maglev import Array
from schemas import lb as model
from schemas import lb_edit as edit
from schemas.config import Config
from schemas.errors import BpfleetError, UsageError
from schemas.lb import Balancer, Vip

RINGS_AT_ONCE = 32  # half a megabyte each, beside the one in force
Change = tuple[Array | None, Array]  # a ring as it is, and as it is to be


class Before(NamedTuple):
    """What was in force when an application began; ``names``: of all backends, those of before as well."""

    vips: dict[str, Vip]
    down: set[str]
    names: dict[int, tuple[str, str]]


@dataclass
class State:
    """The balancer of this host: kernel objects and the ledger that explains them."""

    plane: Dataplane
    ledger: Ledger
    file: Path
    lock: int
    journal: Journal

    @classmethod
    def open(cls, config: Config, place: Path | None = None, limits: model.Limits | None = None) -> "State":
        """Find what runs, or make it. ``limits`` count only when it is made."""
        place = place or xdp.PINS / dataplane.PLACE
        file = ledger_file(config, place)
        lock = _lock(file)
        try:
            known, recovered = find_ledger(file, place)
            plane = Dataplane.open(place, limits or model.parse(known.applied).limits, known.program)
        except BaseException:
            os.close(lock)
            raise
        events = Journal(journal_file(file))
        if plane.fresh:  # the numbers of maps that are gone mean nothing
            known, recovered = Ledger(), False
        another = not plane.fresh and known.program != dataplane.digest()
        known.program = dataplane.digest()
        state = cls(plane, known, file, lock, events)
        if recovered:
            events.add({"event": "program", "reason": "the state file was lost: its copy took over"})
        if another:
            events.add({"event": "program", "reason": "another version of it took over the maps"})
        if recovered or another:
            state.write()
        return state

    def __enter__(self) -> "State":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.plane.fresh and not self.ledger.applied and self.plane.place.exists():
            self.plane.remove()  # made for a configuration that was refused
        self.plane.close()
        os.close(self.lock)

    def write(self) -> None:
        """Put the ledger on disk, and a copy beside the maps."""
        ledger.write(self.ledger, self.file)
        recover.keep(self.plane.place, ledger.encode(self.ledger))

    @property
    def applied(self) -> Balancer:
        """The configuration in force."""
        return model.parse(self.ledger.applied)

    def apply(self, balancer: Balancer, documents: dict[str, Any] | None = None) -> None:
        """Put ``balancer`` in force, the program on its interfaces. Refuses before it changes anything.

        ``documents``: the desired state it comes from; None: a command of this host.
        """
        begun = time.monotonic()
        changes, which = self.changes(balancer), ",".join(sorted(documents or {}))
        row = {"state": "local" if documents is None else "desired", "document": which}
        before = self.ledger.documents
        self._refuse(balancer)
        self.ledger.documents = documents or {}
        try:
            self._apply(balancer, self.ledger.down, trust_hops=False)
        except BaseException:
            self.ledger.documents = before
            raise
        if changes:
            duration = int((time.monotonic() - begun) * 1e6)
            reason = "; ".join(changes)[:1000]
            self.journal.add({"event": "reload", "reason": reason, "duration_us": duration, **row})

    def _refuse(self, balancer: Balancer) -> None:
        """Raises :class:`BpfleetError` for what this host cannot do."""
        for interface in balancer.interfaces:
            xdp.interface_index(interface)
        limits = (balancer.limits.vips, balancer.limits.backends, balancer.limits.flows)
        if limits != self.plane.sizes():
            raise UsageError(
                f"limits (vips, backends, flows) are {limits}, but the maps were made for "
                f"{self.plane.sizes()}; keep these, or `bpfleet lb remove` first, which ends flows"
            )

    def set_down(self, down: Iterable[str]) -> None:
        """Take these reals (``backend_name``) out of their rings, and no others."""
        self._apply(self.applied, sorted(down), trust_hops=True)

    def _apply(self, balancer: Balancer, down: list[str], *, trust_hops: bool) -> None:
        hops = encode.Hops(balancer, encode.known_hops(self.plane, self.ledger), trust=trust_hops)
        hops.resolve()
        now = time.time()
        following = copy.deepcopy(self.ledger)
        following.assign(balancer, now)
        was_down = set(self.ledger.down)
        for interface in balancer.interfaces:  # the last to refuse; harmless while VIPs are unknown
            self.plane.attach(interface, balancer.mode)
        before, following.applied = self.applied, model.dump(balancer)
        self._clear_counters(following)
        self.ledger = following
        self.ledger.down = [name for name in down if name in self.ledger.backends.taken]
        self.write()
        up = {name: self._up(name, vip) for name, vip in balancer.vips.items()}
        self._write_backends(balancer, up, hops)
        self._write_rings(balancer, up, Before(before.vips, was_down, self.ledger.names()))
        self._forget(before.vips, balancer, now)
        self.write()
        for interface in set(self.plane.interfaces()) - set(balancer.interfaces):
            self.plane.detach(interface)

    def _clear_counters(self, following: Ledger) -> None:
        """Numbers that are about to be somebody else's count from 0."""
        for number in following.backends.reused(self.ledger.backends):
            self.plane.clear_counters(number)
        for number in following.vips.reused(self.ledger.vips):
            self.plane.clear_reasons(number)

    def _write_rings(self, balancer: Balancer, up: dict[str, Vip], before: Before) -> None:
        """New rings, the table of VIPs, and then the rings that change."""
        wanted = {name: encode.ring_digest(vip, self._numbers(name, vip)) for name, vip in up.items()}
        rings = self.plane.maps["lb_rings"]
        fresh = [name for name in wanted if rings.lookup(u32(self._vip(name))) is None]

        def first(name: str) -> Change:
            return None, ring.steady(encode.slots(up[name], self._numbers(name, up[name])))

        self._swap_rings({name: wanted[name] for name in fresh}, first, balancer, before)
        changed = {name: each for name, each in wanted.items() if self.ledger.rings.get(name) != each}
        encode.write_vips(self.plane, self.ledger, balancer, [*changed])
        live = self._live() if changed else np.zeros(0, bool)
        self._swap_rings(changed, lambda name: self._change_ring(name, up[name], live), balancer, before)

    def _swap_rings(
        self, wanted: dict[str, str], change: Callable[[str], Change], balancer: Balancer, before: Before
    ) -> None:
        """``wanted``: digests by VIP. Several at once: see :meth:`Dataplane.write_rings`."""
        names = [*wanted]
        for group in (names[at : at + RINGS_AT_ONCE] for at in range(0, len(names), RINGS_AT_ONCE)):
            changes = {name: change(name) for name in group}
            self.plane.write_rings({self._vip(name): new for name, (_, new) in changes.items()})
            for name, (old, new) in changes.items():
                self.ledger.rings[name] = wanted[name]
                self._tell_ring(name, old, new, before, balancer.vips[name])

    def _tell_ring(self, name: str, old: Array | None, new: Array, before: Before, vip: Vip) -> None:
        reals, down = (before.vips.get(name), vip), (before.down, set(self.ledger.down))
        self.journal.add(*events.ring(name, old, new, reals, before.names, down))

    def _vip(self, name: str) -> int:
        return self.ledger.vips.taken[name]

    def _numbers(self, name: str, vip: Vip) -> list[int]:
        return [self.ledger.backend(name, real.address) for real in vip.reals]

    def is_down(self, name: str, address: str) -> bool:
        """Whether that real's checks fail."""
        return ledger.backend_name(name, address) in self.ledger.down

    def _up(self, name: str, vip: Vip) -> Vip:
        """The VIP without the weight of reals that are down; with all of it if none would be left."""
        reals = [
            msgspec.structs.replace(real, weight=0) if self.is_down(name, real.address) else real
            for real in vip.reals
        ]
        return msgspec.structs.replace(vip, reals=reals) if any(real.wanted for real in reals) else vip

    def _write_backends(self, balancer: Balancer, up: dict[str, Vip], hops: encode.Hops) -> None:
        table = self.plane.maps["lb_backends"]
        for name, vip in up.items():
            spared = vip is balancer.vips[name]  # none is down, or all are
            for real in vip.reals:
                key = u32(self.ledger.backend(name, real.address))
                live = spared or not self.is_down(name, real.address)
                value = encode.backend(balancer, vip, real, hops, live=live)
                if table.lookup(key) != value:
                    table.update(key, value)

    def _live(self) -> Array:
        """Of each backend number, whether its flows go on."""
        live = np.zeros(1 << 16, bool)
        backends = self.plane.read_backends()
        live[: len(backends)] = backends["flags"] & FLAGS["BACKEND_LIVE"] != 0
        return live

    def _change_ring(self, name: str, vip: Vip, live: Array) -> Change:
        """The ring as it is, and as it is to be."""
        number = self._vip(name)
        slots = encode.slots(vip, self._numbers(name, vip))
        old = self.plane.read_ring(number)
        assert old is not None
        if vip.untracked:
            return old, ring.steady(slots)
        own = np.zeros_like(live)  # a backend of the VIP's that is about to go is none any more
        own[self._numbers(name, vip)] = True
        keep = ring.ticks(vip.idle_seconds + (vip.udp_idle_seconds if vip.protocol == "udp" else 0))
        return old, ring.transition(old, slots, live & own, ring.now_ticks(), keep)

    def _forget(self, before: dict[str, Vip], balancer: Balancer, now: float) -> None:
        """Give up VIPs and backends that are no more; nothing refers to them now but remembered flows."""
        vips, backends = self.ledger.gone(balancer)
        rest = 2 * max((vip.idle_seconds for vip in [*before.values(), *balancer.vips.values()]), default=0.0)
        names, nobody = self.ledger.names(), set[str]()
        for name in backends:
            self.plane.maps["lb_backends"].update(u32(self.ledger.backends.taken[name]), bytes(64))
            self.ledger.backends.take_back(name, now + rest)
        rings = {name: self.plane.read_ring(self._vip(name)) for name in vips}
        self.plane.forget_rings([self._vip(name) for name in vips])
        for name, old in rings.items():
            self.journal.add(*events.ring(name, old, None, (before.get(name), None), names, (nobody, nobody)))
            self.ledger.vips.take_back(name, now + rest)
            self.ledger.rings.pop(name, None)

    def changes(self, balancer: Balancer) -> list[str]:
        """What :meth:`apply` would change, a line each; empty if nothing."""
        return edit.changes(self.applied, balancer)

    def remove(self) -> None:
        """Take the balancer off this host."""
        checks.detach(self.applied.interfaces)
        self.plane.remove()
        self.file.unlink(missing_ok=True)
        self.journal.add({"event": "removed", "reason": "the balancer was taken down"})
        self.ledger = Ledger()


def find_ledger(file: Path, place: Path) -> tuple[Ledger, bool]:
    """The ledger, and whether it comes from the copy beside the maps, because the file is lost or damaged."""
    copy = recover.kept(place)
    try:
        if copy is None or file.exists():
            return ledger.read(file), False
    except BpfleetError:
        if copy is None:
            raise
    return ledger.decode(copy), True


def take_down(config: Config, place: Path) -> None:
    """Take the balancer at ``place`` off this host, whatever state it is in."""
    file = ledger_file(config, place)
    lock = _lock(file)
    try:
        checks.detach(xdp_chain.interfaces(place.name))
        dataplane.unpin(place)
        file.unlink(missing_ok=True)
        Journal(journal_file(file)).add({"event": "removed", "reason": "the balancer was taken down anyhow"})
    finally:
        os.close(lock)


def journal_file(ledger_file: Path) -> Path:
    """Where the events of the balancer with that ledger are."""
    return ledger_file.with_suffix(".events")


def ledger_file(config: Config, place: Path) -> Path:
    """The state file of the balancer that is pinned at ``place``."""
    return Path(config.state_dir) / "balancer" / f"{place.name}.json"


def _lock(file: Path) -> int:
    """One process at a time changes the balancer; the others wait."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BpfleetError(f"cannot use {file.parent}: {error.strerror}; set state_dir") from None
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock
