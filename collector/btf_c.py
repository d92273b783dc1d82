"""C structs with the members a source asks for, lying and typed as in the running kernel.

Each member stands in a union after as many bytes as precede it, so that order, overlap and everything that
was not asked for do not matter; the compiler proves every offset once more. Standard library only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from collector.btf import Btf, Kind, MissingError

Tree = dict[str, "Tree"]


@dataclass(frozen=True)
class Wanted:
    """A member by its path (``sched_info.run_delay``); an optional one may be missing."""

    path: str
    optional: bool


def struct_text(btf: Btf, name: str, wanted: Sequence[Wanted], known: set[str]) -> str:
    """Definition of ``struct <name>``; pointers to structs in ``known`` are typed, others are ``void *``.

    Raises :class:`MissingError` for a struct, a member that is not optional, or a bit field.
    """
    tree: Tree = {}
    lines = []
    offsets: dict[str, int] = {}
    for each in wanted:
        try:
            member = btf.member(name, each.path)
        except MissingError:
            if not each.optional:
                raise
            lines.append(f"#define HAS_{name}__{each.path.replace('.', '__')} 0")
            continue
        if member.bits:
            raise MissingError(f"struct {name}: {each.path} is a bit field in this kernel")
        if each.optional:
            lines.append(f"#define HAS_{name}__{each.path.replace('.', '__')} 1")
        offsets[each.path] = member.offset
        node = tree
        for part in each.path.split("."):
            node = node.setdefault(part, {})
    lines += [f"struct {name} {{", *_members(btf, name, "", tree, 0, known), "};"]
    for path, offset in offsets.items():
        lines.append(
            f'_Static_assert(__builtin_offsetof(struct {name}, {path}) == {offset}, "{name}.{path}");'
        )
    return "\n".join(lines)


def _members(btf: Btf, name: str, prefix: str, tree: Tree, start: int, known: set[str]) -> list[str]:
    """The union of the members of ``tree``, whose struct lies ``start`` bytes into the outermost."""
    lines = ["union {"]
    for part, inner in tree.items():
        member = btf.member(name, prefix + part)
        before = member.offset - start
        gap = f"u8 _before_{part}[{before}]; " if before else ""
        if inner:
            body = _members(btf, name, f"{prefix}{part}.", inner, member.offset, known)
            lines += [f"struct {{ {gap}struct {{", *body, f"}} {part}; }};"]
        else:
            lines.append(f"struct {{ {gap}{declare(btf, member.type, part, known)}; }};")
    return [*lines, "};"]


def declare(btf: Btf, number: int, name: str, known: set[str]) -> str:
    """``u64 run_delay``, ``struct css_set *cgroups``, ``char comm[16]``; a whole struct is its bytes."""
    number = btf.strip(number)
    kind = btf.kind(number) if number else None
    if kind is Kind.ARRAY:
        element, _, count = btf.array(number)
        return declare(btf, element, f"{name}[{count}]", known)
    if kind is Kind.PTR:
        target = btf.strip(btf.target(number))
        if target and btf.kind(target) is Kind.STRUCT and btf.type_name(target) in known:
            return f"struct {btf.type_name(target)} *{name}"
        return f"void *{name}"
    if kind in (Kind.INT, Kind.ENUM, Kind.ENUM64):
        if btf.type_name(number) == "char":
            return f"char {name}"
        return f"{'s' if btf.is_signed(number) else 'u'}{btf.size(number) * 8} {name}"
    if kind in (Kind.STRUCT, Kind.UNION):
        return f"u8 {name}[{btf.size(number)}]"
    raise MissingError(f"member {name} has a type that C here cannot express")
