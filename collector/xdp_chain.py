"""Programs of ours that share an interface, one pass for each packet: the filter, then what follows it.

    put_first("filter", program, "eth0", table)     # the filter; `table` is its program array `filter_next`
    put_next("lb", program, "eth0")                  # the balancer, or the decapsulation
    take_first("filter", "eth0"); take_next("lb", "eth0")

In any order. The interface has one link, pinned under PINS/xdp/<network namespace>_<interface>/. Where there
is a first program the link runs it, and the next one stands in its array of one: a constant index, which the
kernel turns into a direct jump. Else the link runs the next one itself. Each step is one update that the
kernel makes at once: a packet meets what was there or what is there, never less. Owners are the names of pin
directories: so they find what they left.
"""

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from collector import bpf_sys, xdp
from collector.bpf_map import Map
from collector.bpf_sys import BpfError
from schemas.errors import BpfleetError

FOLDER = "xdp"
LINK, FIRST, NEXT = "link", "first_", "next_"
_PLACE = bytes(4)  # in a first program's array


def put_first(owner: str, program: int, interface: str, table: Map, *, mode: str = "auto") -> None:
    """Have ``program`` see each packet of the interface first; again with another to replace it.

    Raises :class:`BpfleetError` where another owner's, or a stranger's, program is first.
    """
    with _chain(interface) as place:
        _refuse_others(place, FIRST, owner, interface)
        for following in place.glob(f"{NEXT}*"):
            _enter(table, bpf_sys.obj_get(following), own=True)
        _attach(place, program, interface, mode)
        _pin(table.fd, place / f"{FIRST}{owner}")


def put_next(owner: str, program: int, interface: str, *, mode: str = "auto") -> None:
    """Have ``program`` see what the first one lets pass, or everything where there is none."""
    with _chain(interface) as place:
        _refuse_others(place, NEXT, owner, interface)
        table = _table(place)
        if table is None:
            _attach(place, program, interface, mode)
        else:
            try:
                _enter(table, program)
            finally:
                table.close()
        _pin(program, place / f"{NEXT}{owner}")


def take_first(owner: str, interface: str) -> None:
    """Without that first program; what follows goes on."""
    with _chain(interface) as place:
        pin = place / f"{FIRST}{owner}"
        if not pin.exists():
            return
        following = next(place.glob(f"{NEXT}*"), None)
        if following is None:
            _clear(place)
            return
        program = bpf_sys.obj_get(following)
        try:
            _attach(place, program, interface, "auto")
        finally:
            os.close(program)
        with _opened(pin) as table:
            table.delete(_PLACE)
        pin.unlink()


def take_next(owner: str, interface: str) -> None:
    """Without that next program; the first one goes on."""
    with _chain(interface) as place:
        pin = place / f"{NEXT}{owner}"
        if not pin.exists():
            return
        table = _table(place)
        if table is None:
            _clear(place)
            return
        try:
            table.delete(_PLACE)
        finally:
            table.close()
        pin.unlink()


def interfaces(owner: str, *, alive: bool = False) -> list[str]:
    """Interfaces of this network namespace on which the owner has a program; ``alive``: that still run it."""
    root, space = xdp.PINS / FOLDER, f"{_namespace()}_"
    found = {
        each.parent.name.removeprefix(space).replace("~", ".")
        for end in (FIRST, NEXT)
        for each in root.glob(f"{space}*/{end}{owner}")
    }
    present = {name: index for index, name in socket.if_nameindex()}
    return sorted(each for each in found if not alive or _target(place_of(each)) == present.get(each, -1))


def place_of(interface: str) -> Path:
    """Where the pins of an interface are; bpffs takes no dots in names."""
    return xdp.PINS / FOLDER / f"{_namespace()}_{interface.replace('.', '~')}"


def _namespace() -> int:
    return Path("/proc/thread-self/ns/net").stat().st_ino


@contextmanager
def _chain(interface: str) -> Iterator[Path]:
    """The interface's directory, to ourselves; what an interface that is gone has left is cleared."""
    root = xdp.pin_directory(FOLDER)
    lock = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _sweep(root)
        place = place_of(interface)
        try:
            index = xdp.interface_index(interface)
        except BpfleetError:
            if place.exists():  # gone, and its link with it
                _clear(place)
            raise
        if place.exists() and _target(place) != index:
            _clear(place)
        place.mkdir(exist_ok=True)
        try:
            yield place
        finally:
            if place.exists() and not any(place.iterdir()):
                place.rmdir()
    finally:
        os.close(lock)


def sweep() -> None:
    """Clear what interfaces that are gone have left, in all network namespaces."""
    root = xdp.PINS / FOLDER
    if root.exists():
        _sweep(root)


def _sweep(root: Path) -> None:
    for each in root.iterdir():
        if (each / LINK).exists() and not _target(each):
            _clear(each)


def _target(place: Path) -> int:
    """The number of the interface that the link there is on; 0: it is gone, or there is no link."""
    if not (place / LINK).exists():
        return 0
    link = bpf_sys.obj_get(place / LINK)
    try:
        return int(struct.unpack_from("=I", bpf_sys.object_info(link, 20), 16)[0])
    finally:
        os.close(link)


def _attach(place: Path, program: int, interface: str, mode: str) -> None:
    xdp.attach(program, interface, mode=mode, pin=place / LINK).close()


def _clear(place: Path) -> None:
    """Nobody is left: the link goes, and with it the last program."""
    link = bpf_sys.obj_get(place / LINK) if (place / LINK).exists() else None
    for each in place.iterdir():
        each.unlink()
    place.rmdir()
    if link is not None:
        os.close(link)  # the last to let go: by an unlink alone it would be detached some time later


def _pin(fd: int, pin: Path) -> None:
    """By way of another name: there is always one of the two."""
    fresh = pin.with_name(f"fresh_{pin.name}")
    fresh.unlink(missing_ok=True)
    bpf_sys.pin(fd, fresh)
    fresh.replace(pin)


@contextmanager
def _opened(pin: Path) -> Iterator[Map]:
    table = Map.pinned(pin)
    try:
        yield table
    finally:
        table.close()


def _table(place: Path) -> Map | None:
    """The first program's array, if there is one."""
    pin = next(place.glob(f"{FIRST}*"), None)
    return None if pin is None else Map.pinned(pin)


def _enter(table: Map, program: int, *, own: bool = False) -> None:
    try:
        table.update(_PLACE, struct.pack("=I", program))
    except BpfError as error:
        raise BpfleetError(f"{error}; the programs of one interface must be of one kernel's making") from None
    finally:
        if own:
            os.close(program)


def _refuse_others(place: Path, end: str, owner: str, interface: str) -> None:
    others = [each.name.removeprefix(end) for each in place.glob(f"{end}*") if each.name != f"{end}{owner}"]
    if others:
        raise BpfleetError(f"{interface} already has {others[0]}; remove that first")
