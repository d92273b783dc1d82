"""The profiles, on-CPU and off-CPU, of a running collector: clocks, stacks, symbols put together."""

import logging
from collections.abc import Iterable

from collector import privileges
from collector.clocks import Clocks
from collector.ksym import Symbols as KernelSymbols
from collector.probes import Attached
from collector.stacks import Names, Stacks, StackSource
from collector.symbols import Symbols
from schemas.config import Collector

log = logging.getLogger("bpfleet.collector")
CPU_PROFILE = "cpu_profile"


class Profiler(Stacks):
    """A companion of the agent. ``clocks`` is None where the on-CPU profile does not run."""

    def __init__(
        self, sources: Iterable[StackSource], names: Names, every_s: float, clocks: Clocks | None
    ) -> None:
        super().__init__(sources, names, every_s)
        self.clocks = clocks

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
    stacks = [each.stacks for each in sources.values() if each.stacks]
    return Profiler(stacks, Names(Symbols(kernel)), config.profile_ms / 1000, clocks)
