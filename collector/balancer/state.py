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
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from collector import xdp
from collector.balancer import dataplane, encode, ledger, model, ring
from collector.balancer.dataplane import Dataplane, u32
from collector.balancer.ledger import Ledger
from collector.balancer.maglev import Array
from collector.balancer.model import Balancer, Vip
from schemas.config import Config
from schemas.errors import BpfleetError


@dataclass
class State:
    """The balancer of this host: kernel objects and the ledger that explains them."""

    plane: Dataplane
    ledger: Ledger
    file: Path
    lock: int

    @classmethod
    def open(cls, config: Config, place: Path | None = None, limits: model.Limits | None = None) -> "State":
        """Find what runs, or make it. ``limits`` count only when it is made."""
        place = place or xdp.PINS / dataplane.PLACE
        file = Path(config.state_dir) / "balancer" / f"{place.name}.json"
        lock = _lock(file)
        known = ledger.read(file)
        if limits is None:
            limits = model.parse(known.applied).limits
        plane = Dataplane.open(place, limits, known.program)
        if plane.fresh:  # the numbers of maps that are gone mean nothing
            known = Ledger()
        known.program = dataplane.digest()
        return cls(plane, known, file, lock)

    def __enter__(self) -> "State":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.plane.close()
        os.close(self.lock)

    @property
    def applied(self) -> Balancer:
        """The configuration in force."""
        return model.parse(self.ledger.applied)

    def apply(self, balancer: Balancer) -> None:
        """Put ``balancer`` in force, and the program on its interfaces."""
        for interface in balancer.interfaces:
            xdp.interface_index(interface)
        hops = encode.Hops(balancer)
        hops.resolve()
        now = time.time()
        following = copy.deepcopy(self.ledger)
        following.assign(balancer, now)
        for (
            interface
        ) in balancer.interfaces:  # the last thing that may refuse; harmless where VIPs are unknown
            self.plane.attach(interface, balancer.mode)
        following.applied = model.dump(balancer)
        before, self.ledger = self.applied, following
        ledger.write(self.ledger, self.file)
        self._write_backends(balancer, hops)
        wanted = {name: self._wanted(name, vip) for name, vip in balancer.vips.items()}
        fresh = [name for name in wanted if self.plane.maps["lb_rings"].lookup(u32(self._vip(name))) is None]
        for name in fresh:
            self.plane.write_ring(self._vip(name), ring.steady(self._slots(name, balancer.vips[name])))
            self.ledger.rings[name] = wanted[name]
        changed = [name for name in wanted if self.ledger.rings.get(name) != wanted[name]]
        encode.write_vips(self.plane, self.ledger, balancer, changed)
        for name in changed:
            self._change_ring(name, balancer.vips[name])
            self.ledger.rings[name] = wanted[name]
        self._forget([*before.vips.values(), *balancer.vips.values()], balancer, now)
        ledger.write(self.ledger, self.file)
        for interface in set(self.plane.interfaces()) - set(balancer.interfaces):
            self.plane.detach(interface)

    def _vip(self, name: str) -> int:
        return self.ledger.vips.taken[name]

    def _wanted(self, name: str, vip: Vip) -> str:
        return encode.ring_digest(vip, [self.ledger.backend(name, real.address) for real in vip.reals])

    def _slots(self, name: str, vip: Vip) -> Array:
        return encode.slots(vip, [self.ledger.backend(name, real.address) for real in vip.reals])

    def _write_backends(self, balancer: Balancer, hops: encode.Hops) -> None:
        table = self.plane.maps["lb_backends"]
        for name, vip in balancer.vips.items():
            for real in vip.reals:
                key = u32(self.ledger.backend(name, real.address))
                value = encode.backend(balancer, vip, real, hops)
                if table.lookup(key) != value:
                    table.update(key, value)

    def _change_ring(self, name: str, vip: Vip) -> None:
        number, slots = self._vip(name), self._slots(name, vip)
        old = self.plane.read_ring(number)
        assert old is not None
        if vip.untracked:
            self.plane.write_ring(number, ring.steady(slots))
            return
        live = np.zeros(1 << 16, bool)
        live[[self.ledger.backend(name, real.address) for real in vip.reals]] = True
        keep = ring.ticks(vip.idle_seconds + (vip.udp_idle_seconds if vip.protocol == "udp" else 0))
        self.plane.write_ring(number, ring.transition(old, slots, live, ring.now_ticks(), keep))

    def _forget(self, vips_then_and_now: list[Vip], balancer: Balancer, now: float) -> None:
        """Give up VIPs and backends that are no more; nothing refers to them now but remembered flows."""
        vips, backends = self.ledger.gone(balancer)
        rest = 2 * max((vip.idle_seconds for vip in vips_then_and_now), default=0.0)
        for name in backends:
            self.plane.maps["lb_backends"].update(u32(self.ledger.backends.taken[name]), bytes(64))
            self.ledger.backends.take_back(name, now + rest)
        for name in vips:
            self.plane.maps["lb_rings"].delete(u32(self._vip(name)))
            self.ledger.vips.take_back(name, now + rest)
            self.ledger.rings.pop(name, None)

    def changes(self, balancer: Balancer) -> list[str]:
        """What :meth:`apply` would change, a line each; empty if nothing."""
        before, lines = self.applied, []
        for name in sorted({*before.vips, *balancer.vips}):
            old, new = before.vips.get(name), balancer.vips.get(name)
            if old is None or new is None:
                lines.append(f"{'-' if new is None else '+'} vip {name}")
            else:
                lines += encode.vip_changes(name, old, new)
        for field in (
            "interfaces",
            "mode",
            "source_ipv4",
            "source_ipv6",
            "next_hop",
            "mtu",
            "seed",
            "limits",
        ):
            if getattr(before, field) != getattr(balancer, field):
                lines.append(f"~ {field}: {getattr(before, field)} -> {getattr(balancer, field)}")
        return lines

    def remove(self) -> None:
        """Take the balancer off this host."""
        self.plane.remove()
        self.file.unlink(missing_ok=True)
        self.ledger = Ledger()


def _lock(file: Path) -> int:
    """One process at a time changes the balancer; the others wait."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BpfleetError(f"cannot use {file.parent}: {error.strerror}; set state_dir") from None
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock
