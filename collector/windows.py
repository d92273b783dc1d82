"""Programs attached for a share of the time only: what they tell is a sample, at a share of the cost.

Attaching and detaching a raw tracepoint is two system calls and needs nothing that the collector gives up.
Windows come at random distances, so that what happens in a rhythm is sampled all the same; each distance
follows how long the last window really was, so that the share holds on a busy host too.
"""

import logging
import os
import random
import threading
import time
from collections.abc import Iterable

from collector import bpf_sys
from collector.companion import Companion
from collector.loader import Program
from collector.probes import Attached

log = logging.getLogger("bpfleet.collector")
SHARES = {("syscall", "sys_enter"): 10}  # (probe, tracepoint): one over its share, as the source assumes
OPEN_S = 0.1


class Windows(Companion):
    """Opens windows of :data:`OPEN_S` for every program of :data:`SHARES` until :meth:`stop`."""

    def __init__(self, attached: Iterable[Attached]) -> None:
        super().__init__()
        self._programs: list[Program] = []
        for each in attached:
            for program in each.programs:
                if (each.probe.name, program.name) in SHARES:
                    each.loaded.release(program)
                    self._programs.append(program)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="windows", daemon=True)

    def start(self) -> None:
        """Begin to open windows."""
        if self._programs:
            self._thread.start()

    def stop(self) -> None:
        """Open no more; one that is open closes."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        share = max(SHARES.values())
        length = OPEN_S
        while not self._end.wait(length * (share - 1) * random.uniform(0.5, 1.5)):
            begun = time.monotonic()
            try:
                links = [_attach(each) for each in self._programs]
            except bpf_sys.BpfError as error:
                log.warning("system calls are counted, but no longer timed: %s", error)
                return
            self._end.wait(OPEN_S)
            for each in links:
                os.close(each)
            length = time.monotonic() - begun


def _attach(program: Program) -> int:
    return bpf_sys.raw_tracepoint_open(program.fd, program.name if program.kind == "raw_tp" else "")
