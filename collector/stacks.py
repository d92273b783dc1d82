"""Streams whose rows name stacks: read apart from the others, in a thread of their own, since symbols take
time.

    stacks = Stacks(sources, Names(symbols), every_s=5) # a Companion; a StackSource of each probe
    stacks.arrays()                                     # rows to decode: their stack fields are names by now

The kernel's number of a stack (bpf/common/stack.h) becomes its name: a hash of its symbolised content, the
same in all processes and on all hosts. Content goes out once as a row of the stream `stack`, and again when
the stack is seen after :data:`TOLD_S`. Rings are looked at often, so that a process is met before it ends.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collector.bpf_map import Map, possible_cpus
from collector.clock import now_us
from collector.companion import Companion
from collector.ring import Ring
from collector.symbols import UNKNOWN, Frame, Symbols, is_unnamed
from schemas import dtype
from schemas.columns import Column, Dictionary
from schemas.declare import Stream

log = logging.getLogger("bpfleet.collector")
LOOK_S = 0.2  # new stacks are met that often, as their processes may end
MANY = 200  # are named at once; fewer wait for the next rows: together they cost half as much
LOOK_STACKS = 1000  # named at one look
WAITING = 1000  # stacks; the rest wait in the ring, and then in the kernel, which bounds the work of a flood
TOLD_S = 6 * 3600.0  # a stack that is still in use is told again after this time
KEPT = 32_768  # numbers, and names, that are remembered; twice what the kernel's table of told ones holds
UNNAMED, TRIES, LOOK_UNNAMED_S = 4096, 4, 5.0  # stacks with frames of a JIT that told no names (yet)
SAME = 4096  # contents by frames
NAMING_SHARE = 0.0015  # of a CPU, that this thread is to take; the rate of samples follows
LEAST_RATE = 0.1  # of the samples that are configured, however dear they are
NAME_BITS = 63  # names travel as Avro longs
SCHEDULE, SEARCHED = (
    ("__schedule", "schedule"),
    12,
)  # what lies inside of the scheduler says nothing of the wait
LOST = [Frame("[lost]", "")]  # the ring was full when it was to be told
FRAMES = 127
RECORD = np.dtype(
    [("number", "<u8"), ("pid", "<u4"), ("frames", "<u4"), ("addresses", "<u8", (FRAMES,))]
)  # struct stack_record
Rows = tuple[Stream, NDArray[Any], NDArray[Any], int]  # stream, keys, values, µs of the interval


@dataclass(frozen=True)
class StackSource:
    """One probe's maps: aggregates by stacks, the ring that tells new stacks, the table of told ones."""

    tables: list[tuple[Stream, Map]]
    ring: Ring
    told: Map

    @classmethod
    def of(cls, streams: Iterable[Stream], maps: dict[str, Map]) -> "StackSource":
        """From the maps of a loaded source that includes common/stack.h."""
        tables = [(each, maps[each.name]) for each in streams if stack_fields(each)]
        return cls(tables, Ring(maps["stacks"], RECORD), maps["stacks_told"])


def stack_fields(stream: Stream) -> list[str]:
    """The fields of a stream that name stacks."""
    return [each.name for each in stream.fields if each.decode == "stack"]


def drain(table: Map, stream: Stream) -> tuple[NDArray[Any], NDArray[Any]]:
    """Take all of a per-CPU hash: (keys, values summed over the CPUs)."""
    raw_keys, raw_values, count = table.read(delete=True)
    keys = np.frombuffer(raw_keys, dtype.key(stream), count).copy()
    each = np.frombuffer(raw_values, dtype.value(stream, table.stride), count * possible_cpus())
    total = np.zeros(count, dtype.value(stream))
    for name in total.dtype.names or ():
        total[name] = each[name].reshape(count, possible_cpus()).sum(axis=1, dtype=total.dtype[name])
    return keys, total


@dataclass(frozen=True)
class Told:
    """The content of a stack as its row has it."""

    kind: str
    frames: str
    modules: str
    build_ids: str

    @cached_property
    def name(self) -> int:
        """The hash of all of it; never 0."""
        text = "\n".join((self.kind, self.frames, self.modules, self.build_ids))
        digest = blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> (64 - NAME_BITS) or 1


def content(kind: str, frames: list[Frame]) -> Told:
    """The row of a stack whose frames come innermost first."""
    frames = _outside_scheduler(frames) if kind == "kernel" else _without_runs(frames)
    frames = frames[::-1]
    builds = {each.module: each.build_id for each in frames if each.build_id}
    return Told(
        kind,
        ";".join(each.function for each in frames),
        ";".join(each.module for each in frames),
        ";".join(f"{module}={build}" for module, build in builds.items()),
    )


