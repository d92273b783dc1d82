"""What happens to rules, sets and lists, as rows of `filter_event`: what stood compared with what stands."""

import time
from collections.abc import Iterable, Mapping

from collector.clock import now_us
from collector.companion import Row
from collector.filter.figures import Figures
from collector.filter.state import Standing
from collector.filter.wanted import Wanted

Stands = Mapping[str, Standing]
ROUNDED_US = 1_500_000
LISTS = ("set:", "allow")


def standing(wanted: Wanted, held: Mapping[str, str]) -> dict[str, Standing]:
    """What stands once ``wanted`` is in force; ``held``: rules kept in shadow, and why."""
    found = {}
    for rule in wanted.rules:
        document = wanted.documents[rule.id]
        found[rule.id] = Standing(
            rule.mode, rule.action, rule.content, rule.author, document.digest, rule.ends,
            held.get(rule.id, ""),
        )  # fmt: skip
    for name, parts in wanted.sets.items():
        count = sum(map(len, parts.values()))
        found[f"set:{name}"] = Standing("none", "", f"{count} prefixes", "", " ".join(sorted(parts)), 0)
    if wanted.allow:
        found["allow"] = Standing("none", "", " ".join(sorted(wanted.allow))[:500], "", "", 0)
    return found


class Teller:
    """Makes the rows of one change. ``figures``: what rules had counted just before it."""

    def __init__(
        self, figures: Mapping[str, Figures], interfaces: Iterable[str], duration_us: int = 0
    ) -> None:
        self._figures, self._interfaces = figures, ",".join(interfaces)
        self._duration_us = duration_us

    def changes(self, before: Stands, after: Stands) -> list[Row]:
        """Everything that differs."""
        rows = [self.row(name, *self._ended(name, each), each) for name, each in before.items()
                if name not in after]  # fmt: skip
        for name, each in after.items():
            for event in _events(name, before.get(name), each):
                rows.append(self.row(name, event, each.held if event == "held" else "", each))
        return rows

    def _ended(self, name: str, each: Standing) -> tuple[str, str]:
        expired = each.ends and each.ends <= time.time_ns() // 1000 + 100_000
        return ("expired", "its time to live is over") if expired else ("removed", "")

    def row(
        self, name: str, event: str, reason: str, each: Standing, *, source: str = "desired",
        samples: int = 0, legitimate: float = 0.0,
    ) -> Row:  # fmt: skip
        """One row."""
        counted = self._figures.get(name, Figures((0, 0, 0), (0, 0, 0), 0))
        gone = event in ("expired", "removed", "refused")
        return {
            "ts": now_us(), "event": event, "rule": name, "action": each.action,
            "mode": "none" if gone else each.mode, "match": each.content[:4000], "author": each.author,
            "source": source, "digest": each.digest[:200], "reason": reason[:1000], "expires": each.ends,
            "interfaces": self._interfaces, "dropped": counted.packets[1], "shadowed": counted.packets[2],
            "passed": counted.packets[0], "dropped_bytes": counted.bytes[1], "samples": samples,
            "legitimate": legitimate, "duration_us": self._duration_us,
        }  # fmt: skip


def _events(name: str, before: Standing | None, after: Standing) -> list[str]:
    if before == after:
        return []
    if name.startswith(LISTS):
        return ["changed"] if before is None or before.digest != after.digest or \
            before.content != after.content else []  # fmt: skip
    events = []
    if before is None:
        events.append("added")
    elif (before.content, before.action) != (after.content, after.action) or _moved(before, after):
        events.append("changed")
    if after.held and (before is None or before.held != after.held):
        events.append("held")
    elif before is None or before.mode != after.mode:
        if after.mode == "enforce":
            events.append("enforced")
        elif before is not None:
            events.append("shadowed")
    return events


def _moved(before: Standing, after: Standing) -> bool:
    """Whether the end is another; commands that keep it round it to seconds."""
    return abs(before.ends - after.ends) > ROUNDED_US


def refused(name: str, digest: str, author: str, reason: str) -> Row:
    """A document that this host could not take."""
    each = Standing("none", "", "", author, digest, 0)
    return Teller({}, ()).row(name, "refused", reason, each)
