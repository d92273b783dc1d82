"""The clocks of the on-CPU profile: a perf event on each CPU that runs the program at a frequency."""

import os
from pathlib import Path

from collector import tracefs
from collector.loader import Loaded

ONLINE = Path("/sys/devices/system/cpu/online")


def online_cpus() -> list[int]:
    """Numbers of the CPUs that run."""
    parts = (each.partition("-") for each in ONLINE.read_text().strip().split(","))
    return [cpu for first, _, last in parts for cpu in range(int(first), int(last or first) + 1)]


class Clocks:
    """The clocks of one loaded cpu_profile. Owns the events: :meth:`close` stops them."""

    def __init__(self, loaded: Loaded, hertz: int) -> None:
        self._loaded = loaded
        self._events: list[int] = []
        self.hertz = 0
        self.set_frequency(hertz)

    def set_frequency(self, hertz: int) -> None:
        """Sample each CPU so many times a second from now on; 0 stops. Raises BpfError."""
        self.close()
        if hertz:
            self._loaded.set("profile_period_ns", 1_000_000_000 // hertz)
            program = self._loaded.program("cpu_clock").fd
            for cpu in online_cpus():
                self._events.append(tracefs.cpu_clock(cpu, hertz))
                tracefs.attach(self._events[-1], program)
        self.hertz = hertz

    def close(self) -> None:
        """Stop sampling."""
        while self._events:
            os.close(self._events.pop())
