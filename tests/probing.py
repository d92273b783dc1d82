"""A declared probe in the kernel, read as the collector reads it, for tests of known workloads."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from collector import bpf_sys, loader
from collector.aggregate import Aggregate
from collector.bpf_map import possible_cpus
from collector.ring import Ring
from schemas import declare, dtype

PROBES = declare.load()


class Probing:
    """One loaded probe; streams by name."""

    def __init__(self, name: str, result: loader.Result) -> None:
        self.declared = PROBES[name]
        self.loaded = result.loaded[name]
        self.enums = result.enums
        streams = {each.name: each for each in self.declared.streams}
        self.rings = {
            each.name: Ring(self.loaded.maps[each.name], dtype.event(each))
            for each in streams.values()
            if each.source == "ring"
        }
        self.aggregates = {
            each.name: Aggregate(self.loaded.maps[each.name], each, self.loaded.maps.get(f"{each.name}_near"))
            for each in streams.values()
            if each.source == "aggregate"
        }

    def events(
        self, stream: str, condition: Callable[[Any], bool] = lambda _: True, seconds: float = 5
    ) -> list[Any]:
        """Events of a ring until as many as there are satisfy ``condition`` together, or time is up."""
        found: list[Any] = []
        end = time.monotonic() + seconds
        while True:
            found += list(self.rings[stream].read())
            if condition(found) or time.monotonic() > end:
                return found
            time.sleep(0.02)

    def rows(self, stream: str) -> list[tuple[Any, Any]]:
        """What each key of an aggregate gained."""
        return list(zip(*self.aggregates[stream].read(), strict=True))

    def counts(self) -> np.ndarray:
        """(streams, made · lost · sampled out · spare)."""
        _, values, count = self.loaded.maps[f"{self.declared.name}_counts"].read()
        return np.frombuffer(values, np.uint64).reshape(count, possible_cpus()).sum(axis=1).reshape(-1, 4)

    def cost(self, run: Callable[[], Any]) -> dict[str, tuple[int, float]]:
        """Each program's (runs, nanoseconds a run) during ``run``, by BPF statistics."""
        before = {each.name: bpf_sys.prog_info(each.fd) for each in self.loaded.programs}
        run()
        after = {each.name: bpf_sys.prog_info(each.fd) for each in self.loaded.programs}
        runs = {name: after[name].run_count - before[name].run_count for name in after}
        return {
            name: (runs[name], (after[name].run_time_ns - before[name].run_time_ns) / max(runs[name], 1))
            for name in after
        }

    def close(self) -> None:
        for each in self.rings.values():
            each.close()
        self.loaded.close()


@contextmanager
def probing(name: str, **how: Any) -> Iterator[Probing]:
    """Load and attach one declared probe; ``how``: fields of ``loader.Source``."""
    result = loader.load(
        [loader.probe_source(PROBES[name], **how)], enums=loader.kernel_enums([PROBES[name]])
    )
    assert not result.failed, f"{result.failed}\n{result.logs.get(name, '')[-4000:]}"
    loaded = Probing(name, result)
    try:
        yield loaded
    finally:
        loaded.close()
