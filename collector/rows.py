"""Rows made on the host: dictionaries to columns. For a few rows every few seconds, not for events."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from schemas.columns import Column, Dictionary
from schemas.declare import Stream

Row = Mapping[str, Any]


def columns(stream: Stream, rows: Sequence[Row]) -> dict[str, Column]:
    """The columns of a stream made by the host; what a row leaves out is 0 or empty."""
    made: dict[str, Column] = {}
    for field in stream.fields:
        if field.avro_kind == "string":
            made[field.name] = _dictionary([str(row.get(field.name, "")) for row in rows])
        else:
            made[field.name] = np.array([row.get(field.name, 0) for row in rows], np.int64)
    return made


def _dictionary(texts: list[str]) -> Dictionary:
    place: dict[str, int] = {}
    index = [place.setdefault(text, len(place)) for text in texts]
    return Dictionary(list(place), np.array(index, np.uint32))
