"""Rows made on the host: dictionaries to columns. For a few rows every few seconds, not for events."""

from schemas.rows import columns

__all__ = ["columns"]
