"""One partition's way through the sink: collect → judge → intent → insert → the next intent.

Everything here happens in memory and in one thread, the consumer's; what talks to Kafka is in ``sink``,
what talks to ClickHouse in ``insert``. At any time at most one batch of a partition is in flight, and its
intent is committed before its first insert is sent.
"""

import threading
from collections import deque
from dataclasses import dataclass, field, replace

from sinks.dead import DeadShare
from sinks.intent import MAX_BYTES, Intent
from sinks.judge import Dead, Good, Judge

MAX_MESSAGES = 1_000  # of one batch: so many verdicts always fit into a commit's metadata
# × flush_rows that one batch may take when they wait already: behind, larger inserts cost a fifth less a row.
BEHIND = 4
IDLE_SECONDS = 0.5  # without news, the end of the last batch is committed after it


@dataclass(frozen=True)
class Message:
    """What Kafka handed over."""

    offset: int
    key: bytes | None
    value: bytes | None

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return len(self.value or b"")


@dataclass(frozen=True)
class Item:
    """A message and its verdict."""

    message: Message
    verdict: Good | Dead


@dataclass
class Flight:
    """A batch ``[start, intent.end)`` on its way into the store.

    The consumer's thread owns it until its intent is committed, then the thread that inserts it.
    """

    topic: str
    partition: int
    label: str  # the topic's name and identity, for tokens
    start: int
    intent: Intent
    items: list[Item]
    recovered: bool  # an earlier owner may have inserted some of it
    committed_at: float = 0.0  # of the intent, on the clock that runs through SIGSTOP and suspend
    landed: set[str] = field(default_factory=set)
    abandoned: threading.Event = field(default_factory=threading.Event)

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return sum(each.message.size for each in self.items)

    def good(self) -> list[tuple[int, Good]]:
        """What goes into tables: offsets and rows."""
        return [
            (each.message.offset, each.verdict)
            for each in self.items
            if isinstance(each.verdict, Good) and each.message.offset not in self.intent.dead
        ]

    def reject(self, rejected: dict[int, str]) -> None:
        """The server took offence at these offsets (→ what it said): they are dead letters from now on."""
        dead = {**self.intent.dead, **dict.fromkeys(rejected, "rejected")}
        self.intent = replace(self.intent, dead=dead)
        for place, item in enumerate(self.items):
            if item.message.offset in rejected:
                detail = rejected[item.message.offset]
                self.items[place] = Item(item.message, Dead("rejected", detail))

    def part_ways(self, insert: str) -> None:
        """That insert goes message by message from now on."""
        self.intent = replace(self.intent, alone=self.intent.alone | {insert})


