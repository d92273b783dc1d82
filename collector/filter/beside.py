"""Beside a balancer: its tables of VIPs, and the filter's own of connections to them, while a rule asks.

What is known of them, and why: docs/decisions/0055 and bpf/xdp/filter_follow.h.
"""

from collections.abc import Callable
from pathlib import Path

from collector.bpf_map import Map
from collector.bpf_sys import BpfError

VIPS = ("lb_vips", "lb_prefixes", "lb_settings")  # the balancer's
FOLLOWING = ("filter_known", "filter_segments")


class Beside:
    """Owns the maps. ``place``: the balancer's pins, whether it is there or not; None: there never is one."""

    def __init__(self, place: Path | None) -> None:
        self._place = place
        self.maps: dict[str, Map] = {}  # empty: no rule asks, or there is no balancer

    def ask(self, asking: bool, make: Callable[[str], Map]) -> bool:
        """Have the maps if a rule is ``asking``, else none; ``make`` makes one of ours. True: they are."""
        before, self.maps = self.maps, {}
        found = self._pinned() if asking else {}
        if found:
            own = {name: before.pop(name) if name in before else make(name) for name in FOLLOWING}
            self.maps = found | own
        for each in before.values():
            each.close()
        return bool(found)

    def _pinned(self) -> dict[str, Map]:
        if self._place is None or not (self._place / VIPS[0]).exists():
            return {}
        found: dict[str, Map] = {}
        try:
            for name in VIPS:
                found[name] = Map.pinned(self._place / name)
        except BpfError:  # it is being made, or taken down
            for each in found.values():
                each.close()
            return {}
        return found

    @property
    def numbers(self) -> tuple[int, ...]:
        """The kernel's numbers of the maps: others, when the balancer was made anew."""
        return tuple(each.id for each in self.maps.values())

    def changed(self) -> bool:
        """Whether the balancer came, went or was made anew since the last :meth:`ask`."""
        now = self._pinned()
        same = {name: each.id for name, each in now.items()} == {
            name: each.id for name, each in self.maps.items() if name in VIPS
        }
        for each in now.values():
            each.close()
        return not same

    def close(self) -> None:
        """Give the descriptors back."""
        for each in self.maps.values():
            each.close()
        self.maps = {}
