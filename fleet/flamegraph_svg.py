"""A flame graph as one SVG file that needs nothing else: click to zoom, search, read the figures of a frame.

Names come from programs that anybody may have written: they stand in the file as escaped text only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from zlib import crc32

from fleet.flamegraph_script import SCRIPT, STYLE
from fleet.flamegraph_tree import KERNEL_MARK, Node

WIDTH, ROW, MARGIN, TOP, BOTTOM = 1200, 17, 10, 62, 26
LEAST = 0.0004  # of the whole width: narrower frames are left out
LETTER = 6.6  # px


@dataclass(frozen=True)
class Box:
    """A frame in the drawing: its left edge and width as shares of the whole, its level from the root."""

    node: Node
    left: float
    width: float
    level: int


def boxes(root: Node) -> Iterator[Box]:
    """All frames that are wide enough to be seen, parents first."""
    whole = max(root.after, 1e-9)
    waiting = [Box(root, 0.0, 1.0, 0)]
    while waiting:
        box = waiting.pop()
        yield box
        left = box.left
        for name in sorted(box.node.children):
            child = box.node.children[name]
            width = child.after / whole
            if width >= LEAST:
                waiting.append(Box(child, left, width, box.level + 1))
            left += width


def duration(micros: float) -> str:
    """``1.23 s``, ``4.5 ms``."""
    if abs(micros) >= 1e6:
        return f"{micros / 1e6:.2f} s"
    return f"{micros / 1e3:.1f} ms" if abs(micros) >= 1e3 else f"{micros:.0f} µs"


def colour(node: Node, *, off_cpu: bool) -> str:
    """The fill of a frame: kernel and program apart, the same function always in the same shade."""
    shade = crc32(node.name.encode()) % 100
    if node.is_kernel:
        return f"hsl({200 + shade // 5} 55% {66 + shade // 8}%)"
    hue = 255 + shade // 3 if off_cpu else 20 + shade // 3
    return f"hsl({hue} {50 if off_cpu else 80}% {68 + shade // 9}%)"


def difference_colour(node: Node, root: Node) -> str:
    """Red where there is more of it than before, blue where less; the stronger, the more of the whole."""
    change = (node.after - node.before) / max(root.after, root.before, 1e-9)
    strength = min(1.0, abs(change) * 5) ** 0.5
    return f"hsl({8 if change > 0 else 220} {80 * strength:.0f}% {92 - 32 * strength:.0f}%)"


def draw(root: Node, title: str, subtitle: str, *, off_cpu: bool = False, differential: bool = False) -> str:
    """The file's text."""
    drawn = list(boxes(root))
    levels = max(box.level for box in drawn) + 1
    height = TOP + levels * ROW + BOTTOM
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="ui-monospace, Menlo, Consolas, monospace" font-size="11">',
        f"<style>{STYLE}</style>",
        '<rect width="100%" height="100%" fill="#fbfbfa"/>',
        f'<text x="{MARGIN}" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
        f'<text x="{MARGIN}" y="40" fill="#555">{escape(subtitle)}</text>',
        f'<text id="find" class="button" x="{WIDTH - 130}" y="22">search</text>',
        f'<text id="reset" class="button" x="{WIDTH - 60}" y="22">reset</text>',
        f'<text id="found" x="{WIDTH - 300}" y="40" fill="#a33"></text>',
        f'<text id="told" x="{MARGIN}" y="{height - 9}"></text>',
        '<g id="frames">',
        *(_frame(box, root, levels, off_cpu=off_cpu, differential=differential) for box in drawn),
        "</g>",
        f"<script><![CDATA[{SCRIPT}]]></script>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _frame(box: Box, root: Node, levels: int, *, off_cpu: bool, differential: bool) -> str:
    usable = WIDTH - 2 * MARGIN
    x, width = MARGIN + box.left * usable, max(box.width * usable, 0.4)
    y = TOP + (levels - 1 - box.level) * ROW
    fill = difference_colour(box.node, root) if differential else colour(box.node, off_cpu=off_cpu)
    room = int((width - 4) / LETTER)
    plain = _printable(box.node.name)
    shown = "" if room < 3 else plain if len(plain) <= room else plain[: room - 1] + "…"
    return (
        f'<g class="frame" data-x="{box.left:.6f}" data-w="{box.width:.6f}" data-l="{box.level}">'
        f"<title>{escape(plain + _figures(box.node, root, differential=differential))}</title>"
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 1}" rx="1.5" fill="{fill}"/>'
        f'<text x="{x + 3:.1f}" y="{y + 12}">{escape(shown)}</text></g>'
    )


def _printable(name: str) -> str:
    """Without the letters that no XML file may hold, and without the mark of the kernel's frames."""
    text = name.removesuffix(KERNEL_MARK)
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _figures(node: Node, root: Node, *, differential: bool) -> str:
    share = node.after / max(root.after, 1e-9)
    kernel = " (kernel)" if node.is_kernel else ""
    told = f"{kernel}: {duration(node.after)}, {share:.2%}"
    if not differential:
        return told
    was = node.before / max(root.before, 1e-9) if root.before else 0.0
    return f"{told}; before {duration(node.before)}, {was:.2%}; {100 * (share - was):+.2f} points"
