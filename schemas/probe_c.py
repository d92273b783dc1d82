"""An on-demand probe as C: from a checked spec and what its points have on this host.

    program = generate(checked, bound)
    program.text            # the source, in the words of bpf/common/probe.h
    program.declaration     # a Probe like any declared one: struct, map or ring, and dtype follow from it

Nothing of the author's text gets in: names come from closed alphabets or are looked up, texts become bytes.
"""

from dataclasses import dataclass

from schemas.declare import CType, Field, Probe, Stream
from schemas.errors import UsageError
from schemas.probe_expression import Member, Name, Node, Read, walk
from schemas.probe_place import Bound, Filling, Place, machine
from schemas.probe_spec import KEY_BYTES, Checked
from schemas.probe_writer import Writer, is_text

BEGUN = 16_384  # beginnings that wait for their end; the oldest fall out
STREAM = "result"
WORDS = {  # what every point knows
    "pid": "(s64)(bpf_get_current_pid_tgid() >> 32)", "tid": "(s64)(u32)bpf_get_current_pid_tgid()",
    "uid": "(s64)(u32)bpf_get_current_uid_gid()", "gid": "(s64)(bpf_get_current_uid_gid() >> 32)",
    "cpu": "(s64)bpf_get_smp_processor_id()", "cgroup": "(s64)bpf_get_current_cgroup_id()",
    "now": "(s64)bpf_ktime_get_ns()", "kstack": "(s64)kernel_stack(ctx)", "ustack": "(s64)user_stack(ctx)",
}  # fmt: skip
COMM: Filling = (16, "bpf_get_current_comm({to}, 16);")
STACKS = {"kstack", "ustack"}


@dataclass(frozen=True)
class Generated:
    """The source, its declaration, and which field of the struct is which key."""

    text: str
    declaration: Probe
    columns: tuple[str, ...]  # of each key: the struct's field


