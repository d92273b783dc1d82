"""What a returning collector must know: which number each VIP and backend has, and what was applied.

The rings in the kernel hold backend numbers; this file, written before the maps, says whose they are. Numbers
that were given up rest until no remembered flow can still name them.
"""

import os
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from schemas.errors import BpfleetError, UsageError
from schemas.lb import Balancer, parse


def backend_name(vip: str, address: str) -> str:
    """How the ledger calls a real of a VIP."""
    return f"{vip} {address}"


class Numbers(Struct):
    """Names and their numbers, from 1 up; ``rested``: when (wall clock) a given-up one can be had again.

    ``former``: whose they were. Who comes back gets his own back: what is remembered of him is still right.
    """

    taken: dict[str, int] = {}
    rested: dict[int, float] = {}
    former: dict[int, str] = {}
    top: int = 0

    def give(self, name: str, limit: int, now: float) -> int:
        """The number of ``name``, new if need be: never used ones first. Raises :class:`BpfleetError`."""
        if name in self.taken:
            return self.taken[name]
        own = next((number for number, each in self.former.items() if each == name), 0)
        if own:
            number = own
            del self.rested[number]
        elif self.top < limit:
            self.top += 1
            number = self.top
        else:
            number = min(self.rested, key=lambda each: self.rested[each], default=0)
            if not number or self.rested[number] > now:
                raise BpfleetError(f"no number is free for {name}; wait until former flows are over")
            del self.rested[number]
        self.former.pop(number, None)
        self.taken[name] = number
        return number

    def take_back(self, name: str, free_at: float) -> None:
        """``name`` is gone; its number rests until ``free_at``."""
        number = self.taken.pop(name)
        self.rested[number], self.former[number] = free_at, name

    def names(self) -> dict[int, str]:
        """number → name, those that rest included."""
        return self.former | {number: name for name, number in self.taken.items()}

    def reused(self, before: "Numbers") -> list[int]:
        """Numbers that have another name than ``before``, when they rested."""
        now = self.names()
        return [number for number, name in before.former.items() if now.get(number) != name]


class Ledger(Struct):
    """The state file. ``rings`` holds a digest of what each VIP's ring was computed from."""

    program: str = ""
    applied: dict[str, Any] = field(default_factory=dict)  # the configuration, as model.dump writes it
    vips: Numbers = field(default_factory=Numbers)
    backends: Numbers = field(default_factory=Numbers)
    rings: dict[str, str] = {}
    down: list[str] = []  # backend_name of reals whose checks fail
    documents: dict[str, Any] = {}  # desired state in force: id → spec; empty where commands rule
    checks: str = ""  # digest of the program of health checks

    def backend(self, vip: str, address: str) -> int:
        """The number of a real of a VIP."""
        return self.backends.taken[backend_name(vip, address)]

    def names(self) -> dict[int, tuple[str, str]]:
        """backend number → (VIP, address of the real)."""
        pairs = ((number, name.rpartition(" ")) for name, number in self.backends.taken.items())
        return {number: (parts[0], parts[2]) for number, parts in pairs}

    def assign(self, balancer: Balancer, now: float) -> None:
        """Give every VIP and every real of ``balancer`` a number."""
        for name, vip in balancer.vips.items():
            self.vips.give(name, balancer.limits.vips, now)
            for real in vip.reals:
                self.backends.give(backend_name(name, real.address), balancer.limits.backends, now)

    def gone(self, balancer: Balancer) -> tuple[list[str], list[str]]:
        """Names of VIPs and of backends that ``balancer`` has no more."""
        kept = {backend_name(name, real.address) for name, vip in balancer.vips.items() for real in vip.reals}
        vips = [name for name in self.vips.taken if name not in balancer.vips]
        return vips, [name for name in self.backends.taken if name not in kept]


def read(file: Path) -> Ledger:
    """The ledger in ``file``, an empty one if there is none."""
    try:
        return decode(file.read_bytes())
    except FileNotFoundError:
        return Ledger()
    except (OSError, ValueError, UsageError) as error:
        raise BpfleetError(f"cannot read {file}: {error}; `bpfleet lb remove` starts afresh") from None


def decode(content: bytes) -> Ledger:
    """What :func:`encode` wrote. Raises ValueError or :class:`UsageError`."""
    found = msgspec.json.decode(content, type=Ledger)
    parse(found.applied, "its configuration")
    return found


def encode(ledger: Ledger) -> bytes:
    """The content of the state file."""
    return msgspec.json.encode(ledger)


def write(ledger: Ledger, file: Path) -> None:
    """Replace the file at once; it is on disk when this returns."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f"{file.name}.new")
        with fresh.open("wb") as out:
            out.write(encode(ledger))
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(file)
    except OSError as error:
        raise BpfleetError(
            f"cannot write {file}: {error.strerror}; set state_dir to a writable place"
        ) from None
