"""Address sets of desired state, parsed: in parts, of which those that did not change are not read again."""

from collections.abc import Mapping

from collector.filter import sets
from collector.filter.sets import Prefixes


class Lists:
    """Remembers the parts of the last call."""

    def __init__(self) -> None:
        self._parts: dict[str, Prefixes] = {}
        self._whole: dict[tuple[str, ...], Prefixes] = {}

    def parsed(self, wanted: Mapping[str, Mapping[str, list[str]]]) -> dict[str, Prefixes]:
        """Each set, of whose parts (by a digest of their content) the prefixes are given."""
        known, self._parts = self._parts, {}
        for name, parts in wanted.items():
            for digest, prefixes in parts.items():
                self._parts[digest] = known.get(digest) or sets.parse(prefixes, f"@{name}")
        former, self._whole = self._whole, {}
        result = {}
        for name, parts in wanted.items():
            key = tuple(sorted(parts))
            whole = former.get(key) or sets.join([self._parts[each] for each in key])
            result[name] = self._whole[key] = whole
        return result
