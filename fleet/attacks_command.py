"""``bpfleet attacks``: each attack as one record, its steps, and its samples as a capture."""

import json
import struct
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import click

from schemas import desired
from schemas.config import Config
from schemas.errors import BpfleetError
from schemas.rows import time_text

# https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-05.html: µs, version 2.4, Ethernet.
PCAP_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 1)
EXAMPLES = """\b
Examples:
  bpfleet attacks list --since 30d
  bpfleet attacks show 20261122-2104-3f2a           what happened, step by step
  bpfleet attacks pcap 20261122-2104-3f2a -o f.pcap then: tshark -r f.pcap
"""
SINCE = click.option("--since", default="7d", show_default=True, help="How far back: 15m, 2h, 7d.")
JSON = click.option("--json", "as_json", is_flag=True, help="For machines.")


@click.group(epilog=EXAMPLES)
def attacks() -> None:
    """What attacked whom, what was done about it, and what it cost."""


@attacks.command("list")
@SINCE
@JSON
@click.pass_obj
def list_(config: Config, since: str, as_json: bool) -> None:
    """Attacks, oldest first; those that go on are there however old they are."""
    from fleet.attacks import listed
    from fleet.samples import reader

    seconds = desired.seconds(since)
    client = reader(config.clickhouse)
    try:
        found = listed(client, config.clickhouse, seconds)
    finally:
        client.close()
    if as_json:
        click.echo(json.dumps([tree(each) for each in found], indent=2))
        return
    from fleet.sql import console, table

    names = ("attack", "state", "began", "lasted", "target", "vectors", "peak pps", "peak Mbit/s", "hosts",
             "to drop", "dropped", "lost")  # fmt: skip
    console().print(table(names, [_line(each) for each in found]))


def _line(attack: Any) -> tuple[Any, ...]:
    drop, share = attack.seconds_to_drop, attack.share_dropped
    lasted = (attack.ended - attack.began) / 1e6 if attack.ended else None
    duration = "goes on" if lasted is None else f"{lasted:.0f} s"
    return (
        attack.id, attack.state, time_text(attack.began)[:19], duration,
        attack.target, attack.vectors, attack.peak_pps, round(attack.peak_bps / 1e6, 1),
        len(attack.hosts.split(",")) if attack.hosts else 0, "" if drop is None else f"{drop:.2f} s",
        "" if share is None else f"{share:.2%}", _lost(attack),
    )  # fmt: skip


def _lost(attack: Any) -> str:
    share = attack.legitimate_lost / attack.legitimate if attack.legitimate else 0.0
    return f"{attack.legitimate_lost} of {attack.legitimate} ({share:.3%})"


def tree(attack: Any) -> dict[str, Any]:
    """An attack for machines."""
    made = asdict(attack)
    for name in ("began", "detected", "ended", "first_drop"):
        made[name] = time_text(made[name]) if made[name] else None
    for name in ("vectors", "hosts", "rules"):
        made[name] = [each.strip() for each in made[name].split(",") if each.strip()]
    return made | {
        "sources": attack.top_sources, "seconds_to_drop": attack.seconds_to_drop,
        "share_dropped": attack.share_dropped,
    }  # fmt: skip


@attacks.command()
@click.argument("attack", metavar="ID")
@JSON
@click.pass_obj
def show(config: Config, attack: str, as_json: bool) -> None:
    """One attack whole, and each step of its mitigation. ID may be shortened."""
    from fleet.attacks import STEPS, ask, one
    from fleet.samples import reader

    client = reader(config.clickhouse)
    try:
        found = one(client, config.clickhouse, attack)
        steps = ask(client, config.clickhouse, STEPS, {"id": found.id})
    finally:
        client.close()
    names = ("ts", "event", "vector", "rule", "pps", "packets", "legitimate", "hosts", "after_us",
             "expression", "reason")  # fmt: skip
    rows = [dict(zip(names, row, strict=True)) for row in steps]
    if as_json:
        click.echo(json.dumps(tree(found) | {"steps": rows}, default=str, indent=2))
        return
    from fleet.sql import console, table

    for name, value in tree(found).items():
        if name == "expression":
            continue  # longer than a screen; --json has it
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        click.echo(f"{name:>16}  {shown}")
    columns = ("after", "event", "vector", "rule", "pps", "packets", "legitimate", "hosts", "reason")
    made = [(f"{row['after_us'] / 1e6:+.2f} s", *(row[name] for name in columns[1:])) for row in rows]
    console().print(table(columns, made))


@attacks.command()
@click.argument("attack", metavar="ID")
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.pass_obj
def pcap(config: Config, attack: str, output: Path) -> None:
    """An attack's samples as a capture: the first 128 bytes of each, dropped and passed."""
    from fleet.attacks import one, samples
    from fleet.samples import reader
    from schemas.desired import now_us

    client = reader(config.clickhouse)
    try:
        found = one(client, config.clickhouse, attack)
        with output.open("wb") as file:
            count = write_pcap(file, samples(client, config.clickhouse, found, now_us()))
    except OSError as error:
        raise BpfleetError(f"cannot write {output}: {error.strerror}; choose another -o FILE") from None
    finally:
        client.close()
    click.echo(f"{output}: {count:,} samples of attack {found.id}, {found.packets:,} packets estimated")


def write_pcap(file: BinaryIO, blocks: Iterable[Any]) -> int:
    """Samples as a pcap file of Ethernet frames; how many they are."""
    file.write(PCAP_HEADER)
    count = 0
    for block in blocks:
        times = block["ts"].tolist()
        sizes = zip(block["captured"].tolist(), block["length"].tolist(), block["raw"], strict=True)
        for ts, (captured, length, raw) in zip(times, sizes, strict=True):
            file.write(struct.pack("<IIII", ts // 1_000_000, ts % 1_000_000, captured, length))
            file.write(raw[:captured].tobytes())
        count += len(block)
    return count
