"""``python -m bench [NAME…]``: run the benchmarks, print their tables, keep them in docs/benchmarks.md."""

import importlib
import os
import platform
import sys
import time
from pathlib import Path

from bench.common import Row

TABLE = 6  # lines of a section before its figures
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Written by `make bench`. Every figure is from the run named under its title; each ratio compares two things
measured in turns within that run, as minimum/median. Virtual machines are noisy: trust ratios, not times.
"""


def names() -> list[str]:
    """Every module here that has figures."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(each.stem for each in files if "\ndef run(" in each.read_text())


def section(name: str, rows: list[Row], seconds: float, before: str = "") -> str:
    """One module's figures as Markdown; a run of a part keeps the other lines of ``before``."""
    module = importlib.import_module(f"bench.{name}")
    title = (module.__doc__ or name).strip().splitlines()[0].rstrip(".")
    lines = [
        f"## {name}\n",
        f"{title}. Measured {time.strftime('%Y-%m-%d')} on Linux {platform.release().split('-')[0]}, "
        f"{_cores()} cores, in {seconds:.0f} s.\n",
        "| what | ours | against | ratio (min/median) | to reach | |",
        "|---|---|---|---|---|---|",
    ]
    made = []
    for row in rows:
        verdict = "" if row.met is None else "reached" if row.met else "**missed**"
        cells = (row.name, row.ours, row.peer, row.ratio, row.target, verdict)
        made.append("| " + " | ".join(each or "—" for each in cells) + " |")
    renewed = {_title(line) for line in made}
    old = [
        line for line in before.splitlines()[TABLE:] if line.startswith("| ") and _title(line) not in renewed
    ]
    return "\n".join(lines + (sorted(old + made) if old else made)) + "\n"


def _title(line: str) -> str:
    return line.split(" | ", maxsplit=1)[0]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def main() -> int:
    """Run what was asked for, or everything; 1 when a target was missed."""
    wanted = sys.argv[1:] or names()
    kept = _sections()
    missed = 0
    for name in wanted:
        print(f"▸ {name}", flush=True)
        begun = time.monotonic()
        rows = importlib.import_module(f"bench.{name}").run()
        before = kept.get(name, "") if os.environ.get("BENCH_TABLES") else ""
        kept[name] = section(name, rows, time.monotonic() - begun, before)
        print(kept[name], flush=True)
        missed += sum(row.met is False for row in rows)
        PAGE.write_text(HEAD + "\n" + "\n".join(kept[each] for each in sorted(kept)))
    return 1 if missed else 0


def _sections() -> dict[str, str]:
    """What the page holds already, by module: one run may renew only a part."""
    if not PAGE.exists():
        return {}
    parts = PAGE.read_text().split("\n## ")[1:]
    found = {part.splitlines()[0].strip(): "## " + part.rstrip("\n") + "\n" for part in parts}
    return {name: text for name, text in found.items() if name in names()}


if __name__ == "__main__":
    sys.exit(main())
