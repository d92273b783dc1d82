"""XDP programs on interfaces: attach, replace without a gap, keep in bpffs.

A program is attached by a pinned ``bpf_link``: the link stays when the process ends, and a later process
finds it by its pin. Replacing updates the link, which the kernel does atomically: each packet meets the old
program or the new one, never none. Standard library only.
"""

import errno
import fcntl
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from collector import bpf_sys
from collector.bpf_sys import BpfError
from schemas.errors import BpfleetError

PINS = Path("/sys/fs/bpf/bpfleet")
OWNERS = "owners"  # a folder each for pins that a collector has claimed


def pin_directory(name: str, root: Path = PINS) -> Path:
    """A directory in bpffs, made if need be; bpffs is mounted if it is not there."""
    place = root / name
    try:
        place.mkdir(parents=True, exist_ok=True)
        if not _is_bpffs(place):
            problem = bpf_sys.mount("bpf", "/sys/fs/bpf")
            place.mkdir(parents=True, exist_ok=True)
            if problem or not _is_bpffs(place):
                reason = problem or "mounted elsewhere"
                raise BpfleetError(f"{place} is not in bpffs ({reason}); mount -t bpf bpf /sys/fs/bpf")
    except OSError as error:
        raise BpfleetError(f"cannot make {place}: {error.strerror}; mount -t bpf bpf /sys/fs/bpf") from None
    return place


def _is_bpffs(place: Path) -> bool:
    device = place.stat().st_dev
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    wanted = f"{os.major(device)}:{os.minor(device)}"
    return any(line.split()[2] == wanted and " - bpf " in line for line in mounts)


class Claim:
    """Pins belong to one collector: two that change the same maps by their own documents undo each other's.

    Made without a look; :meth:`holds` takes the pins if nobody has them, for as long as this process lives.
    """

    def __init__(self, name: str) -> None:
        self.refusal = (
            f"another collector has the pins {PINS / name}; stop it, or give this one others "
            "(collector.lb_pins, collector.filter_pins)"
        )
        self._name = name
        self._fd = -1

    def holds(self) -> bool:
        """Whether the pins are ours. Raises :class:`BpfleetError` where there is no bpffs."""
        if self._fd >= 0:
            return True
        fd = os.open(pin_directory(f"{OWNERS}/{self._name}"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def close(self) -> None:
        """Let others have them."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def interface_index(name: str) -> int:
    """The number of an interface. Raises :class:`BpfleetError` with the names there are."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        names = ", ".join(each for _, each in socket.if_nameindex())
        raise BpfleetError(f"there is no interface {name}; there are: {names}") from None


@dataclass(frozen=True)
class Attached:
    """A program on an interface. The owner closes ``link``; a pin keeps it attached all the same."""

    interface: str
    link: int
    pin: Path | None

    def replace(self, program: int) -> None:
        """Let another program (its descriptor) take over at once."""
        bpf_sys.link_update(self.link, program)

    def detach(self) -> None:
        """Take the program off the interface."""
        if self.pin is not None:
            self.pin.unlink(missing_ok=True)
        os.close(self.link)

    def close(self) -> None:
        """Give the descriptor back; a pinned program stays attached."""
        os.close(self.link)


def attach(program: int, interface: str, *, mode: str = "auto", pin: Path | None = None) -> Attached:
    """Put a program on an interface: into the link pinned at ``pin`` if it is there, else by a new one.

    Raises :class:`BpfleetError` if another program holds the interface.
    """
    found = attached(interface, pin) if pin else None
    if found is not None:
        try:
            found.replace(program)
            return found
        except BpfError as error:
            if error.errno != errno.ENOLINK:  # the interface is gone, perhaps one of the same name is back
                raise
            found.detach()
    index = interface_index(interface)
    try:
        link = _link(program, index, mode)
    except BpfError as error:
        if error.errno in (errno.EBUSY, errno.EEXIST):
            raise BpfleetError(
                f"{interface} has another XDP program; find it with `ip link show {interface}` and remove it"
            ) from None
        raise BpfleetError(f"{interface}: {error}; try mode generic") from None
    if pin is not None:
        try:
            bpf_sys.pin(link, pin)
        except BpfError:
            os.close(link)
            raise
    return Attached(interface, link, pin)


def _link(program: int, index: int, mode: str) -> int:
    """As ``mode`` says; for "auto" by the stack where the driver can but will not, as with jumbo frames."""
    try:
        return bpf_sys.xdp_link(program, index, mode)
    except BpfError as error:
        if mode != "auto" or error.errno not in (errno.ERANGE, errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return bpf_sys.xdp_link(program, index, "generic")


def attached(interface: str, pin: Path) -> Attached | None:
    """What an earlier process left at ``pin``; None if there is nothing."""
    if not pin.exists():
        return None
    return Attached(interface, bpf_sys.obj_get(pin), pin)
