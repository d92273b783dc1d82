"""numpy dtypes that read the kernel's bytes in place: one per struct, padding left out, itemsize kept.

``u64`` is ``<u8``, ``u32[27]`` is ``(<u4, (27,))``, ``u8[16]`` is ``(u1, (16,))``, ``char[16]`` is ``S16``.
``np.frombuffer(raw, event(stream))["pid"]`` is a column. Values of per-CPU maps lie ``stride`` bytes apart
(a multiple of 8): give it to :func:`value`.
"""

from functools import cache
from typing import Any

import numpy as np

from schemas import layout
from schemas.declare import CType, Stream


@cache
def event(stream: Stream) -> "np.dtype[np.void]":
    """One event of a ring stream."""
    return _structured(layout.event(stream.fields))


@cache
def key(stream: Stream) -> "np.dtype[np.void]":
    """One key of an aggregate."""
    return _structured(layout.key(stream.fields))


@cache
def value(stream: Stream, stride: int = 0) -> "np.dtype[np.void]":
    """One value of an aggregate; ``stride`` where values lie further apart than their size."""
    return _structured(layout.value(stream.fields), stride)


def _structured(struct: layout.Layout, stride: int = 0) -> "np.dtype[np.void]":
    fields = [each for each in struct.members if not each.is_padding]
    return np.dtype(
        {
            "names": [each.name for each in fields],
            "formats": [_format(each.c) for each in fields],
            "offsets": [each.offset for each in fields],
            "itemsize": stride or struct.size,
        }
    )


def _format(c: CType) -> Any:
    if c.base == "char":
        return f"S{c.count}"
    one = f"<{c.base[0].replace('s', 'i')}{c.item_size}"
    return one if c.count is None else (one, (c.count,))
