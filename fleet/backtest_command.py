"""``bpfleet drop backtest``: what a rule would have dropped in the past, over the whole fleet."""

import json
from pathlib import Path
from typing import Any

import click

from schemas import desired
from schemas.config import Config
from schemas.errors import UsageError
from schemas.rows import time_text

EXAMPLES = """\b
Examples:
  bpfleet drop backtest 'udp and src port 53 and len > 500' --since 7d
  bpfleet drop backtest 'src in @bots and state new' --set bots=bots.txt --since 1h
  bpfleet drop backtest 'tcp[tcpflags] & tcp-syn != 0 and len = 54' --json | jq .legitimate.packets
"""


@click.command(epilog=EXAMPLES)
@click.argument("expression")
@click.option("--since", default="7d", show_default=True, help="How far back: 15m, 2h, 7d.")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="NAME=FILE",
    help="Prefixes of @NAME, one a line; default: the fleet's own set.",
)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.pass_context
def backtest(ctx: click.Context, expression: str, since: str, sets: tuple[str, ...], as_json: bool) -> None:
    """What EXPRESSION would have dropped in the past, attack and legitimate traffic apart."""
    from fleet.backtest import backtest as run
    from fleet.samples import reader

    config: Config = ctx.find_root().obj
    client = reader(config.clickhouse)
    try:
        result = run(client, config.clickhouse, expression, desired.seconds(since), _sets(sets))
    finally:
        client.close()
    if as_json:
        click.echo(json.dumps(tree(result)))
    else:
        _print(result)


def _sets(pairs: tuple[str, ...]) -> dict[str, list[str]]:
    found = {}
    for pair in pairs:
        name, separator, file = pair.partition("=")
        if not separator:
            raise UsageError(f"--set takes NAME=FILE, not `{pair}`")
        try:
            lines = Path(file).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read {file}: {error}; --set takes NAME=FILE") from None
        found[name] = [text for line in lines if (text := line.partition("#")[0].strip())]
    return found


def tree(result: Any) -> dict[str, Any]:
    """The answer for machines."""
    return {
        "expression": result.expression, "begin": time_text(result.begin), "end": time_text(result.end),
        "hosts": result.hosts, "samples": result.samples, "packets": result.packets, "bytes": result.volume,
        "examined": result.examined, "legitimate_share": result.legitimate_share,
        "attacks": result.attacks, "attack": _part(result, "attack"),
        "legitimate": _part(result, "legitimate"),
    }  # fmt: skip


def _part(result: Any, name: str) -> dict[str, Any]:
    part = getattr(result, name)
    error = 1.96 * part.error2**0.5
    if not part.samples and result.samples:  # of what is one packet in `weight`, 5 % show no sample of three
        weight = result.packets / result.samples
        error = 3 * weight if weight > 1 else 0.0
    return {
        "samples": part.samples, "packets": part.packets, "bytes": part.volume,
        "error": round(error), "hosts": len(part.hosts),
        "peak_pps": part.peak_pps, "mean_pps": round(part.mean_pps, 1),
        "sources": part.top("sources"), "destinations": part.top("destinations"),
    }  # fmt: skip


def _print(result: Any) -> None:
    from fleet.sql import console, table

    rows = []
    for name in ("attack", "legitimate"):
        part = _part(result, name)
        rows.append((
            name, part["samples"], f"{part['packets']:,} ± {part['error']:,}", f"{part['bytes']:,}",
            part["peak_pps"], part["mean_pps"], part["hosts"], ", ".join(part["sources"]),
            ", ".join(part["destinations"]),
        ))  # fmt: skip
    names = (
        "would drop",
        "samples",
        "packets",
        "bytes",
        "peak pps",
        "mean pps",
        "hosts",
        "sources",
        "targets",
    )
    console().print(table(names, rows))
    click.echo(
        f"of {result.packets:,} packets on {result.hosts} hosts since {time_text(result.begin)[:19]}Z: "
        f"{result.legitimate_share:.4%} of the legitimate ones"
        f" ({result.examined:,} of {result.samples:,} samples judged by libpcap)"
    )
    for name, packets in result.attacks.items():
        click.echo(f"  of attack {name}: {packets:,} packets")
    if not result.samples:
        click.echo("no samples at all in that time; is the filter attached, and the sink running?")
