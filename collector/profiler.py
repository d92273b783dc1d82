"""The profiles, on-CPU and off-CPU, of a running collector: clocks, stacks, symbols put together."""

import logging
import os
from collections.abc import Iterable

from collector import privileges
from collector.clocks import Clocks
from collector.ksym import Symbols as KernelSymbols
from collector.loader import Loaded
from collector.probes import Attached
from collector.stacks import Names, Stacks, StackSource
from collector.symbols import Symbols
from schemas.config import Collector

log = logging.getLogger("bpfleet.collector")
CPU_PROFILE, OFF_CPU, OFF_CPU_BUDGET = "cpu_profile", "off_cpu", "off_cpu_budget"


class Waits:
    """How many waits off_cpu samples each second: what is wanted, or less where naming them is dear."""

    def __init__(self, loaded: Loaded, wanted: int) -> None:
        self._loaded, self._wanted, self._rate = loaded, wanted, 1.0

    def want(self, each_second: int) -> None:
        """So many, all CPUs together, from now on."""
        self._wanted = each_second
        self.follow(self._rate)

    def follow(self, rate: float) -> None:
        """This share of them."""
        self._rate = rate
        self._loaded.set(OFF_CPU_BUDGET, max(int(self._wanted * rate), 1))


class Profiler(Stacks):
    """A companion of the agent. ``clocks``, ``waits``: None where that profile does not run."""

    def __init__(
        self, sources: Iterable[StackSource], names: Names, every_s: float, clocks: Clocks | None,
        waits: Waits | None,
    ) -> None:  # fmt: skip
        super().__init__(sources, names, every_s, waits.follow if waits else lambda rate: None)
        self.clocks, self.waits = clocks, waits

    def stop(self) -> None:
        """End sampling, read what is left."""
        if self.clocks:
            self.clocks.close()
        super().stop()


def attach(attached: Iterable[Attached], kernel: KernelSymbols, config: Collector) -> Profiler | None:
    """Begin sampling; None when no probe takes stacks. Raises BpfleetError."""
    sources = {each.probe.name: each for each in attached if each.stacks}
    if not sources:
        return None
    if not privileges.has(privileges.Capability.SYS_PTRACE):
        log.warning("stacks of programs have no names: other processes are hidden; grant CAP_SYS_PTRACE")
    if not kernel.is_read:
        kernel.read()
    found = sources.get(CPU_PROFILE)
    clocks = Clocks(found.loaded, config.profile_hz) if found else None
    wanted = config.off_cpu_samples * (os.cpu_count() or 1)
    waits = Waits(sources[OFF_CPU].loaded, wanted) if OFF_CPU in sources else None
    stacks = [each.stacks for each in sources.values() if each.stacks]
    return Profiler(stacks, Names(Symbols(kernel)), config.profile_ms / 1000, clocks, waits)
