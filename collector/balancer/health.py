"""Health checks of reals: who answers stays in the ring, who fails leaves it, by rise and fall counts.

``run(config, place, report)`` checks every VIP that has a ``check`` until it is cancelled, applies what
changes and hands each :class:`Transition` to ``report``. It follows the configuration as others change it.
When all reals of a VIP fail, none is taken out: then the checks, not the reals, are doubted.
"""

import asyncio
import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from collector import watch as files
from collector.balancer import checks, ledger
from collector.balancer.state import State, ledger_file
from schemas.config import Config
from schemas.errors import BpfleetError
from schemas.lb import Check, Vip

_SO_MARK = 36
_LOOK_SECONDS = (
    2.0  # how often a changed configuration is looked for, even if nothing in its directory changed
)
_STATUS_BYTES = 4096


@dataclass(frozen=True)
class Transition:
    """A real went up or down; ``ts`` is wall clock in seconds."""

    ts: float
    vip: str
    real: str
    up: bool
    reason: str
    seconds: float  # since the first result that spoke against the former state


@dataclass
class Target:
    """A real under check; ``streak`` counts results that speak against its present state."""

    vip: str
    config: Vip
    real: str
    backend: int
    up: bool
    streak: int = 0
    since: float = 0.0  # monotonic: when the first result of the streak was asked for

    @property
    def name(self) -> str:
        """As the ledger calls it."""
        return ledger.backend_name(self.vip, self.real)

    def judge(self, reason: str, asked: float = 0.0) -> bool:
        """Take one result ("" is well), asked for at ``asked``, and say whether it turns the state."""
        check = self.config.check
        assert check is not None
        if (reason == "") == self.up:
            self.streak = 0
            return False
        self.streak += 1
        if self.streak == 1:
            self.since = asked
        if self.streak < (check.fall if self.up else check.rise):
            return False
        self.up, self.streak = not self.up, 0
        return True


async def ask(target: Target) -> str:
    """One check; "" or why it failed."""
    check = target.config.check
    assert check is not None
    network = target.config.network
    family = socket.AF_INET6 if network.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, _SO_MARK, checks.mark(target.backend))
        address = (str(network.network_address), check.port or target.config.port)
        try:
            async with asyncio.timeout(check.timeout_seconds):
                await asyncio.get_running_loop().sock_connect(one, address)
                return await _ask_http(one, check, address[0]) if check.kind == "http" else ""
        except TimeoutError:
            return f"no answer within {check.timeout_seconds} s"
        except OSError as error:
            return os.strerror(error.errno).lower() if error.errno else str(error)


async def _ask_http(one: socket.socket, check: Check, address: str) -> str:
    loop = asyncio.get_running_loop()
    host = check.host or (f"[{address}]" if ":" in address else address)
    await loop.sock_sendall(
        one, f"GET {check.path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n" not in head and len(head) < _STATUS_BYTES:
        part = await loop.sock_recv(one, _STATUS_BYTES)
        if not part:
            return "closed without an answer"
        head += part
    words = head.split(b"\r\n")[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return "not an HTTP answer"
    return "" if int(words[1]) < 400 else f"HTTP status {int(words[1])}"


class Watch:
    """The checks of one host. Contract of ``report``: quick, raises nothing."""

    def __init__(self, config: Config, place: Path, report: Callable[[Transition], None]) -> None:
        self._config, self._place, self._report = config, place, report
        self._targets: dict[str, Target] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._seen: tuple[str, dict[str, object]] = ("", {})

    async def run(self) -> None:
        """Until cancelled."""
        file = ledger_file(self._config, self._place)
        lock, changes, changed = _alone(file.with_suffix(".watch")), files.Watch(file.parent), asyncio.Event()
        if changes.fd >= 0:
            asyncio.get_running_loop().add_reader(changes.fd, changed.set)
        try:
            while True:
                self._follow()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), _LOOK_SECONDS)
                changes.forget()
                changed.clear()
        finally:
            if changes.fd >= 0:
                asyncio.get_running_loop().remove_reader(changes.fd)
            changes.close()
            for task in self._tasks:
                task.cancel()
            os.close(lock)

    def _follow(self) -> None:
        """Begin anew if the configuration in force is another than before."""
        stamp = self._stamp()
        if stamp == self._seen[0]:
            return
        if not stamp:
            self._seen = ("", {})
            self._begin([])
            return
        with State.open(self._config, self._place) as state:
            if state.ledger.applied == self._seen[1]:
                self._seen = (stamp, self._seen[1])
                return
            if any(vip.check for vip in state.applied.vips.values()):
                checks.attach(state)
            self._seen = (stamp, state.ledger.applied)
            fresh = [
                Target(name, vip, real.address, state.ledger.backend(name, real.address),
                       not state.is_down(name, real.address))
                for name, vip in state.applied.vips.items() if vip.check for real in vip.reals
            ]  # fmt: skip
            gone = set(state.ledger.down) - {each.name for each in fresh}
            if gone:  # their VIPs are checked no more
                state.set_down(each.name for each in fresh if not each.up)
        self._begin(fresh)

    def _stamp(self) -> str:
        """Another text when the configuration may be another; "" where there is no balancer."""
        try:
            return str(ledger_file(self._config, self._place).stat().st_mtime_ns) * self._place.exists()
        except FileNotFoundError:
            return ""

    def _begin(self, fresh: list[Target]) -> None:
        """Check these, and no others. One that was checked before goes on where it was."""
        for task in self._tasks:
            task.cancel()
        for each in fresh:
            known = self._targets.get(each.name)
            if known is not None and (known.config, known.up) == (each.config, each.up):
                each.streak, each.since = known.streak, known.since
        self._targets = {each.name: each for each in fresh}
        self._tasks = [asyncio.create_task(self._check(each)) for each in fresh]

    async def _check(self, target: Target) -> None:
        check = target.config.check
        assert check is not None
        while True:
            begun = time.monotonic()
            reason = await ask(target)
            if target.judge(reason, begun):
                self._turn(target, reason or "answers")
            await asyncio.sleep(max(0.0, begun + check.interval_seconds - time.monotonic()))

    def _turn(self, target: Target, reason: str) -> None:
        with State.open(self._config, self._place) as state:
            down = set(state.ledger.down) - {target.name}
            took = time.monotonic() - target.since
            row = {"event": "health", "vip": target.vip, "real": target.real, "reason": reason}
            state.journal.add(row | {"state": "up" if target.up else "down", "duration_us": int(took * 1e6)})
            state.set_down(down if target.up else down | {target.name})
        self._report(Transition(time.time(), target.vip, target.real, target.up, reason, round(took, 3)))


def _alone(file: Path) -> int:
    """One process checks at a time. Raises :class:`BpfleetError` when another does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise BpfleetError("another process checks these reals already: the collector does") from None
    return lock


def run(config: Config, place: Path, report: Callable[[Transition], None]) -> None:
    """Check until interrupted."""
    asyncio.run(Watch(config, place, report).run())
