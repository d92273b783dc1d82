"""The C that a declaration stands for: structs, maps and the helpers that fill them.

For a ring stream ``s``: ``struct s_event``, ``s_reserve()`` (NULL when the ring is full, which is counted)
and ``s_submit(event)``; every field of a reserved event must be written, padding is cleared already.
For an aggregate: ``struct s_key``, ``struct s_value``, ``s_slot(&key)`` (the value of this CPU, made when it
is new; NULL when the map is full, which is counted). For both ``s_sampled_out()`` counts what was left out.
Counters lie in the per-CPU array ``<probe>_counts``: made, lost, sampled out, used for each stream in order;
``used`` moves just before an aggregate's map may change, so that a map of which it stands still is not read.
Text that uses it comes after ``common/probe.h``, which defines MAP and the types.
"""

from schemas import layout
from schemas.declare import Probe, Stream

COUNTERS = ("made", "lost", "sampled_out", "used")  # of each stream, in this order
RING_BYTES = 1 << 20  # default of a ring; a power of two, at least a page


def generate(probe: Probe) -> str:
    """The whole header of a probe; streams made by the host have no part in it."""
    streams = [each for each in probe.streams if each.source != "host"]
    counts = f"MAP(PERCPU_ARRAY, {probe.name}_counts, u32, u64, {max(len(probe.streams), 1) * len(COUNTERS)})"
    parts = [f"/* {probe.name}: generated from its declaration */", counts]
    for stream in streams:
        parts.append(_ring(stream) if stream.source == "ring" else _aggregate(stream))
        parts.append(_counters(probe, stream))
        parts.append(_helpers(stream))
    return "\n".join(parts) + "\n"


def struct(name: str, shape: layout.Layout) -> str:
    """A struct and the proof, checked by the compiler, that it lies as declared."""
    lines = [f"struct {name} {{"]
    for member in shape.members:
        count = "" if member.c.count is None else f"[{member.c.count}]"
        lines.append(f"\t{member.c.base} {member.name}{count};")
    lines.append("};")
    lines.append(f'_Static_assert(sizeof(struct {name}) == {shape.size}, "size of {name}");')
    for member in shape.members:
        place = f"__builtin_offsetof(struct {name}, {member.name}) == {member.offset}"
        lines.append(f'_Static_assert({place}, "offset of {name}.{member.name}");')
    return "\n".join(lines)


def _ring(stream: Stream) -> str:
    text = struct(f"{stream.name}_event", layout.event(stream.fields))
    return f"{text}\nMAP(RINGBUF, {stream.name}, none, none, {RING_BYTES})"


def _aggregate(stream: Stream) -> str:
    name = stream.name
    return "\n".join(
        (
            struct(f"{name}_key", layout.key(stream.fields)),
            struct(f"{name}_value", layout.value(stream.fields)),
            f"MAP(PERCPU_HASH, {name}, struct {name}_key, struct {name}_value, {stream.entries})",
        )
    )


def _counters(probe: Probe, stream: Stream) -> str:
    first = probe.streams.index(stream) * len(COUNTERS)
    table = f"map({probe.name}_counts)"
    return "\n".join(
        f"static __always_inline void {stream.name}_{word}(void) {{ count_in({table}, {at}); }}"
        for at, word in enumerate(COUNTERS, first)
    )


def _helpers(stream: Stream) -> str:
    name = stream.name
    if stream.source == "aggregate":
        return f"""\
static __always_inline struct {name}_value *{name}_slot(struct {name}_key *key)
{{
	{name}_used();
	struct {name}_value *value = bpf_map_lookup_elem(map({name}), key);
	if (value)
		return value;
	struct {name}_value fresh = {{}};
	bpf_map_update_elem(map({name}), key, &fresh, NO_EXIST);
	value = bpf_map_lookup_elem(map({name}), key);
	if (!value)
		{name}_lost();
	return value;
}}"""
    clear = "".join(
        f"\n\t\t__builtin_memset(event->{each.name}, 0, {each.c.size});"
        for each in layout.event(stream.fields).padding
    )
    return f"""\
static __always_inline struct {name}_event *{name}_reserve(void)
{{
	struct {name}_event *event = bpf_ringbuf_reserve(map({name}), sizeof(*event), 0);
	{name}_made();
	if (event) {{{clear}
	}} else {{
		{name}_lost();
	}}
	return event;
}}
static __always_inline void {name}_submit(struct {name}_event *event)
{{
	bpf_ringbuf_submit(event, wake_reader(map({name}), sizeof(*event) + 8));
}}"""
