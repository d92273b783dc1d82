"""The other end of the tunnel: a program on each real that takes the balancer's outer header off.

    apply("eth0", ["10.254.0.0/16"], ["198.51.100.0/24"])  # again with other prefixes: changed in place
    counts()                              # {"decapsulated": 12, "not_encapsulated": 3, …}
    remove("eth0")

The real itself owns the VIP's address (`ip addr add 198.51.100.1/32 dev lo`) and answers the client directly.
"""

import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from collector import loader, xdp, xdp_chain
from collector.balancer.flow import mapped
from collector.balancer.layout import FOLDER, PREFIX_KEY, record
from collector.bpf_map import Map
from schemas.errors import BpfleetError, UsageError

_ANY = record(PREFIX_KEY, length=0)
SOURCE = FOLDER / "decapsulate.bpf.c"
MAPS = ("balancers", "vips", "decapsulate_counts")


def prefix_key(text: str) -> bytes:
    """The key of a prefix in the longest-prefix map. Raises :class:`UsageError`."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise UsageError(f"not a prefix: {error}") from None
    length = network.prefixlen + (96 if network.version == 4 else 0)
    return record(PREFIX_KEY, length=length, address=mapped(network.network_address))


def apply(
    interface: str, balancers: list[str], vips: Sequence[str] = (), *, mode: str = "auto",
    place: Path | None = None,
) -> None:  # fmt: skip
    """Decapsulate on ``interface`` what comes from these prefixes and is for ``vips``, and nothing else.

    Without ``vips`` the packets inside may be for any address.
    """
    wanted = {"balancers": [prefix_key(each) for each in balancers], "vips": [_ANY]}
    if vips:
        wanted["vips"] = [prefix_key(each) for each in vips]
    place = xdp.pin_directory(str((place or _place()).relative_to(xdp.PINS)))
    source = loader.Source(
        "decapsulate", SOURCE, attach=False, pins={name: str(place / name) for name in MAPS}
    )
    result = loader.load([source])
    if result.failed:
        raise BpfleetError(f"cannot load the decapsulation: {result.failed['decapsulate']}")
    loaded = result.loaded["decapsulate"]
    try:
        for name, keys in wanted.items():
            table = loaded.maps[name]
            for key in keys:
                table.update(key, bytes(4))
            for key in [each for each in table if each not in keys]:
                table.delete(key)
        xdp_chain.put_next(place.name, loaded.programs[0].fd, interface, mode=mode)
    finally:
        loaded.close()


def counts(place: Path | None = None) -> dict[str, int]:
    """What became of the packets so far, over all interfaces."""
    table = Map.pinned((place or _place()) / "decapsulate_counts")
    try:
        _, values, count = table.read()
    finally:
        table.close()
    sums = np.frombuffer(bytes(values), np.uint64).reshape(count, -1).sum(axis=1)
    return {name: int(each) for name, each in zip(_names(), sums, strict=True)}


def remove(interface: str, place: Path | None = None) -> None:
    """Stop on ``interface``; with the last one the maps go too."""
    place = place or _place()
    xdp_chain.take_next(place.name, interface)
    if place.exists() and not xdp_chain.interfaces(place.name):
        for each in place.iterdir():
            each.unlink()
        place.rmdir()


def _place() -> Path:
    return xdp.PINS / "decapsulate"


def _names() -> list[str]:
    found = re.search(r"enum decapsulate_count \{([^}]*)COUNTS", SOURCE.read_text())
    assert found is not None
    return [each.strip().lower() for each in found[1].split(",") if each.strip()]
