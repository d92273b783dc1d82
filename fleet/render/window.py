"""A span of time, and the interval that a panel of so many points gives it."""

import re
import time
from dataclasses import dataclass

from schemas.errors import UsageError

POINTS = 300  # of a panel, as many as one draws
UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
# Interval steps that people can read off an axis, in seconds.
STEPS = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1_200, 1_800, 3_600, 7_200, 10_800, 21_600,
         43_200, 86_400)  # fmt: skip


@dataclass(frozen=True)
class Window:
    """From ``begin`` to ``end`` (seconds since 1970), in steps of ``interval`` seconds."""

    begin: float
    end: float
    interval: int = 1

    @classmethod
    def of(cls, begin: float, end: float, least: str = "") -> "Window":
        """The window with the interval that suits it, no shorter than ``least`` (like ``1m``)."""
        wanted = max((end - begin) / POINTS, seconds(least) if least else 1)
        step = next((each for each in STEPS if each >= wanted), STEPS[-1])
        return cls(begin, end, step)

    def at_least(self, least: str) -> "Window":
        """The same span for a panel that sets its own least interval."""
        return Window.of(self.begin, self.end, least)


def seconds(text: str) -> int:
    """``90s``, ``15m``, ``6h``, ``7d``, ``2w`` in seconds. Raises :class:`UsageError`."""
    found = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if not found or not int(found[1]):
        raise UsageError(f"`{text}` is no length of time; write it like 15m, 6h or 7d")
    return int(found[1]) * UNITS[found[2]]


def since(text: str, until: float | None = None) -> Window:
    """The window of that length that ends now, or at ``until``."""
    end = time.time() if until is None else until
    return Window.of(end - seconds(text), end)
