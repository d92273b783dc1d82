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
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from types import TracebackType

import numpy as np

from collector import xdp, xdp_chain
from collector.bpf_map import Map, possible_cpus
from collector.filter import program, sets
from collector.filter.connections import watch
from collector.filter.language import Document, Expression, action, check
from collector.filter.layout import (
    COUNTER,
    LIMITS,
    MAX_RULES,
    MAX_SETS,
    SCRATCH,
    TOP_KEY,
    TOP_KINDS,
    TOP_VALUE,
    VERDICTS,
    WINDOW_MS,
    Control,
    gaps,
    window_budget,
)  # fmt: skip
from collector.filter.program import ORDER, Expressed, Program
from collector.filter.skeleton import MapShape, skeleton
from collector.filter.state import State
from collector.filter.tables import AddressTables
from collector.filter.ticks import ticks
from schemas.errors import UsageError

PASSED_BUDGET = 1000  # samples of passed traffic per second
CACHE = "compiled"
ADDRESS_MAPS = ("filter_config", "filter_chunks", "filter_spans")


@dataclass(frozen=True)
class Applied:
    """What an apply did."""

    programs: int  # loaded anew
    seconds: float


@dataclass(frozen=True)
class Count:
    """Packets and bytes since the filter began; rule "" is what was let through without a rule deciding."""

    rule: str
    verdict: str
    packets: int
    bytes: int


@dataclass(frozen=True)
class Top:
    """A heavy hitter: what (`source`, `port` …), which, and how much, estimated from samples."""

    kind: str
    verdict: str
    item: str
    packets: int
    bytes: int