def _outside_scheduler(frames: list[Frame]) -> list[Frame]:
    inner = [at for at, each in enumerate(frames[:SEARCHED]) if each.function in SCHEDULE]
    return frames[inner[-1] + 1 :] if inner else frames


def _without_runs(frames: list[Frame]) -> list[Frame]:
    """Of frames of which nothing is known, one after the other, one is enough."""
    return [
        each for at, each in enumerate(frames) if each.function != UNKNOWN or not at or each != frames[at - 1]
    ]


class Names:
    """Numbers of stacks to their names; bounded, the ones not used for longest are forgotten."""

    def __init__(self, symbols: Symbols, kept: int = KEPT) -> None:
        self.symbols = symbols
        self._kept = kept
        self._known: OrderedDict[int, tuple[int, float]] = OrderedDict()  # number → name, since when
        self._told: OrderedDict[int, float] = OrderedDict()  # name → when its content went out
        self._same: dict[tuple[str | Frame, ...], tuple[int, bool]] = {}  # content → name, a JIT's lacks
        self.lost = 0  # rows whose stack never came
        self._unnamed: OrderedDict[int, tuple[int, int]] = (
            OrderedDict()
        )  # number → pid, how often it was tried
        self._looked = 0.0

    def learn(self, records: NDArray[Any]) -> list[Told]:
        """Symbolise stacks that the kernel told; the contents that have to go out."""
        rows = zip(records["number"].tolist(), records["pid"].tolist(), map(_addresses, records), strict=True)
        fresh = [row for row in rows if row[0] not in self._known]
        users = [row for row in fresh if row[1]]
        kernels = [row for row in fresh if not row[1]]
        frames = self.symbols.users([(pid, addresses) for _, pid, addresses in users])
        now = time.monotonic()
        news: list[Told] = []
        for (number, pid, _), each in zip(users, frames, strict=True):
            _, unnamed = self._enter(number, "user", each, now, news)
            self._note_unnamed(number, pid, unnamed)
        for number, _, addresses in kernels:
            self._enter(number, "kernel", self.symbols.kernel(addresses), now, news)
        self._forget(self._known)
        return news

    def _enter(
        self, number: int, kind: str, frames: list[Frame], now: float, news: list[Told]
    ) -> tuple[int, bool]:
        """Remember the name of a number; its content joins ``news`` where it has to go out.

        Numbers are many, as each address makes another; stacks of functions are few.
        """
        key: tuple[str | Frame, ...] = (kind, *frames)
        known = self._same.get(key)
        told = None if known else content(kind, frames)
        if known is None:
            assert told
            known = told.name, any(map(is_unnamed, frames))
            if len(self._same) >= SAME:
                self._same.clear()
            self._same[key] = known
        self._known[number] = known[0], now
        if self.is_news(known[0], now):
            news.append(told or content(kind, frames))
        return known

    def _note_unnamed(self, number: int, pid: int, unnamed: bool) -> None:
        """Remember a stack of a JIT that has not told its names, as one without its agent does."""
        _, tries = self._unnamed.get(number, (pid, 0))
        if tries < TRIES and unnamed:
            self._unnamed[number] = pid, tries + 1
            while len(self._unnamed) > UNNAMED:
                self._unnamed.popitem(last=False)
        else:
            self._unnamed.pop(number, None)

    def _try_unnamed(self, now: float) -> None:
        """Where names have come since, have the kernel tell those stacks again."""
        if now - self._looked < LOOK_UNNAMED_S or not self._unnamed:
            return
        self._looked = now
        more = {pid for pid in {pid for pid, _ in self._unnamed.values()} if self.symbols.has_more_names(pid)}
        for number, (pid, _) in self._unnamed.items():
            if pid in more and number in self._known:
                self._known[number] = self._known[number][0], -TOLD_S

    def is_news(self, name: int, now: float) -> bool:
        """Whether content of this name has to go out (again); then it counts as gone out."""
        if now - self._told.get(name, -TOLD_S) < TOLD_S:
            return False
        self._told[name] = now
        self._told.move_to_end(name)
        self._forget(self._told)
        return True

    def _forget(self, table: OrderedDict[int, Any]) -> None:
        while len(table) > self._kept:
            table.popitem(last=False)

    def of(self, numbers: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], list[int]]:
        """The name of each number (0 stays 0), and the numbers that the kernel should tell (again)."""
        distinct, inverse = np.unique(numbers, return_inverse=True)
        now, again, names = time.monotonic(), [], []
        self._try_unnamed(now)
        for number in distinct.tolist():
            name, since = self._known.get(number, (0, 0.0))
            if not number:
                names.append(0)
                continue
            if name:
                self._known.move_to_end(number)
            if not name or now - since > TOLD_S:
                self._known.pop(number, None)
                again.append(number)
            names.append(name or content("user", LOST).name)
            self.lost += not name
        return np.array(names, np.uint64)[inverse], again


