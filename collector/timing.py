"""What programs take, by the kernel's BPF statistics, looked at a share of the time.

    timing = Timing.open()                       # before privileges are dropped
    timing.measure = health.run_times            # what the kernel says of each program
    timing.step(now)                             # at timing.at: begins or ends to look
    timing.interval(now, 5.0)                    # (probe, hook) → what each took, estimated
    timing.hold("name"); timing.release("name")  # in between nothing is estimated

While the kernel times programs each run costs 50–70 ns more, as much as many a program does: see
docs/decisions/0076. So they are timed in a window of a tenth of each interval, at a random moment of it, and
what they took meanwhile stands for the whole interval. While somebody holds it (a probe on demand has a
budget of its own) the window stays open.
"""

import logging
import os
import random
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from collector import bpf_sys, privileges
from collector.bpf_sys import BpfError, ProgInfo
from collector.loader import PYTHON

log = logging.getLogger("bpfleet.collector")
SHARE = 0.1
CHILD = Path(__file__).parent / "timing_keeper.py"
SERVICE = Path("/run/bpfleet-timing.sock")  # deploy/bpfleet-timing.service
ANSWER_S = 2.0
Key = tuple[str, str]  # probe, hook
Infos = Mapping[Key, ProgInfo]


class Keeper:
    """Who may turn the timing on: a child of ours, or a service of this host."""

    def __init__(self, channel: socket.socket, child: "subprocess.Popen[bytes] | None" = None) -> None:
        self._channel, self._child = channel, child
        channel.settimeout(ANSWER_S)

    @classmethod
    def open(cls) -> "Keeper | None":
        """None where this process must not turn it on and nobody does it for it."""
        if privileges.has(privileges.Capability.SYS_ADMIN):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                number = theirs.fileno()
                command = [PYTHON, "-I", "-S", "-B", str(CHILD), str(number)]
                child = subprocess.Popen(command, pass_fds=[number], stdin=subprocess.DEVNULL)
            return cls(ours, child)
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            channel.connect(str(SERVICE))
        except OSError:
            channel.close()
            return None
        return cls(channel)

    def turn_on(self) -> int:
        """A descriptor: programs are timed until it is closed. Raises OSError, BpfError."""
        self._channel.send(b"?")
        said, fds, _, _ = socket.recv_fds(self._channel, 400, 1)
        if not fds:
            raise BpfError(said.decode(errors="replace") or "the keeper of BPF statistics is gone")
        os.set_inheritable(fds[0], False)
        return fds[0]

    def close(self) -> None:
        """End the child."""
        self._channel.close()
        if self._child:
            self._child.wait(ANSWER_S)


@dataclass(frozen=True)
class Took:
    """What a program took in an interval."""

    run_ns: int
    runs: int
    missed: int


class Timing:
    """The windows of one collector. ``keeper`` None: the kernel times always, or never."""

    def __init__(self, keeper: Keeper | None) -> None:
        self.measure: Callable[[], Infos] = dict
        self.at = float("inf")  # when to call step
        self._keeper = keeper
        self._holders: set[str] = set()
        self._fd = -1
        self._opened_at: float | None = None
        self._opened: Infos = {}
        self._ends = 0.0
        self._open_s = 0.0  # in this interval, until now
        self._ns: Counter[Key] = Counter()
        self._runs: Counter[Key] = Counter()
        self._missed: dict[Key, int] = {}  # when this interval began
        self._since: float | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls) -> "Timing":
        """Before privileges are dropped. Says so where programs will run untimed."""
        keeper = Keeper.open()
        if keeper is None and bpf_sys.STATS_SYSCTL.read_text().strip() == "0":
            log.warning("programs run untimed: start bpfleet-timing.service")
        return cls(keeper)

    # ── Windows ──────────────────────────────────────────────────────────────────────────────────

    def step(self, now: float) -> None:
        """Begin to look, or end it, where it is time."""
        with self._lock:
            if self._opened_at is None:
                if now >= self.at:
                    self._begin(now, self.measure())
            elif not self._holders and now >= self._ends:
                self._end(now, self.measure())

    def hold(self, name: str) -> None:
        """Keep the window open from now on. From any thread; programs are timed when this returns."""
        with self._lock:
            self._holders.add(name)
            if self._opened_at is None:
                self._begin(time.monotonic(), self.measure())

    def release(self, name: str) -> None:
        """This one needs it no longer. From any thread."""
        with self._lock:
            self._holders.discard(name)

    def _begin(self, now: float, measured: Infos) -> None:
        if self._keeper:
            try:
                self._fd = self._keeper.turn_on()
            except (OSError, BpfError) as error:
                log.warning("programs run untimed from now on: %s", error)
                self._keeper = None
        self._opened, self._opened_at = measured, now
        self.at = self._ends

    def _end(self, now: float, measured: Infos) -> None:
        assert self._opened_at is not None
        for key, info in measured.items():
            before = self._opened.get(key)
            self._ns[key] += max(info.run_time_ns - (before.run_time_ns if before else 0), 0)
            self._runs[key] += max(info.run_count - (before.run_count if before else 0), 0)
        self._open_s += now - self._opened_at
        self._opened_at, self.at = None, float("inf")
        self._turn_off()

    # ── Intervals ────────────────────────────────────────────────────────────────────────────────

    def interval(self, now: float, seconds: float) -> dict[Key, Took]:
        """What each program took since the last call; the next interval is to have ``seconds``."""
        with self._lock:
            measured = self.measure()
            if self._opened_at is not None:
                self._end(now, measured)
            first, took = self._since is None, self._took(now, measured)
            self._ns.clear()
            self._runs.clear()
            self._open_s, self._since = 0.0, now
            # The first window comes at once: who ends soon is known a little, too.
            self.at = now if first else now + random.uniform(0, (1 - SHARE) * seconds)
            self._ends = self.at + SHARE * seconds
            if self._keeper is None:  # to look costs nothing that is not paid anyway
                self._ends = float("inf")
            if self._keeper is None or self._holders:
                self._begin(now, measured)
            return took

    def _took(self, now: float, measured: Infos) -> dict[Key, Took]:
        length = now - self._since if self._since is not None else 0.0
        factor = length / self._open_s if self._open_s else 0.0
        before, self._missed = self._missed, {key: info.missed for key, info in measured.items()}
        return {
            key: Took(
                int(self._ns[key] * factor),
                int(self._runs[key] * factor),
                max(missed - before.get(key, 0), 0),
            )
            for key, missed in self._missed.items()
        }

    def _turn_off(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        """Time no more."""
        with self._lock:
            self._turn_off()
            if self._keeper:
                self._keeper.close()