class Partition:
    """The state of one assigned partition.

    ``start`` is the committed offset, ``opened`` the intent found with it, ``label`` names the topic in
    tokens. ``flush_rows`` and ``flush_seconds`` say when a batch is due.
    """

    def __init__(
        self, topic: str, number: int, label: str, start: int, opened: Intent | None,
        flush_rows: int, flush_seconds: float,
    ) -> None:  # fmt: skip
        self.topic = topic
        self.number = number
        self.label = label
        self.next = start  # the first offset that is not known to be in the store
        self.flight: Flight | None = None
        self.paused = False
        self.size = 0  # bytes of all messages held, in flight or not
        self.collected = start  # the first offset not seen yet
        self._opened = opened
        self._flush_rows = flush_rows
        self._flush_seconds = flush_seconds
        self._waiting: deque[tuple[float, Message]] = deque()
        self._judged: deque[tuple[float, Item]] = deque()
        self._rows = 0
        self._committed = start
        self._idle_since: float | None = None

    # ── collect, judge ───────────────────────────────────────────────────────────────────────────

    def collect(self, message: Message, now: float) -> None:
        """Take the next message."""
        self._waiting.append((now, message))
        self.size += message.size
        self.collected = message.offset + 1

    def judge(self, judge: Judge, share: DeadShare) -> None:
        """Settle as many messages, in order, as can be settled now."""
        while self._waiting:
            since, message = self._waiting[0]
            opened = self._opened if self._opened and message.offset < self._opened.end else None
            verdict: Good | Dead | None
            if opened and message.offset in opened.dead:
                verdict = Dead(opened.dead[message.offset], "decided before this sink took over")
            else:
                verdict = judge(self.topic, message.value)
            if verdict is None:
                return
            if opened is None:
                share.note(isinstance(verdict, Dead), getattr(verdict, "detail", ""))
            self._waiting.popleft()
            self._judged.append((since, Item(message, verdict)))
            self._rows += verdict.batch.rows if isinstance(verdict, Good) else 0

    @property
    def recovering(self) -> bool:
        """Whether a batch that an earlier owner began is still to be formed again."""
        return self._opened is not None

    @property
    def busy(self) -> bool:
        """Whether anything is held that is not in the store."""
        return bool(self._waiting or self._judged or self.flight)

    # ── intent ───────────────────────────────────────────────────────────────────────────────────

    def form(self, now: float) -> Flight | None:
        """The next batch, if one is due and none is in flight."""
        if self.flight is not None:
            return None
        if self._opened is not None:
            self._form_again(self._opened)
        elif self._due(now):
            self._form_new()
        return self.flight

    def _due(self, now: float) -> bool:
        if not self._judged:
            return False
        old = now - self._judged[0][0] >= self._flush_seconds
        return old or self._rows >= self._flush_rows or len(self._judged) >= MAX_MESSAGES

    def _form_again(self, opened: Intent) -> None:
        """Exactly the batch that the intent names, once all its messages are here and settled."""
        if self.collected < opened.end or (self._waiting and self._waiting[0][1].offset < opened.end):
            return
        items = self._take(sum(1 for _, item in self._judged if item.message.offset < opened.end))
        self._opened = None
        dead = {**opened.dead, **_dead_of(items)}
        self.flight = self._flight(replace(opened, dead=dead), items, recovered=True)

    def _form_new(self) -> None:
        count = rows = 0
        for _, item in self._judged:
            if count == MAX_MESSAGES or rows >= BEHIND * self._flush_rows:
                break
            rows += item.verdict.batch.rows if isinstance(item.verdict, Good) else 0
            count += 1
        while True:
            items = [item for _, item in list(self._judged)[:count]]
            intent = Intent(items[-1].message.offset + 1, _dead_of(items))
            if len(intent.write(self.next)) <= MAX_BYTES or count == 1:
                break
            count //= 2
        self.flight = self._flight(intent, self._take(count), recovered=False)

    def _take(self, count: int) -> list[Item]:
        items = [self._judged.popleft()[1] for _ in range(count)]
        self._rows -= sum(each.verdict.batch.rows for each in items if isinstance(each.verdict, Good))
        return items

    def _flight(self, intent: Intent, items: list[Item], recovered: bool) -> Flight:
        return Flight(self.topic, self.number, self.label, self.next, intent, items, recovered)

    # ── commit ───────────────────────────────────────────────────────────────────────────────────

    def land(self, share: DeadShare) -> None:
        """The batch in flight is in the store."""
        assert self.flight is not None
        for item in self.flight.items:
            if isinstance(item.verdict, Dead) and item.verdict.reason == "rejected":
                share.rejected(item.verdict.detail)
        self.next = self.flight.intent.end
        self.size -= self.flight.size
        self.flight = None

    def commit_when_idle(self, now: float) -> bool:
        """Whether :attr:`next` should be committed by itself, because no intent will do it soon."""
        if self.next == self._committed or self.busy or self._opened is not None:
            self._idle_since = None
            return False
        self._idle_since = self._idle_since if self._idle_since is not None else now
        return now - self._idle_since >= IDLE_SECONDS

    def note_commit(self, offset: int) -> None:
        """Kafka has ``offset`` as ours."""
        self._committed = offset

    @property
    def behind(self) -> bool:
        """Whether a batch landed whose end is not committed."""
        return self.next != self._committed


def _dead_of(items: list[Item]) -> dict[int, str]:
    return {each.message.offset: each.verdict.reason for each in items if isinstance(each.verdict, Dead)}