def _addresses(record: Any) -> NDArray[np.uint64]:
    found: NDArray[np.uint64] = record["addresses"][: min(int(record["frames"]), FRAMES)]
    return found


class Stacks(Companion):
    """Reads the sources' rows and names their stacks."""

    def __init__(
        self,
        sources: Iterable[StackSource],
        names: Names,
        every_s: float,
        pace: Callable[[float], None] = lambda rate: None,
    ) -> None:
        """``pace`` is called with the share of the configured samples that is to be taken from now on."""
        super().__init__()
        self.names = names
        self.rate = 1.0
        self._pace = pace
        self._spent_s = 0.0
        self.every_s = every_s
        self._sources = list(sources)
        self._waiting: list[NDArray[Any]] = []  # stacks to be named
        self._contents: list[Told] = []  # to go out with the next rows
        self._rows_made: deque[Rows] = deque(maxlen=1024)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stacks", daemon=True)
        self._read_at = time.monotonic()
        self._failed = False

    def start(self) -> None:
        """Begin; called once the collector is up."""
        self._thread.start()

    def stop(self) -> None:
        """Read what is left and end. A file system that does not answer is not waited for."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5.0)
        if not self._thread.is_alive():
            self._round(self.read)
            self.names.symbols.close()
            for each in self._sources:
                each.ring.close()

    def arrays(self) -> Iterator[Rows]:
        """Rows to be decoded and shipped, since the last call."""
        while self._rows_made:
            yield self._rows_made.popleft()

    def _run(self) -> None:
        due = time.monotonic() + self.every_s
        while not self._stop.wait(LOOK_S):
            self._round(self.meet)
            if sum(map(len, self._waiting)) >= MANY:
                self._round(self.name)
            if time.monotonic() >= due:
                self._round(self.read)
                due = max(due + self.every_s, time.monotonic())

    def _round(self, work: Any) -> None:
        """Whatever is wrong with one round, the next one comes."""
        try:
            work()
        except Exception:
            if not self._failed:
                log.exception("stacks cannot be read; further faults are not told")
            self._failed = True

    def meet(self) -> None:
        """Take new stacks, and look at their processes while they are there."""
        for source in self._sources:
            if source.ring.waiting and sum(map(len, self._waiting)) < WAITING:
                records = source.ring.read(WAITING)
                self._waiting.append(records)
                for pid in set(records["pid"].tolist()):
                    self.names.symbols.look_at(pid)

    def name(self, limit: int = LOOK_STACKS) -> None:
        """Name so many of the stacks that wait."""
        if self._waiting:
            records = np.concatenate(self._waiting)
            self._waiting = [records[limit:]] if len(records) > limit else []
            self._contents += self.names.learn(records[:limit])

    def read(self) -> None:
        """Take the aggregates and name their stacks."""
        now = time.monotonic()
        interval, self._read_at = int((now - self._read_at) * 1e6), now
        taken = [
            (source, stream, *drain(table, stream))
            for source in self._sources
            for stream, table in source.tables
        ]
        self.meet()
        self.name(limit=1 << 20)
        for source, stream, keys, values in taken:
            for name in stack_fields(stream):
                keys[name], again = self.names.of(keys[name])
                for number in again:
                    source.told.delete(number.to_bytes(8, "little"))
            if len(keys):
                self._rows_made.append((stream, keys, values, interval))
        if self.names.lost and self.names.is_news(content("user", LOST).name, now):
            self._contents.append(content("user", LOST))
        self._tell()
        self.names.symbols.rest()
        self._follow_budget(interval / 1e6)

    def _follow_budget(self, seconds: float) -> None:
        """Fewer samples where naming them is dear, each with more weight; more again where it is cheap."""
        before, self._spent_s = self._spent_s, time.thread_time()
        share = (self._spent_s - before) / max(seconds, 0.001)
        rate = self.rate * min(max(NAMING_SHARE / max(share, 1e-9), 0.5), 1.25)
        rate = min(max(rate, LEAST_RATE), 1.0)
        if rate != self.rate:
            self.rate = rate
            self._pace(rate)

    def _tell(self) -> None:
        contents, self._contents = self._contents, []
        if contents:
            self.put_columns("stack", told_columns(contents), at_once=False)


def told_columns(contents: list[Told]) -> dict[str, Column]:
    """The columns of the stream `stack`."""
    columns: dict[str, Column] = {
        "ts": np.full(len(contents), now_us(), np.int64),
        "stack": np.array([each.name for each in contents], np.int64),
    }
    for name in ("kind", "frames", "modules", "build_ids"):
        place: dict[str, int] = {}
        index = [place.setdefault(getattr(each, name), len(place)) for each in contents]
        columns[name] = Dictionary(list(place), np.array(index, np.uint32))
    return columns
