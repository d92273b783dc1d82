"""A balancer of its own for a test: its maps in bpffs under the test's name, its state in tmp_path."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from collector import bpf_sys, xdp
from collector.balancer import layout, ledger, vip_table
from collector.balancer.layout import REASONS
from collector.balancer.state import State
from collector.ring import Ring
from schemas import declare, dtype
from schemas import lb as model
from schemas.config import Config

PASS, DROP, TX, REDIRECT = 2, 1, 3, 4
HOP, OURS, CLIENT = "02:00:00:00:00:99", "02:00:00:00:00:02", "02:00:00:00:00:03"
LIMITS = {"vips": 31, "backends": 511, "flows": 4096}


def vip(address: str, port: int, *reals: str, **settings: Any) -> dict[str, Any]:
    """A VIP's tree."""
    return {"address": address, "port": port, "reals": [{"address": each} for each in reals], **settings}


@dataclass
class Bench:
    """A state and the little that packet tests need of it."""

    state: State
    config: Config
    place: Path
    seen: dict[str, int] = field(default_factory=dict)

    def apply(self, vips: dict[str, Any], **settings: Any) -> None:
        limits = dict(zip(("vips", "backends", "flows"), self.state.plane.sizes(), strict=True))
        tree = {"next_hop": HOP, "limits": limits, "vips": vips, **settings}
        self.state.apply(model.parse(tree))

    def run(self, packet: bytes, *, repeat: int = 1) -> bpf_sys.TestRun:
        return bpf_sys.prog_test_run(self.state.plane.program, packet, repeat=repeat)

    def reasons(self) -> dict[str, int]:
        """Every reason counted so far, all VIPs together."""
        sums = self.state.plane.read_reasons().sum(axis=0)
        return {each.name: int(sums[each.number]) for each in REASONS if sums[each.number]}

    def packets(self) -> int:
        return int(self.state.plane.read_counters()["packets"].sum())

    def clear(self) -> None:
        """As if it were made just now: a test's fresh balancer, without compiling the program again."""
        plane = self.state.plane
        plane.forget_rings([*self.state.ledger.vips.taken.values()])
        plane.write_vips(np.zeros(vip_table.PLACES, layout.VIP))
        for name, table in plane.maps.items():
            if name in ("lb_flows", "lb_prefixes", "lb_sources", "lb_quic_ids", "lb_fragments"):
                for key in list(table):
                    table.delete(key)
            elif name in ("lb_backends", "lb_counters", "lb_reasons", "lb_settings", "lb_budgets"):
                count = table.max_entries
                table.update_many(
                    np.arange(count, dtype=np.uint32).tobytes(), bytes(count * table.element_size), count
                )
        samples = Ring(plane.maps["lb_flow"], dtype.event(declare.streams()["lb_flow"]))
        samples.read()
        samples.close()
        self.state.journal.file.unlink(missing_ok=True)
        self.state.ledger = ledger.Ledger(program=self.state.ledger.program)
        self.state.write()

    def reopen(self) -> None:
        """Let another process's state take over, as after a crash."""
        self.state.__exit__(None, None, None)
        self.state = State.open(self.config, self.place)


@contextmanager
def bench(tmp_path: Path, **limits: int) -> Iterator[Bench]:
    """An empty balancer, gone afterwards."""
    place = xdp.PINS / f"test-{uuid.uuid4().hex[:8]}"
    config = Config(state_dir=str(tmp_path))
    state = State.open(config, place, model.Limits(**{**LIMITS, **limits}))
    made = Bench(state, config, place)
    try:
        yield made
    finally:
        made.state.remove()
        made.state.__exit__(None, None, None)
