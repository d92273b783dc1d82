"""Folded stacks as a tree: each node's time with all that was called from it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

DEPTH = 512  # frames of a stack that are drawn
KERNEL_MARK = "_[k]"


@dataclass
class Node:
    """A function as called from its parents; times in µs, the comparison's scaled to the window's length."""

    name: str
    after: float = 0.0
    before: float = 0.0
    children: dict[str, "Node"] = field(default_factory=dict)

    @property
    def is_kernel(self) -> bool:
        """Whether it is a function of the kernel."""
        return self.name.endswith(KERNEL_MARK)

    def depth(self) -> int:
        """Levels from here down, itself included."""
        return 1 + max((each.depth() for each in self.children.values()), default=0)


@dataclass(frozen=True)
class Folded:
    """One stack, root first, and its time in µs in both windows."""

    stack: str
    before: float
    after: float


def fold(rows: Iterable[tuple[str, int, int]], scale: float = 1.0) -> list[Folded]:
    """Rows of the question (stack, ns before, ns after) as µs; ``scale`` makes both windows equally long."""
    return [Folded(stack, before * scale / 1000, after / 1000) for stack, before, after in rows]


def tree(stacks: Iterable[Folded]) -> Node:
    """The tree of all stacks."""
    root = Node("all")
    for each in stacks:
        root.after += each.after
        root.before += each.before
        node = root
        for name in each.stack.split(";")[:DEPTH]:
            node = node.children.setdefault(name, Node(name))
            node.after += each.after
            node.before += each.before
    return root


def lines(stacks: Iterable[Folded], *, differential: bool = False) -> list[str]:
    """The folded form that other tools read: the stack, then µs (of both windows, if there are two)."""
    found = []
    for each in stacks:
        before, after = round(each.before), round(each.after)
        if before or after:
            numbers = f"{before} {after}" if differential else str(after)
            found.append(f"{each.stack} {numbers}")
    return found
