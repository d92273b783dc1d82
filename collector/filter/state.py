"""What the filter of a host remembers between processes: numbers of rules and sets, and the document in
force."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct, field

from collector.filter.language import Document
from collector.filter.tables import Region
from schemas.errors import BpfleetError, UsageError


class Standing(Struct, frozen=True):
    """A rule as it was last in force: for what is told of its changes."""

    mode: str
    action: str
    content: str
    author: str
    digest: str
    ends: int  # µs since 1970
    held: str = ""  # why it is in shadow though it is wanted enforced


class State(Struct):
    """Slots and bits stay with their owner as long as it lives, so that counters and tables keep their
    meaning."""

    document: Document = field(default_factory=Document)
    slots: dict[str, int] = field(default_factory=dict)  # rule → slot of its counters
    sets: dict[str, int] = field(default_factory=dict)  # address set → bit
    interfaces: list[str] = field(default_factory=list)
    regions: tuple[Region, Region] = ((0, 0), (0, 0))  # spans of the address tables in force
    made_by: str = ""  # version of the program that the maps are of
    fleet: bool = False  # desired state owns the filter, and `document` holds no sets; else local commands do
    since: dict[str, Standing] = field(default_factory=dict)  # rules of desired state, as last told of

    @classmethod
    def read(cls, file: Path) -> "State":
        """From ``file``; a new one if there is none. Raises :class:`BpfleetError` if it is damaged."""
        try:
            return msgspec.json.decode(file.read_bytes(), type=cls) if file.exists() else cls()
        except (OSError, msgspec.DecodeError) as error:
            raise BpfleetError(f"{file} is damaged: {error}; remove it and apply the rules again") from None

    def write(self, file: Path) -> None:
        """Atomically."""
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(self))
        partial.replace(file)

    def number_rules(self, names: Sequence[str], slots: Sequence[int], too_many: str) -> dict[str, int]:
        """A slot for each rule, the first of ``slots`` first; one that was there keeps its own."""
        known = {name: slot for name, slot in self.slots.items() if slot in slots}
        return _number(names, known, slots, too_many)

    def number_sets(self, names: Sequence[str], most: int) -> dict[str, int]:
        """A bit for each address set; bit 0 is the allow-list's."""
        return _number(
            names, self.sets, range(1, most + 1), f"more than {most} address sets are used; join some"
        )

    def settle(
        self, document: Document, sets: dict[str, int], slots: dict[str, int], regions: tuple[Region, Region]
    ) -> None:
        """All of that is in force now."""
        self.document, self.sets, self.slots, self.regions = document, sets, slots, regions


def _number(
    names: Sequence[str], known: dict[str, int], all_numbers: Sequence[int], too_many: str
) -> dict[str, int]:
    """Numbers that others still hold are not given again, even if their holder goes with this change."""
    if len(names) > len(all_numbers):
        raise UsageError(too_many)
    taken = set(known.values())
    free = iter(
        [n for n in all_numbers if n not in taken] + sorted(taken - {known.get(n) for n in names} - {None})
    )
    return {name: known[name] if name in known else next(free) for name in names}
