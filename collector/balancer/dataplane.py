"""The balancer in the kernel: its maps and program, pinned in bpffs so that they outlive this process.

    with Dataplane.open(place, limits) as plane:      # finds what is pinned, makes and loads what is not
        plane.attach("eth0", "native")                # replaces an older program atomically
        plane.write_ring(3, slots); plane.read_ring(3)

Pins under ``place`` (/sys/fs/bpf/bpfleet/lb): one for each map by its name, one for each map inside the maps
of maps (`inner_lb_rings_3`), `program`. Where it is attached, and with what else: collector.xdp_chain.
"""

import hashlib
import mmap
import os
import platform
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from collector import bpf_sys, loader, xdp, xdp_chain
from collector.balancer import recover
from collector.balancer.layout import BACKEND, COUNTERS, FOLDER, REASONS, RING_SLOTS, SLOT, VIP, Dtype
from collector.balancer.maglev import Array
from collector.balancer.vip_table import PLACES
from collector.bpf_map import Map, MapType
from collector.bpf_sys import Command
from schemas import c_header, declare
from schemas.errors import BpfleetError
from schemas.lb import Limits

PLACE = "lb"  # under collector.xdp.PINS
PROGRAM = "program"
FLOW_MAPS = ("lb_flow_counts", "lb_flow")  # of the declaration of sampled flows
_MMAPABLE = 1 << 10  # BPF_F_MMAPABLE
_REASON_STRIDE = 64
_PAGE = mmap.PAGESIZE
THREADS = 32  # that wait for the kernel


def u32(number: int) -> bytes:
    """A key or value of a map: four bytes."""
    return struct.pack("=I", number)


def digest() -> str:
    """What the program is made of: the sources and the kernel that checked them."""
    made_of = hashlib.blake2b(platform.release().encode(), digest_size=16)
    for file in sorted(
        [*FOLDER.glob("*.h"), FOLDER / "balancer.bpf.c", *(loader.ROOT / "common").glob("*.h")]
    ):
        made_of.update(file.read_bytes())
    made_of.update(c_header.generate(declare.load()["lb_flow"]).encode())
    return made_of.hexdigest()


def _take_name(fresh: Path, pin: Path) -> None:
    """The map in force gets its lasting name; who reads beside who writes may have given it already."""
    with suppress(FileNotFoundError):
        fresh.replace(pin)


def _inner(value: Dtype, entries: int, name: str) -> Map:
    """An array that this process can write in place, to be put into a map of maps."""
    return Map.create(MapType.ARRAY, 4, value.itemsize, entries, name, flags=_MMAPABLE)


