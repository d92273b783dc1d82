"""Where each field of a kernel struct lies: the one computation behind the C text and the numpy dtype.

Natural alignment as every C compiler for Linux lays it out; each hole becomes a named member ``_pad0``,
``_pad1`` …, so that a struct has no byte without a name and ``= {}`` leaves no stack bytes in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.declare import CType, Field


@dataclass(frozen=True)
class Member:
    """A member of a struct: a declared field or padding."""

    name: str
    c: CType
    offset: int

    @property
    def is_padding(self) -> bool:
        """Whether no field is here."""
        return self.name.startswith("_pad")


@dataclass(frozen=True)
class Layout:
    """A struct, whole: its members cover ``size`` bytes without a gap."""

    members: tuple[Member, ...]
    size: int

    @property
    def padding(self) -> tuple[Member, ...]:
        """The members that are holes."""
        return tuple(each for each in self.members if each.is_padding)


def lay_out(fields: Sequence[Field]) -> Layout:
    """The struct of ``fields``, which all have a C type."""
    members: list[Member] = []
    position, widest, holes = 0, 1, 0

    def fill(alignment: int) -> None:
        nonlocal position, holes
        hole = -position % alignment
        if hole:
            members.append(Member(f"_pad{holes}", CType("u8", hole), position))
            holes += 1
            position += hole

    for field in fields:
        assert field.c is not None
        fill(field.c.item_size)
        members.append(Member(field.name, field.c, position))
        position += field.c.size
        widest = max(widest, field.c.item_size)
    fill(widest)
    return Layout(tuple(members), position)


def event(fields: Sequence[Field]) -> Layout:
    """The event struct of a ring stream: its kernel fields."""
    return lay_out([each for each in fields if each.c is not None])


def key(fields: Sequence[Field]) -> Layout:
    """The key struct of an aggregate."""
    return lay_out([each for each in fields if each.c is not None and each.key])


def value(fields: Sequence[Field]) -> Layout:
    """The value struct of an aggregate."""
    return lay_out([each for each in fields if each.c is not None and not each.key])
