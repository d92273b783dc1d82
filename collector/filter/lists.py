"""Address sets of desired state, parsed: of a set that is known, no more than what changed."""

from collections import Counter
from collections.abc import Mapping
from itertools import chain

from collector.filter import sets
from collector.filter.sets import Prefixes

Parts = Mapping[str, list[str]]  # prefixes by a digest of them
FEW = 0.25  # of a set's prefixes: more that changed are not counted one by one


class Lists:
    """Remembers the sets of the last call: what is the same is the same object again."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Parts, Prefixes]] = {}

    def parsed(self, wanted: Mapping[str, Parts]) -> dict[str, Prefixes]:
        """Each set, whose prefixes are given in parts."""
        former = self._known
        whole = {name: _parsed(f"@{name}", parts, former.get(name)) for name, parts in wanted.items()}
        self._known = {name: (wanted[name], each) for name, each in whole.items()}
        return whole


def _parsed(where: str, parts: Parts, former: tuple[Parts, Prefixes] | None) -> Prefixes:
    known, whole = former or ({}, None)
    fresh = [parts[each] for each in parts.keys() - known.keys()]
    gone = [known[each] for each in known.keys() - parts.keys()]
    if whole is None or sum(map(len, fresh + gone)) > FEW * sum(map(len, parts.values())):
        return sets.parse([*chain.from_iterable(parts.values())], where)
    now, before = Counter(chain.from_iterable(fresh)), Counter(chain.from_iterable(gone))
    more, fewer = (now - before).elements(), (before - now).elements()
    return sets.changed(whole, sets.parse([*more], where), sets.parse([*fewer], where))
