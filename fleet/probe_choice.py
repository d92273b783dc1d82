"""What `bpfleet probe run` was asked for: a ready probe, a file, one line, options; or some of each."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from schemas import probe_spec
from schemas.errors import UsageError
from schemas.probe_spec import Spec

LIBRARY = Path(__file__).with_name("probe_library")
MAX_BYTES = 64 << 10


@dataclass(frozen=True)
class Choice:
    """A name to call it by, and the checked spec as plain data."""

    name: str
    spec: dict[str, Any]


def ready() -> dict[str, Path]:
    """The ready probes by name."""
    return {file.stem: file for file in sorted(LIBRARY.glob("*.yaml"))}


def read(file: Path) -> Spec:
    """A probe from YAML or JSON. Raises :class:`UsageError`."""
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
    if len(text) > MAX_BYTES:
        raise UsageError(f"{file} is too long for a probe")
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not YAML: {' '.join(str(error).split())[:200]}") from None
    try:
        return probe_spec.convert(tree)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None


def choose(what: str, options: Mapping[str, Any]) -> Choice:
    """``what`` (may be empty), and options that replace parts of it. Raises :class:`UsageError`."""
    given = {name: value for name, value in options.items() if value not in (None, "", ())}
    name, spec = _base(what)
    tree = (msgspec.to_builtins(spec) if spec else {}) | given
    if "at" not in tree:
        raise UsageError(
            "which probe? name one of `bpfleet probe library`, a file, or write: count syscall:openat by comm"
        )
    checked = probe_spec.check(tree)
    return Choice(name or _slug(checked), msgspec.json.decode(msgspec.json.encode(checked.spec)))


def _base(what: str) -> tuple[str, Spec | None]:
    if not what:
        return "", None
    known = ready()
    if what in known:
        return what, read(known[what])
    file = Path(what)
    if file.suffix in (".yaml", ".yml", ".json"):
        return file.stem, read(file)
    if " " not in what.strip():
        raise UsageError(f"there is no probe `{what}`; `bpfleet probe library` lists those that are ready")
    return "", probe_spec.one_line(what)


def _slug(checked: probe_spec.Checked) -> str:
    """A name from the point: ``syscall-openat``."""
    return re.sub(r"[^a-z0-9]+", "-", str(checked.at).lower()).strip("-")[-60:]
