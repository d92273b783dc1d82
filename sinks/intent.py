"""What a commit's metadata says: the batch that is about to be inserted, whoever may have to finish it.

An offset ``s`` is committed together with an intent: messages ``[s, end)`` are one batch; those in ``dead``
go to the dead letters and not into the table; the inserts named in ``alone`` go message by message, because
the server rejected them whole. Two owners that read the same intent do the same, whatever each would have
decided by itself. No metadata: nothing is open.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Brokers keep 4096 bytes (offset.metadata.max.bytes).
MAX_BYTES = 4000


class UnknownIntent(ValueError):
    """A commit's metadata that is not ours to read."""


@dataclass(frozen=True)
class Intent:
    """An open batch that starts at the committed offset."""

    end: int
    dead: Mapping[int, str] = field(default_factory=dict)  # offset → reason, of a closed set
    alone: frozenset[str] = frozenset()  # inserts (day and schema) that go message by message

    def write(self, start: int) -> str:
        """As metadata of a commit of ``start``."""
        tree: dict[str, Any] = {"end": self.end}
        if self.dead:
            reasons = sorted(set(self.dead.values()))
            tree["dead"] = {
                reason: _ranges(offset - start for offset, why in self.dead.items() if why == reason)
                for reason in reasons
            }
        if self.alone:
            tree["alone"] = sorted(self.alone)
        return json.dumps(tree, separators=(",", ":"))


def read(start: int, metadata: str | None) -> Intent | None:
    """The intent that a commit of ``start`` carries; None when nothing is open.

    Raises :class:`UnknownIntent` for metadata that another program wrote.
    """
    if not metadata:
        return None
    try:
        tree = json.loads(metadata)
        dead = {
            start + offset: str(reason)
            for reason, ranges in tree.get("dead", {}).items()
            for offset in _offsets(ranges)
        }
        intent = Intent(int(tree["end"]), dead, frozenset(tree.get("alone", ())))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UnknownIntent(f"commit metadata is not bpfleet's: {metadata[:80]!r}") from None
    return intent if intent.end > start else None


def _ranges(offsets: Iterable[int]) -> str:
    """``0, 1, 2, 7`` as ``0-2,7``."""
    spans: list[list[int]] = []
    for offset in sorted(offsets):
        if spans and offset == spans[-1][1] + 1:
            spans[-1][1] = offset
        else:
            spans.append([offset, offset])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)


def _offsets(ranges: str) -> Iterable[int]:
    for span in ranges.split(","):
        low, _, high = span.partition("-")
        yield from range(int(low), int(high or low) + 1)