def _view(array: Map, value: Dtype) -> Array:
    """The array's memory; it is unmapped when the view is gone."""
    size = -(-array.max_entries * value.itemsize // _PAGE) * _PAGE
    memory = mmap.mmap(array.fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    return np.frombuffer(memory, value, array.max_entries)


@dataclass
class Dataplane:
    """The open maps by name, and the program's descriptor. ``fresh``: the maps were made just now."""

    place: Path
    maps: dict[str, Map]
    program: int
    fresh: bool

    @classmethod
    def open(cls, place: Path, limits: Limits, known: str = "") -> "Dataplane":
        """What is pinned at ``place``; the program is compiled unless its digest is ``known`` already.

        Raises :class:`BpfleetError` when maps of other sizes are pinned there.
        """
        place = xdp.pin_directory(str(place.relative_to(xdp.PINS)))
        recover.pin_again(place, place / PROGRAM, [*_declared(), *FLOW_MAPS])
        pins = {each.name: each for each in place.iterdir() if each.name.startswith("lb_")}
        fresh = "lb_rings" not in pins
        if not fresh and known == digest() and (place / PROGRAM).exists():
            maps = {name: Map.pinned(pin) for name, pin in pins.items()}
            return cls(place, maps, bpf_sys.obj_get(place / PROGRAM), False)
        given = _outer_maps(place, limits)
        sizes = {
            "lb_backends": limits.backends + 1, "lb_counters": limits.backends + 1,
            "lb_reasons": (limits.vips + 1) * _REASON_STRIDE, "lb_flows": limits.flows,
        }  # fmt: skip
        names = [name for name in [*_declared(), *FLOW_MAPS] if name not in given]
        source = loader.Source(
            "balancer", FOLDER / "balancer.bpf.c", header=c_header.generate(declare.load()["lb_flow"]),
            given=given, sizes=sizes, attach=False, pins={name: str(place / name) for name in names},
        )  # fmt: skip
        result = loader.load([source])
        if result.failed:
            raise BpfleetError(f"cannot load the balancer: {result.failed['balancer']}")
        loaded = result.loaded["balancer"]
        program = loaded.programs[0].fd
        (place / PROGRAM).unlink(missing_ok=True)
        bpf_sys.pin(program, place / PROGRAM)
        return cls(place, loaded.maps, program, fresh)

    @classmethod
    def pinned(cls, place: Path) -> "Dataplane | None":
        """What is pinned at ``place``, to be read; None if there is nothing (yet)."""
        if not (place / PROGRAM).exists() or not (place / "lb_rings").exists():
            return None
        maps = {each.name: Map.pinned(each) for each in place.iterdir() if each.name.startswith("lb_")}
        return cls(place, maps, bpf_sys.obj_get(place / PROGRAM), False)

    def __enter__(self) -> "Dataplane":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptors back; what is pinned goes on."""
        for each in self.maps.values():
            each.close()
        os.close(self.program)

    def attach(self, interface: str, mode: str = "auto") -> None:
        """Put the program on an interface, in the place of an older one of ours if there is one."""
        xdp_chain.put_next(self.place.name, self.program, interface, mode=mode)

    def detach(self, interface: str) -> None:
        """Take the program off an interface."""
        xdp_chain.take_next(self.place.name, interface)

    def interfaces(self) -> list[str]:
        """Where the program is attached."""
        return xdp_chain.interfaces(self.place.name)

    def remove(self) -> None:
        """Detach and forget everything. The maps live until this object is closed."""
        unpin(self.place)

    def read_ring(self, vip: int) -> Array | None:
        """A copy of the slots of a VIP's ring; None if it has none."""
        with self._inside("lb_rings", vip) as ring:
            return None if ring is None else _view(ring, SLOT).copy()

    def write_ring(self, vip: int, slots: Array) -> None:
        """Replace the whole ring of a VIP at once."""
        self.write_rings({vip: slots})

    def write_rings(self, rings: Mapping[int, Array]) -> None:
        """Replace the rings of these VIPs, each at once, in one call.

        For each call the kernel waits until no packet sees what was there before: some ten milliseconds.
        """
        self._replace("lb_rings", rings, SLOT, RING_SLOTS)

    def forget_rings(self, vips: Sequence[int]) -> None:
        """These VIPs have no rings any more. The kernel waits, here for all of them at once."""
        if not vips:
            return
        with ThreadPoolExecutor(min(len(vips), THREADS)) as threads:
            list(threads.map(self.maps["lb_rings"].delete, map(u32, vips)))
        for vip in vips:
            for end in ("", "_new"):
                (self.place / f"inner_lb_rings_{vip}{end}").unlink(missing_ok=True)

    def read_vips(self) -> Array:
        """The table of VIPs, every place of it."""
        with self._inside("lb_vips", 0) as table:
            return np.zeros(PLACES, VIP) if table is None else _view(table, VIP).copy()

    def write_vips(self, table: Array) -> None:
        """Replace the whole table of VIPs at once."""
        self._replace("lb_vips", {0: table.view(VIP).reshape(-1)}, VIP, PLACES)

    @contextmanager
    def _inside(self, outer: str, at: int) -> Iterator[Map | None]:
        number = self.maps[outer].lookup(u32(at))
        if number is None:
            yield None
            return
        inner = self._inner_of(outer, at, int(struct.unpack("=I", number)[0]))
        try:
            yield inner
        finally:
            inner.close()

    def _inner_of(self, outer: str, at: int, number: int) -> Map:
        """The map of that id, by its pin: to open it by its id takes CAP_SYS_ADMIN, which collectors give up.

        A process that died between putting the map in force and naming its pin left the name to us.
        """
        pin = self.place / f"inner_{outer}_{at}"
        fresh = pin.with_name(f"{pin.name}_new")
        for each in (pin, fresh):
            if each.exists():
                found = Map.pinned(each)
                if found.id == number:
                    if each is fresh:
                        _take_name(fresh, pin)
                    return found
                found.close()
        return Map.of(bpf_sys.fd_by_id(Command.MAP_FD_BY_ID, number))

    def _replace(self, outer: str, arrays: Mapping[int, Array], kind: Dtype, entries: int) -> None:
        made: dict[int, Map] = {}
        try:
            for at, values in arrays.items():
                made[at] = inner = _inner(kind, entries, f"{outer}_{at}")
                _view(inner, kind)[:] = values
                fresh = self.place / f"inner_{outer}_{at}_new"
                fresh.unlink(missing_ok=True)
                inner.pin(fresh)
            fds = b"".join(u32(each.fd) for each in made.values())
            self.maps[outer].update_many(b"".join(map(u32, made)), fds, len(made))
            for at in made:
                pin = self.place / f"inner_{outer}_{at}"
                _take_name(pin.with_name(f"{pin.name}_new"), pin)
        finally:
            for each in made.values():
                each.close()

    def sizes(self) -> tuple[int, int, int]:
        """The limits that the maps were made for: VIPs, backends, flows."""
        sizes = {name: self.maps[name].max_entries for name in ("lb_rings", "lb_backends", "lb_flows")}
        return sizes["lb_rings"] - 1, sizes["lb_backends"] - 1, sizes["lb_flows"]

    def clear_counters(self, backend: int) -> None:
        """That number counts from 0."""
        table = self.maps["lb_counters"]
        table.update(u32(backend), bytes(table.element_size))

    def clear_reasons(self, vip: int) -> None:
        """That number's reasons count from 0."""
        table = self.maps["lb_reasons"]
        for at in range(vip * _REASON_STRIDE, vip * _REASON_STRIDE + len(REASONS)):
            table.update(u32(at), bytes(table.element_size))

    def read_backends(self) -> Array:
        """Every backend, by its number."""
        _, values, count = self.maps["lb_backends"].read()
        return np.frombuffer(bytes(values), BACKEND, count)

    def read_counters(self, numbers: int | None = None) -> Array:
        """Packets, bytes and flows of every backend (of the first ``numbers``), summed over CPUs."""
        _, values, count = self.maps["lb_counters"].read(limit=numbers)
        each = np.frombuffer(bytes(values), np.uint64).reshape(count, -1, COUNTERS.itemsize // 8)
        total = np.zeros(count, COUNTERS)
        for at, name in enumerate(COUNTERS.names or ()):
            total[name] = each[:, :, at].sum(axis=1)
        return total

    def read_reasons(self, numbers: int | None = None) -> Array:
        """How often each VIP number (0: no VIP) saw each reason, summed over CPUs: [vip, reason]."""
        _, values, count = self.maps["lb_reasons"].read(limit=numbers and numbers * _REASON_STRIDE)
        sums: Array = np.frombuffer(bytes(values), np.uint64).reshape(count, -1).sum(axis=1)
        return sums.reshape(-1, _REASON_STRIDE)


def unpin(place: Path) -> None:
    """Detach the program that is pinned at ``place``, and take all pins away."""
    for interface in xdp_chain.interfaces(place.name):
        xdp_chain.take_next(place.name, interface)
    for each in place.iterdir():
        each.unlink()
    place.rmdir()


def _declared() -> list[str]:
    text = (FOLDER / "balancer_maps.h").read_text()
    return [line.split(",")[1].strip() for line in text.splitlines() if line.startswith("MAP")]


def _outer_maps(place: Path, limits: Limits) -> dict[str, Map]:
    """The two maps of maps, which need a template of what they hold."""
    made = {}
    for name, kind, entries, inner in (
        ("lb_rings", SLOT, limits.vips + 1, RING_SLOTS),
        ("lb_vips", VIP, 1, PLACES),
    ):
        if (place / name).exists():
            made[name] = Map.pinned(place / name)
            if made[name].max_entries != entries:
                raise BpfleetError(
                    f"the balancer at {place} was made with other limits; "
                    "`bpfleet lb remove` takes it down to be made anew"
                )
            continue
        template = _inner(kind, inner, name)
        made[name] = Map.create(MapType.ARRAY_OF_MAPS, 4, 4, entries, name, inner_fd=template.fd)
        template.close()
        made[name].pin(place / name)
    return made
