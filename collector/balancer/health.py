"""Health checks of reals: who answers stays in the ring, who fails leaves it, by rise and fall counts.

``run(config, place, report)`` checks every VIP that has a ``check`` until it is cancelled, applies what
changes and hands each :class:`Transition` to ``report``. It follows the configuration as others change it.
When all reals of a VIP fail, none is taken out: then the checks, not the reals, are doubted.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from collector.balancer import checks, ledger
from collector.balancer.state import State
from schemas.config import Config
from schemas.lb import Check, Vip

_SO_MARK = 36
_LOOK_SECONDS = 0.5  # how often a changed configuration is looked for
_STATUS_BYTES = 4096


@dataclass(frozen=True)
class Transition:
    """A real went up or down; ``ts`` is wall clock in seconds."""

    ts: float
    vip: str
    real: str
    up: bool
    reason: str


@dataclass
class Target:
    """A real under check; ``streak`` counts results that speak against its present state."""

    vip: str
    config: Vip
    real: str
    backend: int
    up: bool
    streak: int = 0

    @property
    def name(self) -> str:
        """As the ledger calls it."""
        return ledger.backend_name(self.vip, self.real)

    def judge(self, reason: str) -> bool:
        """Take one result ("" is well) and say whether it turns the state."""
        check = self.config.check
        assert check is not None
        if (reason == "") == self.up:
            self.streak = 0
            return False
        self.streak += 1
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
        try:
            while True:
                self._follow()
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            for task in self._tasks:
                task.cancel()

    def _follow(self) -> None:
        """Begin anew if the configuration in force is another than before."""
        stamp = str(
            (Path(self._config.state_dir) / "balancer" / f"{self._place.name}.json").stat().st_mtime_ns
        )
        if stamp == self._seen[0]:
            return
        with State.open(self._config, self._place) as state:
            if state.ledger.applied == self._seen[1]:
                self._seen = (stamp, self._seen[1])
                return
            checks.attach(state.plane, state.applied.interfaces)
            self._seen = (stamp, state.ledger.applied)
            fresh = [
                Target(name, vip, real.address, state.ledger.backend(name, real.address),
                       not state.is_down(name, real.address))
                for name, vip in state.applied.vips.items() if vip.check for real in vip.reals
            ]  # fmt: skip
            gone = set(state.ledger.down) - {each.name for each in fresh}
            if gone:  # their VIPs are checked no more
                state.set_down(each.name for each in fresh if not each.up)
        for task in self._tasks:
            task.cancel()
        self._targets = {each.name: each for each in fresh}
        self._tasks = [asyncio.create_task(self._check(each)) for each in fresh]

    async def _check(self, target: Target) -> None:
        check = target.config.check
        assert check is not None
        while True:
            begun = time.monotonic()
            reason = await ask(target)
            if target.judge(reason):
                self._turn(target, reason)
            await asyncio.sleep(max(0.0, begun + check.interval_seconds - time.monotonic()))

    def _turn(self, target: Target, reason: str) -> None:
        with State.open(self._config, self._place) as state:
            down = set(state.ledger.down) - {target.name}
            state.set_down(down if target.up else down | {target.name})
        self._report(Transition(time.time(), target.vip, target.real, target.up, reason or "answers"))


def run(config: Config, place: Path, report: Callable[[Transition], None]) -> None:
    """Check until interrupted."""
    asyncio.run(Watch(config, place, report).run())
