"""`bpfleet drop`: rules of this host's filter, from the command line or a file; imports are late."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from schemas import config as settings

if TYPE_CHECKING:
    from collector.filter.host import Applied
    from collector.filter.local import Local

EXAMPLES = """\b
Examples:
  bpfleet drop local add 'udp and src port 53 and len > 500' --ttl 1h -i eth0
  bpfleet drop local list                            rules, what they matched, how long they live
  bpfleet drop local enforce rule-1                  after a look at what it would have dropped
  bpfleet drop local set bots bots.txt               then: src in @bots
  bpfleet drop local allow 10.0.0.0/8                no rule touches these
  bpfleet drop local apply rules.yaml                everything at once
"""
INTERFACE = click.option(
    "--interface", "-i", "interfaces", multiple=True, metavar="NAME",
    help="Where the filter is put; said once, it stays.",
)  # fmt: skip
MODE = click.option(
    "--xdp", "mode", type=click.Choice(["auto", "native", "generic"]), default="auto",
    help="How it is attached: by the driver or by the stack.",
)  # fmt: skip


@click.group(epilog=EXAMPLES)
@click.option("--instance", default="", hidden=True, help="Another filter, by its pins' name.")
@click.pass_context
def local(ctx: click.Context, instance: str) -> None:
    """The filter of this host alone, without Kafka: its rules live in state_dir."""
    from collector import xdp
    from collector.filter import place
    from collector.filter.local import Local

    config = ctx.obj if isinstance(ctx.obj, settings.Config) else settings.load()
    directory = Path(config.state_dir) / (instance or place.DIRECTORY)
    pins = instance or config.collector.filter_pins or place.instance()
    balancer = xdp.PINS / config.collector.lb_pins
    ctx.obj = Local(directory, config.collector.labels, pins, balancer)


def _said(applied: "Applied", what: str) -> None:
    click.echo(f"{what} ({applied.seconds:.2f} s)")


@local.command()
@click.argument("expression")
@click.option("--ttl", required=True, help="How long it lives: 30s, 15m, 2h, 7d. The kernel ends it.")
@click.option("--id", "name", default="", help="Its name; default: rule-N.")
@click.option("--action", default="drop", help="drop, pass, sample, or `limit N pps per source /32`.")
@click.option("--enforce", "enforced", is_flag=True, help="At once; default: shadow, count and sample only.")
@click.option("--first", is_flag=True, help="Before all other rules; default: behind them.")
@click.option("--sample", default=200, help="Samples per second.")
@click.option("--comment", default="", help="Why.")
@INTERFACE
@MODE
@click.pass_obj
def add(
    own: "Local", expression: str, ttl: str, name: str, action: str, enforced: bool, first: bool,
    sample: int, comment: str, interfaces: tuple[str, ...], mode: str,
) -> None:  # fmt: skip
    """Add a rule: EXPRESSION is pcap-filter(7), `src|dst in @SET` and `state new|established`."""
    import getpass

    import msgspec

    from collector.filter.language import Rule
    from collector.filter.local import adding
    from schemas.errors import UsageError

    taken = {each.id for each in own.state.document.rules}
    name = name or next(f"rule-{n}" for n in range(1, len(taken) + 2) if f"rule-{n}" not in taken)
    tree = {
        "id": name, "ttl": ttl, "match": expression, "action": action, "sample": sample, "comment": comment,
        "mode": "enforce" if enforced else "shadow", "author": getpass.getuser(), "created": int(time.time()),
    }  # fmt: skip
    try:
        rule = msgspec.convert(tree, Rule)
    except msgspec.ValidationError as error:
        raise UsageError(f"rule {name}: {error}") from None
    _said(own.change(adding(rule, first), f"add {name}", interfaces, mode), f"{name}: {rule.mode}")


@local.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_obj
def list_(own: "Local", as_json: bool) -> None:
    """Show the rules in their order, what they matched and how long they still live."""
    counts = {(each.rule, each.verdict): each.packets for each in own.counts()}
    if not as_json:
        click.echo(f"{'rule':20} {'mode':8} {'left':>8} {'dropped':>12} {'shadow':>12} {'passed':>12}  match")
    for rule in own.state.document.rules:
        seen = [counts.get((rule.id, verdict), 0) for verdict in ("drop", "shadow", "pass")]
        left = max(0, round(rule.expires - time.time()))
        if as_json:
            row = {"rule": rule.id, "mode": rule.mode, "action": rule.action, "seconds_left": left}
            click.echo(json.dumps(row | dict(zip(("dropped", "shadow", "passed"), seen, strict=True))))
        else:
            numbers = " ".join(f"{each:12d}" for each in seen)
            click.echo(f"{rule.id:20} {rule.mode:8} {left:7d}s {numbers}  {rule.content}")


@local.command()
@click.argument("name")
@click.pass_obj
def show(own: "Local", name: str) -> None:
    """Print a rule whole, as a file for `drop apply` holds it, and its classic BPF."""
    import msgspec
    import yaml

    from schemas.errors import UsageError
    from schemas.filter import expression_of
    from schemas.filter_expression import compile_expression

    rule = next((each for each in own.state.document.rules if each.id == name), None)
    if rule is None:
        raise UsageError(f"there is no rule {name}; `bpfleet drop local list` shows those there are")
    click.echo(yaml.safe_dump(msgspec.to_builtins(rule), sort_keys=False).rstrip())
    for at, each in enumerate(compile_expression(expression_of(rule)).instructions):
        click.echo(f"# {at:4d}: code {each.code:#04x} jt {each.jt} jf {each.jf} k {each.k:#x}")


@local.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def rm(own: "Local", names: tuple[str, ...]) -> None:
    """Remove rules; what they counted goes with them."""
    from collector.filter.local import editing

    _said(own.change(editing(names, lambda _: None), f"rm {' '.join(names)}"), "removed")


def _mode(own: "Local", names: tuple[str, ...], mode: str) -> None:
    import msgspec

    from collector.filter.local import editing

    change = editing(names, lambda rule: msgspec.structs.replace(rule, mode=mode))
    _said(own.change(change, f"{mode} {' '.join(names)}"), mode)


@local.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def shadow(own: "Local", names: tuple[str, ...]) -> None:
    """Let rules count and sample only."""
    _mode(own, names, "shadow")


@local.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def enforce(own: "Local", names: tuple[str, ...]) -> None:
    """Put rules in force: from now on they drop or limit."""
    _mode(own, names, "enforce")


@local.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@INTERFACE
@MODE
@click.pass_obj
def apply(own: "Local", file: Path, interfaces: tuple[str, ...], mode: str) -> None:
    """Make FILE (YAML: allow, sets, rules) all there is; refused whole if anything in it is wrong."""
    from collector.filter.local import replacing

    _said(own.change(replacing(file), f"apply {file.name}", interfaces, mode), "applied")


@local.command("set")
@click.argument("name")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@INTERFACE
@click.pass_obj
def set_(own: "Local", name: str, file: Path, interfaces: tuple[str, ...]) -> None:
    """Make the address set NAME hold the prefixes of FILE, one a line."""
    import msgspec

    from schemas.filter_file import prefixes_of

    prefixes = prefixes_of(file)
    applied = own.change(
        lambda document: msgspec.structs.replace(document, sets={**document.sets, name: prefixes}),
        f"set {name}: {len(prefixes)} prefixes",
        interfaces,
    )
    _said(applied, f"@{name}: {len(prefixes)} prefixes")


@local.command()
@click.argument("prefixes", nargs=-1)
@INTERFACE
@click.pass_obj
def allow(own: "Local", prefixes: tuple[str, ...], interfaces: tuple[str, ...]) -> None:
    """Make PREFIXES the allow-list: frames from or to them meet no rule."""
    import msgspec

    applied = own.change(
        lambda document: msgspec.structs.replace(document, allow=list(prefixes)),
        f"allow {' '.join(prefixes)}",
    )
    _said(applied, f"{len(prefixes)} prefixes allowed")


@local.command()
@click.pass_obj
def log(own: "Local") -> None:
    """Show who changed what, when, and which rules' time came to its end."""
    for each in own.log():
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.pop("ts")))
        click.echo(f"{when}  {each.pop('who'):12} {each.pop('what')}  {json.dumps(each)}")


@local.command()
@click.confirmation_option(prompt="Take the filter off all interfaces and forget its rules?")
@click.pass_obj
def remove(own: "Local") -> None:
    """Take the filter off this host."""
    own.remove()
    click.echo("removed")
