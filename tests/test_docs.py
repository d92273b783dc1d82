"""The documentation is true: what exists is documented, and what is documented works."""

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click

from schemas import declare, docs
from schemas.config import settings

ROOT = Path(__file__).parents[1]
PAGES = {page: page.read_text() for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]}
ALL_TEXT = "\n".join(PAGES.values())


def commands() -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for entry in importlib.metadata.entry_points(group="bpfleet.commands"):
        loaded = entry.load()
        spoken = entry.name.replace(".", " ")
        found[spoken] = loaded
        if isinstance(loaded, click.Group):
            found |= {f"{spoken} {name}": each for name, each in loaded.commands.items()}
    return found


def test_every_command_is_documented() -> None:
    missing = [name for name in commands() if f"bpfleet {name}" not in ALL_TEXT]
    assert not missing


def test_every_command_helps() -> None:
    for name, command in commands().items():
        assert command.help and len(command.help) > 20, f"bpfleet {name} says nothing of itself"
        for each in command.params:
            if isinstance(each, click.Option) and not each.hidden:
                plain = (
                    each.name in ("json", "output", "limit", "form")
                    or each.help
                    or each.type.name == "choice"
                )
                assert plain or each.metavar or each.type.name, f"bpfleet {name} {each.opts}: no help"


def test_generated_pages_are_what_their_sources_say() -> None:
    for name, page in docs.GENERATED.items():
        assert (ROOT / "docs" / name).read_text() == page(), f"docs/{name}: run `make docs`"


def test_every_setting_and_stream_has_its_row() -> None:
    assert all(f"| `{name}` |" in PAGES[ROOT / "docs/settings.md"] for name in settings())
    assert all(f"## {name}\n" in PAGES[ROOT / "docs/streams.md"] for name in declare.streams())


def test_links_and_files_named_exist() -> None:
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
        for name in re.findall(
            r"`((?:schemas|collector|sinks|fleet|bpf|docs|deploy|tests|bench)/[\w./-]+\.\w+)`", text
        ):
            if not any(sample in name for sample in ("signals", "/x.")):
                assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_the_repository_speaks_of_bpfleet_alone() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    told = re.compile(
        "/" + r"work/(main|shared)|/\." + "library|"
        "pypi" + r"\.org|repo1" + r"\.maven|debian" + r"\.org/debian"
    )
    for name in listed.stdout.split():
        file = ROOT / name
        if (
            file.suffix in (".py", ".c", ".h", ".md", ".sh", ".yml", ".yaml", ".avsc", ".lock", ".toml", "")
            and file.is_file()
        ):
            assert not told.search(file.read_text(errors="replace")), name


def block(page: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGES[ROOT / "docs" / page], re.DOTALL)
    assert found
    return found[1]


def test_the_probe_of_the_guide_works_as_it_stands() -> None:
    """Adding a probe: its two files, as the page prints them; 23 signals are 23 rows."""
    from collector import loader
    from collector.ring import Ring
    from schemas import c_header, dtype

    probe = declare.parse("signals", json.loads(block("adding-a-probe.md", "json")))
    source = loader.Source("signals", text=block("adding-a-probe.md", "c"), header=c_header.generate(probe))
    result = loader.load([source])
    try:
        assert not result.failed
        ring = Ring(result.loaded["signals"].maps["signals"], dtype.event(probe.streams[0]))
        receiver = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
        for _ in range(22):
            os.kill(receiver.pid, signal.SIGCONT)
        os.kill(receiver.pid, signal.SIGKILL)
        receiver.wait()
        time.sleep(0.1)
        events = ring.read()
        ours = events[events["pid"] == receiver.pid]
        assert sorted(ours["signal"].tolist()) == [signal.SIGKILL] + 22 * [signal.SIGCONT]
        ring.close()
    finally:
        result.close()
