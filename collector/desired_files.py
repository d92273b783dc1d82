"""Desired state from the host's own disk: its administrator's YAML or JSON, looked at twice a second.

Such a file needs no signature: who may write it may also write the list of trusted keys. One that others
could have written is refused. What is left out is filled in from the file: revision and creation are its
modification time, ``ttl: 2h`` counts from there.
"""

import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from collector.desired_ledger import Accepted
from schemas import desired
from schemas.config import Config
from schemas.desired import MAX_BYTES, Document, Kind, Refused, now_us
from schemas.errors import BpfleetError

SUFFIXES = {".yaml", ".yml", ".json"}
LOOK_S = 0.45
Mark = tuple[int, int, int]  # modification time in ns, size, inode


class DesiredFiles:
    """The documents of ``collector.desired_dir`` that are sound. For one thread."""

    def __init__(self, config: Config, kinds: Mapping[str, Kind]) -> None:
        self._path = Path(config.collector.desired_dir) if config.collector.desired_dir else None
        self._host, self._labels, self._kinds = config.host, dict(config.collector.labels), kinds
        self._marks: dict[Path, Mark] = {}
        self._by_file: dict[Path, dict[str, Accepted]] = {}
        self._look_at = 0.0
        self.refusals: list[tuple[str, str]] = []  # of the last look: file, reason
        self.fresh: list[Accepted] = []  # what the last look accepted

    @property
    def configured(self) -> bool:
        """Whether this host has such files."""
        return self._path is not None

    @property
    def documents(self) -> dict[str, Accepted]:
        """All that is sound, by name; of two with one name the alphabetically first file's."""
        merged: dict[str, Accepted] = {}
        for file in sorted(self._by_file, reverse=True):
            merged |= self._by_file[file]
        return merged

    def poll(self) -> bool:
        """Look, if it is time; whether something changed.

        A file that became unreadable or unsound keeps the documents that it had; one that is gone has none.
        """
        self.refusals, self.fresh = [], []
        now = time.monotonic()
        if self._path is None or now < self._look_at:
            return False
        self._look_at = now + LOOK_S
        marks = self._find(self._path)
        changed = marks.keys() ^ self._marks.keys()
        changed |= {file for file in marks.keys() & self._marks.keys() if marks[file] != self._marks[file]}
        self._marks = marks
        for file in sorted(changed):
            if file in marks:
                self._read(file)
            else:
                self._by_file.pop(file, None)
        return bool(changed)

    def _find(self, path: Path) -> dict[Path, Mark]:
        try:
            files = sorted(each for each in path.iterdir()) if path.is_dir() else [path]
        except OSError as error:
            self.refusals.append((str(path), f"cannot be read: {error.strerror}"))
            return self._marks
        found: dict[Path, Mark] = {}
        for file in files:
            if path.is_dir() and (file.suffix not in SUFFIXES or file.name.startswith(".")):
                continue
            try:
                seen = file.stat()
            except OSError:
                continue
            if stat.S_ISREG(seen.st_mode):
                found[file] = (seen.st_mtime_ns, seen.st_size, seen.st_ino)
        return found

    def _read(self, file: Path) -> None:
        """Take a file whole, or not at all."""
        try:
            text, modified_us = own_text(file)
            accepted = [self._accept(tree, file, modified_us) for tree in _parse(text)]
        except (OSError, ValueError, RecursionError, BpfleetError) as error:
            self.refusals.append((file.name, " ".join(str(error).split())))
            return
        before = self._by_file.get(file, {})
        now = {each.document.name: each for each in accepted}
        for name, each in now.items():
            if name in before and before[name].digest == each.digest:
                now[name] = before[name]
            else:
                self.fresh.append(each)
        self._by_file[file] = now

    def _accept(self, tree: Any, file: Path, modified_us: int) -> Accepted:
        if not isinstance(tree, dict):
            raise Refused("expected a mapping with kind, id and spec")
        tree = {"revision": modified_us, "created": modified_us, "author": f"file {file}", **tree}
        if "ttl" in tree:
            tree["expires"] = modified_us + desired.seconds(str(tree.pop("ttl"))) * 1_000_000
        try:
            document = desired.checked(msgspec.convert(tree, Document))
        except msgspec.ValidationError as error:
            raise Refused(str(error).replace("`$.", "`")) from None
        kind = self._kinds.get(document.kind)
        if kind is None:
            raise Refused(f"this collector knows no kind `{document.kind}`")
        kind.judge(document)
        mine = document.scope.covers(self._host, self._labels)
        return Accepted(document, document.digest, "", "file", mine, document.expires, time.monotonic())


def own_text(file: Path) -> tuple[str, int]:
    """Content and modification time in µs. Raises :class:`Refused` when others could have written it."""
    with file.open("rb") as source:
        seen = os.fstat(source.fileno())
        if seen.st_uid not in (0, os.geteuid()) or seen.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise Refused("others may write it; chown it to root and chmod 644")
        data = source.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise Refused(f"larger than {MAX_BYTES:,} bytes; split it")
    return data.decode(), min(seen.st_mtime_ns // 1000, now_us())


def _parse(text: str) -> list[Any]:
    import yaml

    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Refused(f"not valid YAML: {error}") from None
    return tree if isinstance(tree, list) else [] if tree is None else [tree]