class _Source:
    """The whole of one probe on its way to C."""

    def __init__(self, checked: Checked, bound: Bound) -> None:
        self.checked, self.bound = checked, bound
        self.is_event = checked.value == "event"
        self.custom_pair = bool(checked.spec.pair)
        self.kept: dict[str, str] = {}  # names of the beginning that the end needs → member
        self.kept_texts: dict[str, tuple[str, int]] = {}

    # ── Names ────────────────────────────────────────────────────────────────────────────────────

    def own(self, place: Place, name: str, ends: bool) -> str | None:
        """A number at this place; a bare word means the same everywhere, ``args.x`` is the point's own x."""
        bare = name.removeprefix("args.")
        if bare == name and name in WORDS:
            return WORDS[name]
        if bare == "errno" and ends and (result := place.number("retval")) and not place.number("errno"):
            return f"({result} < 0 && {result} >= -4095 ? -{result} : 0)"
        return place.number(bare)

    def own_text(self, place: Place, name: str) -> Filling | None:
        """A text at this place."""
        return COMM if name == "comm" else place.text(name.removeprefix("args."))

    def resolve(self) -> tuple[dict[str, str], dict[Node, Filling]]:
        """What the last program reads: names to C, texts to statements; notes what the first must keep."""
        numbers: dict[str, str] = {}
        texts: dict[Node, Filling] = {}
        last = self.bound.end or self.bound.begin
        ends = self.bound.end is not None or bool(last.number("retval"))
        for name in sorted(self.checked.names):
            if name == "latency":
                numbers[name] = "((s64)latency)"
                continue
            here = name in ("retval", "errno") or (not self.custom_pair and (name in WORDS or name == "comm"))
            if self.bound.end is None or here:
                number, text = self.own(last, name, ends), self.own_text(last, name)
            else:
                number, text = self._from_beginning(name)
            if text is not None:
                texts[Name(name)] = text
            elif number is not None:
                numbers[name] = f"({number})"
            else:
                raise self._unknown(name)
        return numbers, texts

    def _from_beginning(self, name: str) -> tuple[str | None, Filling | None]:
        text = self.own_text(self.bound.begin, name)
        if text is not None:
            self.kept_texts[name] = (f"text{len(self.kept_texts)}", text[0])
            member = self.kept_texts[name][0]
            return None, (text[0], f"__builtin_memcpy({{to}}, begun->{member}, {text[0]});")
        if self.own(self.bound.begin, name, False) is not None:
            self.kept[name] = f"kept{len(self.kept)}"
            return f"begun->{self.kept[name]}", None
        assert self.bound.end is not None
        return self.own(self.bound.end, name, True), self.own_text(self.bound.end, name)

    def _unknown(self, name: str) -> UsageError:
        known = [*self.bound.begin.known, *(self.bound.end.known if self.bound.end else ())]
        more = ", ".join(dict.fromkeys(known)) or "nothing of its own"
        return UsageError(
            f"{self.checked.at} has no `{name}` on this host; it has {more}; and everywhere there are comm, "
            f"{', '.join(WORDS)}"
        )

    # ── Parts ────────────────────────────────────────────────────────────────────────────────────

    def fields(self, writer: Writer) -> tuple[list[Field], list[str]]:
        """The keys (or fields of an event) as declared fields, and their names in the struct."""
        fields = []
        for number, key in enumerate(self.checked.keys):
            if is_text(key.tree, writer):
                size = writer.filling(key.tree)[0]
                fields.append(_field(f"k{number}", CType("char", size), not self.is_event, "text"))
            else:
                decode = "stack" if isinstance(key.tree, Name) and key.tree.name in STACKS else ""
                kind = CType("u64") if decode else CType("s64")
                fields.append(_field(f"k{number}", kind, not self.is_event, decode))
        spent = sum(each.c.size for each in fields if each.c)
        if spent > KEY_BYTES:
            raise UsageError(f"the keys take {spent} bytes, at most {KEY_BYTES}; give str() a smaller size")
        return fields, [each.name for each in fields]

    def gate(self) -> str:
        """What comes first in the first program: whose event it is, and whether it is sampled."""
        lines = []
        if self.checked.spec.pid:
            lines.append(f"if (bpf_get_current_pid_tgid() >> 32 != {self.checked.spec.pid})\n\t\treturn 0;")
        if self.checked.spec.cgroup:
            lines.append("u64 home = bpf_get_current_cgroup_id();")
            lines.append("if (!bpf_map_lookup_elem(map(homes), &home))\n\t\treturn 0;")
        period = self.checked.at.period if self.checked.at.counts_events else 1
        lines.append("u64 weight = setting(sample);")
        lines.append("if (weight > 1 && bpf_get_prandom_u32() % (u32)weight)\n\t\treturn 0;")
        if period > 1:
            lines.append(f"weight *= {period};")  # each sample stands for so many
        return "\n\t".join(lines)

    def begin(self) -> str:
        """The program of the beginning."""
        place = self.bound.begin
        names = {n: f"({c})" for n in self.checked.names if (c := self.own(place, n, False)) is not None}
        texts: dict[Node, Filling] = {
            Name(n): t for n in self.checked.names if (t := self.own_text(place, n)) is not None
        }
        writer = Writer(names, texts)
        for each in self.checked.where:
            if self._early(each, names, texts):
                writer.require(each)
        keep = [f"begun.{member} = {names[name]};" for name, member in self.kept.items()]
        for name, (member, _) in self.kept_texts.items():
            keep.append(texts[Name(name)][1].format(to=f"begun.{member}"))
        lines = [
            self.gate(), *writer.lines, self.pair_key(place, 0), "struct begun begun = {};",
            "begun.at = bpf_ktime_get_ns();", "begun.weight = weight;", *keep,
            "bpf_map_update_elem(map(begun), &pair, &begun, ANY);", "return 0;",
        ]  # fmt: skip
        return _program(place.hook, lines)

    def _early(self, tree: Node, names: dict[str, str], texts: dict[Node, Filling]) -> bool:
        """Whether a condition can be judged at the beginning: no result, no text behind a pointer yet."""
        for each in walk(tree):
            if isinstance(each, Read | Member):
                return False
            if isinstance(each, Name) and each.name not in names and each not in texts:
                return False
            if isinstance(each, Name) and each.name in ("retval", "errno", "latency", "now"):
                return False
        return True

    def pair_key(self, place: Place, pops: int) -> str:
        """What the beginning and the end have in common."""
        if self.custom_pair:
            parts = []
            for number, tree in enumerate(self.checked.pair):
                names = {
                    each.name: f"({found})"
                    for each in walk(tree)
                    if isinstance(each, Name) and (found := self.own(place, each.name, False)) is not None
                }
                missing = [e.name for e in walk(tree) if isinstance(e, Name) and e.name not in names]
                if missing:
                    raise self._unknown(missing[0])
                parts.append(f"pair.part{number} = {Writer(names, {}).number(tree)};")
            return "struct pair pair = {};\n\t" + "\n\t".join(parts)
        lines = "struct pair pair = {};\n\tpair.part0 = bpf_get_current_pid_tgid();"
        if self.bound.by_stack:
            lines += f"\n\tpair.part1 = ctx->{machine().stack} - {pops};"
        return lines

    def structs(self) -> str:
        """Of pairs: what joins them, what is kept meanwhile."""
        if self.bound.end is None:
            return ""
        parts = len(self.checked.pair) if self.custom_pair else 1 + self.bound.by_stack
        kept = "".join(f" s64 {each};" for each in self.kept.values())
        kept += "".join(f" char {name}[{size}];" for name, size in self.kept_texts.values())
        return (
            f"struct pair {{ {' '.join(f'u64 part{n};' for n in range(parts))} }};\n"
            f"struct begun {{ u64 at; u64 weight;{kept} }};\n"
            f"MAP(LRU_HASH, begun, struct pair, struct begun, {BEGUN})\n"
        )

    def finish(self, writer: Writer, keys: list[str]) -> list[str]:
        """The conditions that are left, and the record."""
        for number, key in enumerate(self.checked.keys):
            if not self.is_event and is_text(key.tree, writer):
                writer.places[key.tree] = f"key.{keys[number]}"
        early = self._judged_early()
        for each in self.checked.where:
            if each not in early:
                writer.require(each)
        value = writer.number(self.checked.of) if self.checked.of else "0"
        lines = self._event(writer, keys) if self.is_event else self._aggregate(writer, keys, value)
        if writer.spent > KEY_BYTES:
            raise UsageError(
                f"its texts take {writer.spent} bytes, at most {KEY_BYTES}; compare fewer of them"
            )
        head = [] if self.is_event else [f"struct {STREAM}_key key = {{}};"]
        return [*head, *lines]

    def _judged_early(self) -> list[Node]:
        if self.bound.end is None:
            return []
        place = self.bound.begin
        names = {n: c for n in self.checked.names if (c := self.own(place, n, False)) is not None}
        texts: dict[Node, Filling] = {
            Name(n): t for n in self.checked.names if (t := self.own_text(place, n)) is not None
        }
        return [each for each in self.checked.where if self._early(each, names, texts)]

    def _aggregate(self, writer: Writer, keys: list[str], value: str) -> list[str]:
        writer.lines.append(f"s64 value = {value};")
        for name, key in zip(keys, self.checked.keys, strict=True):
            if is_text(key.tree, writer):
                held = writer.text(key.tree)
                if held != f"key.{name}":
                    writer.lines.append(f"__builtin_memcpy(key.{name}, {held}, sizeof(key.{name}));")
            else:
                writer.lines.append(f"key.{name} = {writer.number(key.tree)};")
        if self.checked.value == "log2":
            writer.lines.append("key.bucket = value < 0 ? 0 : log2_bucket(value, 64);")
        elif self.checked.value == "linear":
            low, high, step = self.checked.linear
            last = (high - low + step - 1) // step + 1
            writer.lines.append(
                f"key.bucket = value < {low}LL ? 0 : value >= {high}LL ? {last} : "
                f"(u64)(value - ({low}LL)) / {step} + 1;"
            )
        return [
            *writer.lines, f"struct {STREAM}_value *slot = {STREAM}_slot(&key);",
            "if (!slot)\n\t\treturn 0;",
            # Programs here may be preempted by themselves: plain additions would lose some.
            "__sync_fetch_and_add(&slot->count, weight);",
            "__sync_fetch_and_add(&slot->sum, (u64)value * weight);", "return 0;",
        ]  # fmt: skip

    def _event(self, writer: Writer, keys: list[str]) -> list[str]:
        conditions = writer.lines[:]
        writer.lines = []
        before = dict(writer.read)
        for name, key in zip(keys, self.checked.keys, strict=True):
            if not is_text(key.tree, writer):
                writer.lines.append(f"event->{name} = {writer.number(key.tree)};")
            elif key.tree in before:
                held = before[key.tree]
                writer.lines.append(f"__builtin_memcpy(event->{name}, {held}, sizeof(event->{name}));")
            else:
                filling = writer.filling(key.tree)[1].format(to=f"event->{name}")
                writer.lines.append(
                    f"__builtin_memset(event->{name}, 0, sizeof(event->{name}));\n\t{filling}"
                )
        return [
            *conditions, "u32 cell = 0;",
            "struct sampler *sampler = bpf_map_lookup_elem(map(samplers), &cell);",
            "if (!sampler)\n\t\treturn 0;", "u64 now = bpf_ktime_get_ns();",
            "u32 share = sample(sampler, setting(rate), now);",
            f"if (!share) {{\n\t\t{STREAM}_sampled_out();\n\t\treturn 0;\n\t}}",
            f"struct {STREAM}_event *event = {STREAM}_reserve();", "if (!event)\n\t\treturn 0;",
            "event->ts = now;", "event->weight = weight * share;", *writer.lines,
            f"{STREAM}_submit(event);", "return 0;",
        ]  # fmt: skip

    # ── The whole ────────────────────────────────────────────────────────────────────────────────

    def generated(self) -> Generated:
        """Everything together."""
        numbers, texts = self.resolve()
        writer = Writer(numbers, texts)
        fields, keys = self.fields(writer)
        body = self.finish(writer, keys)
        last = self.bound.end or self.bound.begin
        head = "struct begun *begun, u64 latency, " if self.bound.end else ""
        inner = f"static __always_inline int finish({last.context} *ctx, {head}u64 weight)\n{_block(body)}"
        first = self.begin() if self.bound.end else ""
        final = _program(
            last.hook, self._end() if self.bound.end else [self.gate(), "return finish(ctx, weight);"]
        )
        stream = _stream(fields, self.checked)
        text = "".join((self._head(inner + first + final), self.structs(), inner, first, final))
        return Generated(text, Probe(STREAM, (stream,)), tuple(keys))

    def _end(self) -> list[str]:
        assert self.bound.end is not None
        pops = machine().return_pops if self.bound.by_stack else 0
        return [
            self.pair_key(self.bound.end, pops),
            "struct begun *begun = bpf_map_lookup_elem(map(begun), &pair);",
            "if (!begun)\n\t\treturn 0;", "u64 ended = bpf_ktime_get_ns();",
            "u64 latency = ended > begun->at ? ended - begun->at : 0;",
            "finish(ctx, begun, latency, begun->weight);",
            "bpf_map_delete_elem(map(begun), &pair);", "return 0;",
        ]  # fmt: skip

    def _head(self, code: str) -> str:
        lines = ['#include "common/sample.h"' if self.is_event else '#include "common/probe.h"']
        if "_stack(ctx)" in code:
            lines.append('#include "common/stack.h"')
        lines.append("SETTING(sample, 1)")
        if self.is_event:
            lines += ["SETTING(rate, 100)", "MAP(PERCPU_ARRAY, samplers, u32, struct sampler, 1)"]
        if self.checked.spec.cgroup:
            lines.append("MAP(HASH, homes, u64, u64, 16384)")
        needs = dict.fromkeys(
            each.needs for each in (self.bound.begin, self.bound.end) if each and each.needs
        )
        members = {
            f"KERNEL_STRUCT({each.struct}, {each.path})\n"
            for tree in (*self.checked.trees, *self.checked.pair)
            for each in walk(tree)
            if isinstance(each, Member)
        }
        return "\n".join(lines) + "\n" + "".join(needs) + "".join(sorted(members))


def _block(lines: list[str]) -> str:
    return "{\n\t" + "\n\t".join(lines) + "\n}\n"


def _program(hook: str, lines: list[str]) -> str:
    return f"{hook}\n{_block(lines)}"


def _field(name: str, c: CType, key: bool, decode: str = "") -> Field:
    avro = "string" if decode == "text" else "long"
    return Field(name, "", avro, None, c, key, decode, "", (1 << 63) - 1 if c.base == "u64" else None, "", "")


def _stream(fields: list[Field], checked: Checked) -> Stream:
    if checked.value == "event":
        more = [_field("ts", CType("u64"), False, "ktime"), _field("weight", CType("u64"), False)]
        return Stream(STREAM, STREAM, "ring", "", (*more, *fields), ("ts",), 1, "{}")
    bucket = [_field("bucket", CType("u64"), True)]  # always there: an aggregate without keys has one, too
    values = [_field("count", CType("u64"), False), _field("sum", CType("u64"), False)]
    return Stream(STREAM, STREAM, "aggregate", "", (*fields, *bucket, *values), ("ts",), 1, "{}")


def generate(checked: Checked, bound: Bound) -> Generated:
    """Raises :class:`UsageError` for what the points do not have on this host."""
    return _Source(checked, bound).generated()
