"""The filter of one host: a document of rules into the kernel, and what the kernel counted.

    with Filter(directory, interfaces=["eth0"]) as host:
        host.apply(document)                 # the whole desired state; refused whole, with the reason
        host.counts()                        # exact packets and bytes, by rule and verdict

Maps, programs and attachments are pinned: they stay in force, times to live included, when the process is
gone, and another :class:`Filter` on the same directory and pins picks them up.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from collector import xdp, xdp_chain
from collector.bpf_map import Map, possible_cpus
from collector.filter import figures, program, sets
from collector.filter.beside import FOLLOWING, Beside
from collector.filter.connections import watch
from collector.filter.figures import Count, Top
from collector.filter.language import Document, Rule, Test, action, bound, check
from collector.filter.layout import (
    FOLLOWED,
    LIMITS,
    MAX_RULES,
    MAX_SETS,
    TABLE,
    WINDOW_MS,
    Control,
    window_budget,
)  # fmt: skip
from collector.filter.program import NEXT, ORDER, Expressed, Program
from collector.filter.sets import Built, Prefixes, Table, build4, build6
from collector.filter.skeleton import MapShape, skeleton
from collector.filter.state import State
from collector.filter.table import RuleTable
from collector.filter.tables import FAMILIES, AddressTables
from collector.filter.ticks import ticks
from schemas.errors import BpfleetError, UsageError

PASSED_BUDGET = 1000  # samples of passed traffic per second
CACHE = "compiled"
CONNECTIONS = "connections"  # the pin of what follows them
ADDRESS_MAPS = {"filter_config", "filter_hints6"} | {
    f"filter_{what}{family}" for what in ("chunks", "spans") for family in FAMILIES
}
ROOM = 2.5  # of a map of spans: a table beside the one in force, and both may grow


@dataclass(frozen=True)
class Applied:
    """What an apply did."""

    programs: int  # loaded anew
    seconds: float
    trouble: Mapping[str, str] = field(default_factory=dict)  # interfaces it could not be put on, and why


class Filter:
    """See the module. Not for two threads at once."""

    def __init__(
        self, directory: Path, interfaces: Sequence[str] = (), *, labels: Mapping[str, str] | None = None,
        pins: Path | None = None, mode: str = "auto", balancer: Path | None = None,
    ) -> None:  # fmt: skip
        """``directory`` keeps state and compiled code; ``pins`` is in bpffs (None: nothing outlives us).

        ``balancer``: where the pins of this host's balancer are, if it has one: of connections to its VIPs.
        """
        self.directory = directory
        self.interfaces = list(interfaces)
        self.labels = dict(labels or {})
        self.mode = mode
        self.pins = pins
        self.skeleton = skeleton(directory / CACHE)
        if pins:  # compiling takes a while: the folder, empty until now, may have been tidied away
            pins.mkdir(exist_ok=True)
        self.state = State.read(directory / "state.json") if pins else State()
        if pins and self.state.made_by != self.skeleton.fingerprint:
            self._begin_anew(pins)
        apart = (ORDER, NEXT, "lb_", *FOLLOWING)
        shared = [each for each in self.skeleton.maps if not each.name.startswith(apart)]
        self.maps = {each.name: self._map(each) for each in shared}
        self.tables = AddressTables(self.maps, self.state.regions)
        self.table = RuleTable(self.maps)
        self.programs: dict[tuple[object, ...], Program] = {}
        self.running: dict[str, Program] = {}  # by interface
        self.attached: dict[str, xdp.Attached] = {}
        self._tests: dict[str, Test] = {}
        self._allow: tuple[list[str], Prefixes] = [], sets.parse([], "allow")
        self._built = Built(build4, {}), Built(build6, {})
        self._controlled: dict[int, Rule] = {}  # rules whose part in the kernel we wrote, by slot
        self._watcher: int | None = None
        self.beside = Beside(balancer)
        self.followed = pins is not None and (pins / CONNECTIONS).exists()

    def _begin_anew(self, pins: Path) -> None:
        """Maps of another version mean something else: the old program keeps them until it is replaced."""
        for place in pins.glob("*"):
            place.unlink()
        self.state.slots, self.state.sets, self.state.regions = {}, {}, State().regions

    def _map(self, shape: MapShape, entries: int = 0) -> Map:
        """The pinned map if it fits, else a new one, pinned."""
        if self.pins is None:
            return shape.create(entries)
        place = self.pins / shape.name
        if place.exists() and not entries:
            found = Map.pinned(place)
            if (found.type, found.key_size, found.value_size) == (shape.kind, shape.key, shape.value):
                return found
            found.close()
        place.unlink(missing_ok=True)
        made = shape.create(entries)
        made.pin(place)
        return made

    # --- applying ---

    def apply(
        self, document: Document, lists: Mapping[str, Prefixes] | None = None, *,
        samples: int = PASSED_BUDGET, strict: bool = True,
    ) -> Applied:  # fmt: skip
        """Make the kernel do what the document says. Raises :class:`UsageError`, :class:`BpfleetError`; then
        nothing has changed.

        ``lists``: sets that are parsed already. ``samples``: of passed traffic per second. Not ``strict``: an
        interface that does not take the program is told of and does not keep the others from it.
        """
        begin = time.monotonic()
        tests = self._check(document, [*(lists or {}), *document.sets])
        names = {name for each in tests.values() for name in each.sets()}
        numbers = self.state.number_sets(sorted(names), MAX_SETS)
        slots = self._slots(document)
        tables = self._build(document, numbers, lists or {})
        grown = not self.tables.fit(tables)
        if grown:
            self._grow(tables)
        asking = any(each.asks_state for each in tests.values())
        self._follow_vips(asking)
        wanted, fresh = self._programs(document, tests, numbers, slots, grown)
        if not self.followed and asking:
            self.follow()
        config = self.tables.write(tables, bool(document.allow))
        fields = {slots[name]: each.fields for name, each in tests.items() if each.fields is not None}
        table = self.table.write(fields, numbers)
        self._control(document, slots)
        limits = any(action(each)[1] for each in document.rules)
        window = max(1, ticks().hz * WINDOW_MS // 1000)
        flags = config.flags | LIMITS * limits | FOLLOWED * self.followed
        budget = window_budget(samples, possible_cpus())
        self.tables.put(replace(config, flags=flags, window=window, table=table, budget=budget))
        trouble = self._attach(wanted, strict)
        self._forget(slots, set(wanted.values()))
        self.state.interfaces, self.state.made_by = self.interfaces, self.skeleton.fingerprint
        self.state.settle(document, numbers, slots, self.tables.regions)
        if self.pins:
            self.state.write(self.directory / "state.json")
        return Applied(fresh, time.monotonic() - begin, trouble)

    def _check(self, document: Document, names: Sequence[str]) -> dict[str, Test]:
        """What each rule asks; expressions that were asked before are not compiled again."""
        found: dict[str, Test] = {}
        known, self._tests = self._tests, {}
        for rule in document.rules:
            if rule.id in found:
                raise UsageError(f"rule {rule.id} is there twice; give each rule its own id")
            test = known.get(rule.content)
            if (
                test is None
                or not test.sets() <= set(names)
                or (test.fields is None) != (rule.fields is None)
            ):
                test = check(rule, names)
            found[rule.id] = self._tests[rule.content] = test
        return found

    def _slots(self, document: Document) -> dict[str, int]:
        """A slot for each rule's counters; those of the table kind have their own."""
        table = [each.id for each in document.rules if each.fields is not None]
        passing = [each.id for each in document.rules if each.fields is not None and each.action == "pass"]
        others = [name for name in table if name not in set(passing)]
        expressed = [each.id for each in document.rules if each.fields is None]
        first = self.state.number_rules(
            passing, range(TABLE, MAX_RULES), TOO_MANY_TABLE
        )  # they are asked first
        left = [slot for slot in range(MAX_RULES - 1, TABLE - 1, -1) if slot not in first.values()]
        return (
            first
            | self.state.number_rules(others, left, TOO_MANY_TABLE)
            | self.state.number_rules(expressed, range(TABLE), f"more than {TABLE} rules; use address sets")
        )

    def _build(
        self, document: Document, numbers: Mapping[str, int], lists: Mapping[str, Prefixes]
    ) -> tuple[Table, Table]:
        """The tables of both families; those of the last call where all their sets are the same objects."""
        if document.allow != self._allow[0]:
            self._allow = document.allow, sets.parse(document.allow, "allow")
        parsed = {0: self._allow[1]} | {
            number: lists[name] if name in lists else sets.parse(document.sets[name], f"@{name}")
            for name, number in numbers.items()
        }
        four, six = self._built
        self._built = (
            four.of({bit: each.four for bit, each in parsed.items()}),
            six.of({bit: each.six for bit, each in parsed.items()}),
        )
        return self._built[0].table, self._built[1].table

    def _grow(self, tables: tuple[Table, Table]) -> None:
        """Fresh address maps, large enough for the tables twice and to come; the next program uses them."""
        rooms = {f"filter_spans{suffix}": int(ROOM * len(each.spans))
                 for suffix, each in zip(FAMILIES, tables, strict=True)}  # fmt: skip
        for shape in self.skeleton.maps:
            if shape.name in ADDRESS_MAPS:
                self.maps[shape.name].close()
                entries = max(shape.entries, rooms.get(shape.name, 0))
                self.maps[shape.name] = self._map(shape, entries)
        self.tables = AddressTables(self.maps)

    def _follow_vips(self, asking: bool) -> None:
        """Follow connections to VIPs of a balancer on this host from the next program on, or no longer."""
        shapes = {each.name: each for each in self.skeleton.maps}
        if not self.beside.ask(asking, lambda name: self._map(shapes[name])) and self.pins:
            for name in FOLLOWING:
                (self.pins / name).unlink(missing_ok=True)

    def _programs(
        self, document: Document, tests: Mapping[str, Test], numbers: Mapping[str, int],
        slots: Mapping[str, int], renewed: bool,
    ) -> tuple[dict[str, Program], int]:  # fmt: skip
        """The program of each interface, loaded if there is none yet, and how many were."""
        wanted, fresh = {}, 0
        if renewed:
            self.programs = {("old", *key): each for key, each in self.programs.items()}
        for interface in self.interfaces or [""]:
            parts = [
                (slots[rule.id], expression, bound(expression, numbers))
                for rule in document.rules
                if (expression := tests[rule.id].expression) and rule.scope.covers(self.labels, interface)
            ]
            key: tuple[object, ...] = tuple((slot, each.text, flags) for slot, each, flags in parts)
            key = (*self.beside.numbers, *key)
            if self.pins:  # what follows it differs by interface
                key = (interface, *key)
            if key not in self.programs:
                coded = [Expressed(slot, each.instructions, flags) for slot, each, flags in parts]
                self.programs[key] = program.load(self.skeleton, self.maps, coded, self.beside.maps)
                fresh += 1
            wanted[interface] = self.programs[key]
        return wanted, fresh

    def _control(self, document: Document, slots: Mapping[str, int]) -> None:
        for rule in document.rules:
            slot = slots[rule.id]
            if self._controlled.get(slot) != rule:
                self.maps["filter_rules"].update(slot.to_bytes(4, "little"), _control(rule).pack())
                self._controlled[slot] = rule

    def _attach(self, wanted: Mapping[str, Program], strict: bool) -> dict[str, str]:
        """Where pinned, in one pass with what follows on the interface: see collector.xdp_chain."""
        trouble = {}
        for interface, each in wanted.items():
            if not interface:
                continue
            try:
                self._put_on(interface, each)
            except BpfleetError as error:
                if strict:
                    raise
                trouble[interface] = str(error)
        if self.pins:
            for interface in set(xdp_chain.interfaces(self.pins.name)) - wanted.keys():
                xdp_chain.take_first(self.pins.name, interface)
        self.running = {name: each for name, each in wanted.items() if name not in trouble}
        return trouble

    def _put_on(self, interface: str, each: Program) -> None:
        if self.pins:
            xdp_chain.put_first(self.pins.name, each.fd, interface, each.next, mode=self.mode)
        elif interface in self.attached:
            self.attached[interface].replace(each.fd)
        else:
            self.attached[interface] = xdp.attach(each.fd, interface, mode=self.mode)

    def _forget(self, slots: Mapping[str, int], running: set[Program]) -> None:
        """Rules that are gone: no effect, counters at zero; programs that no interface has."""
        taken = set(slots.values())
        for name, slot in self.state.slots.items():
            if slots.get(name) != slot:
                place = slot.to_bytes(4, "little")
                if slot not in taken:
                    self._controlled.pop(slot, None)
                    self.maps["filter_rules"].update(place, Control().pack())
                for table in ("filter_counters", "filter_samplers"):
                    self.maps[table].update(place, bytes(self.maps[table].element_size))
        for key, each in list(self.programs.items()):
            if each not in running:
                self.programs.pop(key).close()

    def trial(self, rule: Rule, names: Sequence[str]) -> str:
        """Why the kernel does not take a program of this rule alone; empty: it does."""
        try:
            test = check(rule, names)
            if test.expression is None:
                return ""
            flags = bound(test.expression, dict.fromkeys(names, 1))
            part = Expressed(0, test.expression.instructions, flags)
            program.load(self.skeleton, self.maps, [part], self.beside.maps).close()
        except BpfleetError as error:
            return str(error)
        return ""

    def shadow(self, rule: Rule) -> None:
        """Have a rule count only, at once; the next apply says what holds."""
        self._controlled.pop(self.state.slots[rule.id], None)
        place = self.state.slots[rule.id].to_bytes(4, "little")
        self.maps["filter_rules"].update(place, replace(_control(rule), mode="shadow").pack())

    def follow(self) -> None:
        """Follow this host's connections from now on; takes a second or two, the first time."""
        pin = self.pins / CONNECTIONS if self.pins else None
        self._watcher, self.followed = watch(self.maps["filter_connections"], pin), True

    def balancer_changed(self) -> bool:
        """Whether a rule asks for connections of a balancer that came, went or was made anew since."""
        return any(each.asks_state for each in self._tests.values()) and self.beside.changed()

    def use_followed(self) -> None:
        """Have the program ask whether what it drops is of a connection."""
        config = self.tables.config()
        self.tables.put(replace(config, flags=config.flags | FOLLOWED))

    # --- seeing ---

    def counts(self) -> list[Count]:
        """Exact counters of all rules in force, and of what passed."""
        return figures.counts(self.maps, self.state.slots)

    def allowed(self) -> int:
        """Frames that a rule matched and the allow-list let through."""
        return int(figures.scratch(self.maps)["allowed"].sum())

    def top(self) -> list[Top]:
        """Heavy hitters since the last call, estimated; the most packets first."""
        return figures.top(self.maps)

    # --- ending ---

    def detach(self) -> None:
        """Take the filter off all interfaces and remove every pin."""
        for each in self.attached.values():
            each.detach()
        self.attached = {}
        if self.pins:
            for interface in xdp_chain.interfaces(self.pins.name):
                xdp_chain.take_first(self.pins.name, interface)
        if self.pins and self.pins.is_dir():
            for place in self.pins.iterdir():
                place.unlink()
            self.pins.rmdir()

    def close(self) -> None:
        """Give all descriptors back; what is pinned goes on."""
        for attached in self.attached.values():
            attached.close()
        for each in self.programs.values():
            each.close()
        if self._watcher is not None:
            os.close(self._watcher)
            self._watcher = None
        for table in self.maps.values():
            table.close()
        self.beside.close()
        self.attached, self.programs, self.maps = {}, {}, {}

    def __enter__(self) -> "Filter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


TOO_MANY_TABLE = "more than 64 rules of fields; write some as expressions"


def _control(rule: Rule) -> Control:
    kind, limit = action(rule)
    return Control(
        kind, rule.mode, ticks().at(rule.expires), window_budget(rule.sample, possible_cpus()),
        limit.packets_per_second if limit else 0, limit.prefix if limit else 32,
    )  # fmt: skip