class Filter:
    """See the module. Not for two threads at once."""

    def __init__(
        self, directory: Path, interfaces: Sequence[str] = (), *, labels: Mapping[str, str] | None = None,
        pins: Path | None = None, mode: str = "auto",
    ) -> None:  # fmt: skip
        """``directory`` keeps state and compiled code; ``pins`` is in bpffs (None: nothing outlives us)."""
        self.directory = directory
        self.interfaces = list(interfaces)
        self.labels = dict(labels or {})
        self.mode = mode
        self.pins = pins
        self.skeleton = skeleton(directory / CACHE)
        self.state = State.read(directory / "state.json") if pins else State()
        self.maps = {each.name: self._map(each) for each in self.skeleton.maps if each.name != ORDER}
        self.tables = AddressTables(self.maps, self.state.region)
        self.programs: dict[tuple[object, ...], Program] = {}
        self.attached: dict[str, xdp.Attached] = {}
        self._expressions: dict[str, Expression] = {}
        self._watcher: int | None = None
        self._watched = False
        self._fill()

    def _map(self, shape: MapShape, entries: int = 0) -> Map:
        """The pinned map if it fits, else a new one, pinned."""
        if self.pins is None:
            return shape.create(entries)
        place = self.pins / shape.name
        if place.exists() and not entries:
            found = Map.pinned(place)
            same = (found.type, found.key_size, found.value_size) == (shape.kind, shape.key, shape.value)
            if same and (shape.name != "filter_next" or found.max_entries == shape.entries):
                return found
            found.close()
        place.unlink(missing_ok=True)
        made = shape.create(entries)
        made.pin(place)
        return made

    def _fill(self) -> None:
        table = gaps()
        numbers = np.arange(len(table), dtype="<u4")
        self.maps["filter_gaps"].update_many(numbers.tobytes(), table.astype("<u4").tobytes(), len(table))

    # --- applying ---

    def apply(self, document: Document) -> Applied:
        """Make the kernel do what the document says. Raises :class:`UsageError`, :class:`BpfleetError`; then
        nothing has changed."""
        begin = time.monotonic()
        expressions = self._check(document)
        numbers = self.state.number_sets(sorted(_used(document, expressions)), MAX_SETS)
        slots = self.state.number_rules([each.id for each in document.rules], MAX_RULES)
        tables = self._build(document, numbers)
        grown = self.tables.place(len(tables.spans)) is None
        if grown:
            self._grow(len(tables.spans))
        wanted, fresh = self._programs(document, expressions, numbers, slots, grown)
        half, flags = self.tables.write(tables, bool(document.allow))
        self._control(document, slots)
        window = max(1, ticks().hz * WINDOW_MS // 1000)
        limits = any(action(each)[1] for each in document.rules)
        flags |= LIMITS * limits
        self.tables.put(half, flags, window, window_budget(PASSED_BUDGET, possible_cpus()))
        if not self._watched and any(("established", "") in each.flags for each in expressions.values()):
            self._watch()
        self._attach(wanted)
        self._forget(slots, set(wanted.values()))
        self.state.interfaces = self.interfaces
        self.state.settle(document, numbers, slots, self.tables.region)
        if self.pins:
            self.state.write(self.directory / "state.json")
        return Applied(fresh, time.monotonic() - begin)

    def _check(self, document: Document) -> dict[str, Expression]:
        names = [each.id for each in document.rules]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"rule {name} is there twice; give each rule its own id")
        found = {}
        for rule in document.rules:
            known = self._expressions.get(rule.match)
            expression = (
                known if known and known.sets() <= set(document.sets) else check(rule, [*document.sets])
            )
            if expression is None:
                raise UsageError(f"rule {rule.id}: rules of `fields` are not supported by this host yet")
            found[rule.id] = self._expressions[rule.match] = expression
        return found

    def _build(self, document: Document, numbers: Mapping[str, int]) -> sets.Tables:
        parsed = {number: sets.parse(document.sets[name], f"@{name}") for name, number in numbers.items()}
        return sets.build({0: sets.parse(document.allow, "allow"), **parsed})

    def _grow(self, spans: int) -> None:
        """Fresh address maps, large enough for twice ``spans`` and to come; the next program uses them."""
        entries = 1 << (3 * spans).bit_length()
        for shape in self.skeleton.maps:
            if shape.name in ADDRESS_MAPS:
                self.maps[shape.name].close()
                size = entries if shape.name == "filter_spans" else shape.entries
                self.maps[shape.name] = self._map(shape, size)
        self.tables = AddressTables(self.maps)

    def _programs(
        self, document: Document, expressions: Mapping[str, Expression], numbers: Mapping[str, int],
        slots: Mapping[str, int], renewed: bool,
    ) -> tuple[dict[str, Program], int]:  # fmt: skip
        """The program of each interface, loaded if there is none yet, and how many were."""
        wanted, fresh = {}, 0
        if renewed:
            self.programs = {("old", *key): each for key, each in self.programs.items()}
        for interface in self.interfaces or [""]:
            rules = [each for each in document.rules if each.scope.covers(self.labels, interface)]
            parts = [
                Expressed(
                    slots[each.id], expressions[each.id].instructions, expressions[each.id].bound(numbers)
                )
                for each in rules
            ]
            key = tuple(
                (part.slot, rule.match, tuple(part.flags)) for part, rule in zip(parts, rules, strict=True)
            )
            if key not in self.programs:
                self.programs[key] = program.load(self.skeleton, self.maps, parts)
                fresh += 1
            wanted[interface] = self.programs[key]
        return wanted, fresh

    def _control(self, document: Document, slots: Mapping[str, int]) -> None:
        cpus = possible_cpus()
        for rule in document.rules:
            kind, limit = action(rule)
            control = Control(
                kind, rule.mode, ticks().at(rule.expires), window_budget(rule.sample, cpus),
                limit.packets_per_second if limit else 0, limit.prefix if limit else 32,
            )  # fmt: skip
            self.maps["filter_rules"].update(slots[rule.id].to_bytes(4, "little"), control.pack())

    def _attach(self, wanted: Mapping[str, Program]) -> None:
        """Where pinned, in one pass with what follows on the interface: see collector.xdp_chain."""
        for interface, each in wanted.items():
            if not interface:
                continue
            if self.pins:
                table = self.maps["filter_next"]
                xdp_chain.put_first(self.pins.name, each.fd, interface, table, mode=self.mode)
            elif interface in self.attached:
                self.attached[interface].replace(each.fd)
            else:
                self.attached[interface] = xdp.attach(each.fd, interface, mode=self.mode)

    def _forget(self, slots: Mapping[str, int], running: set[Program]) -> None:
        """Rules that are gone: no effect, counters at zero; programs that no interface has."""
        for name, slot in self.state.slots.items():
            if slots.get(name) != slot:
                place = slot.to_bytes(4, "little")
                self.maps["filter_rules"].update(place, Control().pack())
                for table in ("filter_counters", "filter_samplers"):
                    self.maps[table].update(place, bytes(self.maps[table].element_size))
        for key, each in list(self.programs.items()):
            if each not in running:
                self.programs.pop(key).close()

    def _watch(self) -> None:
        """Only where a rule asks for it are connections followed."""
        pin = self.pins / "connections" if self.pins else None
        self._watcher, self._watched = watch(self.maps["filter_connections"], pin), True

    # --- seeing ---

    def counts(self) -> list[Count]:
        """Exact counters of all rules in force, and of what passed."""
        _, values, entries = self.maps["filter_counters"].read()
        table = np.frombuffer(values, COUNTER).reshape(entries, possible_cpus())
        found = []
        for name, slot in self.state.slots.items():
            packets, size = table["packets"][slot].sum(axis=0), table["bytes"][slot].sum(axis=0)
            for number, verdict in enumerate(VERDICTS):
                found.append(Count(name, verdict, int(packets[number]), int(size[number])))
        scratch = self._scratch()
        found.append(Count("", "pass", int(scratch["packets"].sum()), int(scratch["bytes"].sum())))
        return found

    def _scratch(self) -> "np.ndarray[tuple[int, ...], np.dtype[np.void]]":
        value = self.maps["filter_scratch"].lookup(bytes(4))
        assert value is not None
        return np.frombuffer(value, SCRATCH)

    def allowed(self) -> int:
        """Frames that a rule matched and the allow-list let through."""
        return int(self._scratch()["allowed"].sum())

    def top(self) -> list[Top]:
        """Heavy hitters since the last call, estimated; the most packets first."""
        keys, values, entries = self.maps["filter_top"].read(delete=True)
        pairs = zip(np.frombuffer(keys, TOP_KEY), np.frombuffer(values, TOP_VALUE), strict=True)
        found = [
            Top(
                TOP_KINDS[key["kind"]], VERDICTS[key["verdict"]], _item(int(key["kind"]), bytes(key["item"])),
                int(value["packets"]), int(value["bytes"]),
            )
            for key, value in pairs
        ]  # fmt: skip
        assert len(found) == entries
        return sorted(found, key=lambda each: -each.packets)

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
        self.attached, self.programs, self.maps = {}, {}, {}

    def __enter__(self) -> "Filter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _item(kind: int, raw: bytes) -> str:
    """An address or a number, for people."""
    if kind > TOP_KINDS.index("destination"):
        return str(int.from_bytes(raw[:8], "little"))
    address = IPv6Address(raw)
    text = str(address.ipv4_mapped or address)
    if TOP_KINDS[kind] != "source_net":
        return text
    return text + ("/24" if address.ipv4_mapped else "/64")


def _used(document: Document, expressions: Mapping[str, Expression]) -> set[str]:
    return {name for rule in document.rules for name in expressions[rule.id].sets()}
