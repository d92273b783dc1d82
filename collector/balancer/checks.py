"""The kernel's part of health checks: sockets with a mark speak to one real, over the balancer's own tunnel.

A socket whose ``SO_MARK`` is :func:`mark` of a backend connects to the VIP; bpf/xdp/check.bpf.c, on the way
out of the balancer's interfaces, puts on the outer header that the balancer would. The host must have a route
to the VIP that leaves through such an interface, and not own the VIP's address.
"""

import contextlib
import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from collector import bpf_sys, loader
from collector.balancer import dataplane
from collector.balancer.dataplane import Dataplane
from collector.balancer.layout import FOLDER
from schemas.errors import BpfleetError

if TYPE_CHECKING:
    from collector.balancer.state import State

PIN = "check"
_MARK = 0x62000000  # CHECK_MARK in the program
_PREFERENCE, _HANDLE = "25186", "1"  # of our filter among others


def mark(backend: int) -> int:
    """The mark that sends a socket's packets to a backend."""
    return _MARK | backend


def attach(state: "State") -> None:
    """Put the program on the way out of the balancer's interfaces; again is harmless."""
    pin = state.plane.place / PIN
    if not pin.exists() or state.ledger.checks != digest():
        _load(state.plane, pin)
        state.ledger.checks = digest()
        state.write()
    for each in state.applied.interfaces:
        with contextlib.suppress(BpfleetError):  # it is there already
            _tc("qdisc", "add", "dev", each, "clsact")
        _tc("filter", "replace", *_filter(each), "bpf", "direct-action", "object-pinned", str(pin))


def digest() -> str:
    """What the program is made of."""
    text = (FOLDER / "check.bpf.c").read_bytes() + dataplane.digest().encode()
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _load(plane: Dataplane, pin: Path) -> None:
    source = loader.Source("check", FOLDER / "check.bpf.c", given=plane.maps, attach=False)
    result = loader.load([source])
    if result.failed:
        raise BpfleetError(f"cannot load the health checks: {result.failed['check']}")
    pin.unlink(missing_ok=True)
    bpf_sys.pin(result.loaded["check"].programs[0].fd, pin)
    result.close()


def detach(interfaces: Iterable[str]) -> None:
    """Take it off again, where it is."""
    for each in interfaces:
        with contextlib.suppress(BpfleetError):
            _tc("filter", "del", *_filter(each), "bpf")


def _filter(interface: str) -> list[str]:
    return ["dev", interface, "egress", "pref", _PREFERENCE, "handle", _HANDLE]


def _tc(*words: str) -> None:
    try:
        done = subprocess.run(["tc", *words], capture_output=True, text=True, check=False)
    except OSError as error:
        raise BpfleetError(f"cannot run tc: {error.strerror}; install iproute2") from None
    if done.returncode:
        raise BpfleetError(f"tc {' '.join(words)}: {' '.join(done.stderr.split())}")
