"""Expressions of on-demand probes to C: numbers are s64, texts lie in buffers that are filled once."""

from dataclasses import dataclass, field

from schemas.errors import UsageError
from schemas.probe_expression import Binary, Member, Name, Node, Number, Read, StartsWith, Text, Unary
from schemas.probe_place import Filling


@dataclass
class Writer:
    """C of one function: texts are read once, where they are first needed."""

    numbers: dict[str, str]  # name → C
    texts: dict[Node, Filling]
    places: dict[Node, str] = field(default_factory=dict)  # where a text is to lie, if it has a place
    lines: list[str] = field(default_factory=list)
    read: dict[Node, str] = field(default_factory=dict)
    spent: int = 0  # bytes of texts on the stack

    def number(self, tree: Node) -> str:
        """The C of a number or condition."""
        if isinstance(tree, Number):
            value = tree.value - (1 << 64) if tree.value >> 63 and tree.value > 0 else tree.value
            return f"((s64)0x{value & 0xFFFFFFFFFFFFFFFF:x}ULL)"
        if isinstance(tree, Name):
            return self.numbers[tree.name]
        if isinstance(tree, Unary):
            inner = self.number(tree.one)
            if tree.op == "int32":
                return f"((s64)(s32){inner})"
            return f"(s64)(-(u64){inner})" if tree.op == "-" else f"((s64)({tree.op}{inner}))"
        if isinstance(tree, StartsWith):
            return self._same(tree.one, tree.prefix)
        if isinstance(tree, Member):
            return f"(s64)((struct {tree.struct} *){self.number(tree.pointer)})->{tree.path}"
        if isinstance(tree, Binary):
            return self._binary(tree)
        raise UsageError("a text stands where a number is needed; compare it with == or !=")

    def _binary(self, tree: Binary) -> str:
        if isinstance(tree.right, Text):
            same = self._same(tree.left, tree.right.value + b"\0")
            return same if tree.op == "==" else f"(!{same})"
        left, right = self.number(tree.left), self.number(tree.right)
        if tree.op in ("&&", "||", "==", "!=", "<", "<=", ">", ">="):
            return f"((s64)({left} {tree.op} {right}))"
        if tree.op in ("/", "%"):
            return f"((s64)({right} ? (u64){left} {tree.op} (u64){right} : 0))"
        if tree.op in ("<<", ">>"):
            return f"((s64)((u64){left} {tree.op} ((u64){right} & 63)))"
        return f"((s64)((u64){left} {tree.op} (u64){right}))"

    def text(self, tree: Node) -> str:
        """The buffer that holds a text; it is read now if it was not before."""
        if tree in self.read:
            return self.read[tree]
        size, statement = self.filling(tree)
        place = self.places.get(tree)
        if place is None:
            place = f"text{len(self.read)}"
            self.spent += size
            self.lines.append(f"char {place}[{size}] = {{}};")
        self.lines.append(statement.format(to=place))
        self.read[tree] = place
        return place

    def filling(self, tree: Node) -> Filling:
        """Size and statement of a text."""
        if isinstance(tree, Read):
            kind = "user" if tree.where == "str" else "kernel"
            address = self.number(tree.address)
            return tree.size, f"bpf_probe_read_{kind}_str({{to}}, {tree.size}, (void *){address});"
        if tree not in self.texts:
            raise UsageError("a number stands where a text is needed; str(…) reads what it points to")
        return self.texts[tree]

    def _same(self, tree: Node, wanted: bytes) -> str:
        """Whether a text begins with these bytes: one branch, however many they are."""
        place, size = self.text(tree), self.filling(tree)[0]
        if len(wanted) > size:
            return "((s64)0)"
        differing = " | ".join(f"((u8){place}[{at}] ^ {byte})" for at, byte in enumerate(wanted))
        return f"((s64)!({differing or 0}))"

    def require(self, tree: Node) -> None:
        """Leave the function unless it holds."""
        condition = self.number(tree)
        self.lines.append(f"if (!{condition})\n\t\treturn 0;")


def is_text(tree: Node, writer: Writer) -> bool:
    """Whether it is a text here."""
    return isinstance(tree, Read) or tree in writer.texts
