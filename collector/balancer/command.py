"""`bpfleet lb`: the balancer of this host, from a file or change by change; imports are late."""

import json
from typing import TYPE_CHECKING, Any

import click

from collector.balancer.decapsulate_command import decapsulate
from schemas import config as settings
from schemas.errors import BpfleetError, UsageError

if TYPE_CHECKING:
    from collector.balancer.state import State
    from schemas.lb import Balancer, Limits

EXAMPLES = """\b
Examples:
  bpfleet lb diff lb.yaml                      what applying the file would change
  bpfleet lb apply lb.yaml                     change it; flows go on
  bpfleet lb real drain web 10.0.0.3           no new flows for this real
  bpfleet lb show                              VIPs, reals, their share and traffic
  bpfleet lb explain 'tcp 192.0.2.7:4711 -> 198.51.100.1:443'
"""


@click.group(epilog=EXAMPLES)
@click.option(
    "--instance", default="lb", hidden=True, help="Another balancer on this host, by its pins' name."
)
@click.pass_context
def lb(ctx: click.Context, instance: str) -> None:
    """Balance connections to VIPs over reals, in XDP; this host's own balancer."""
    loaded = ctx.obj if isinstance(ctx.obj, settings.Config) else None
    ctx.obj = (loaded, instance)


lb.add_command(decapsulate)


def _open(ctx: click.Context, limits: "Limits | None" = None) -> "State":
    from collector import xdp
    from collector.balancer.state import State

    loaded, instance = ctx.obj
    if limits is None and not (xdp.PINS / instance).exists():
        raise BpfleetError("no balancer runs on this host; start one with `bpfleet lb apply FILE`")
    return State.open(loaded or settings.load(), xdp.PINS / instance, limits)


@lb.command()
@click.argument("file", type=click.Path())
@click.pass_context
def apply(ctx: click.Context, file: str) -> None:
    """Make the balancer what FILE says: all of it, or nothing and the reason."""
    from schemas import lb as model

    wanted = model.load(file)
    with _open(ctx, wanted.limits) as state:
        _apply(state, wanted)


def _apply(state: "State", wanted: "Balancer") -> None:
    changes = state.changes(wanted)
    state.apply(wanted)
    for line in changes or ["nothing to change"]:
        click.echo(line)


@lb.command()
@click.argument("file", type=click.Path())
@click.pass_context
def diff(ctx: click.Context, file: str) -> None:
    """Print what `apply FILE` would change. Exit code 1 if anything."""
    from collector import xdp
    from schemas import lb as model
    from schemas import lb_edit as edit

    wanted = model.load(file)
    if (xdp.PINS / ctx.obj[1]).exists():
        with _open(ctx) as state:
            changes = state.changes(wanted)
    else:
        changes = edit.changes(model.Balancer(), wanted)
    for line in changes:
        click.echo(line)
    ctx.exit(bool(changes))


@lb.command()
@click.confirmation_option(prompt="Detach the balancer and forget its state? Flows through it end.")
@click.pass_context
def remove(ctx: click.Context) -> None:
    """Take the balancer off this host: program, maps, state."""
    with _open(ctx) as state:
        state.remove()


@lb.group()
def vip() -> None:
    """Add, change and remove VIPs."""


@lb.group()
def real() -> None:
    """Add, change, drain and remove the reals of a VIP."""


def _fields(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``weight=50 drain=true`` as a tree."""
    import yaml

    fields = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"not a setting: {pair!r}; write it like weight=50")
        fields[name] = yaml.safe_load(text)
    return fields


@vip.command("add")
@click.argument("name")
@click.argument("settings_", metavar="SETTING=VALUE...", nargs=-1, required=True)
@click.option(
    "--real", "reals", multiple=True, required=True, metavar="ADDRESS", help="A first real; again for more."
)
@click.pass_context
def vip_add(ctx: click.Context, name: str, settings_: tuple[str, ...], reals: tuple[str, ...]) -> None:
    """Add VIP NAME: `vip add web address=198.51.100.1 port=443 --real 10.0.0.1`."""
    from schemas import lb_edit as edit

    fields = {**_fields(settings_), "reals": [{"address": each} for each in reals]}
    with _open(ctx) as state:
        _apply(state, edit.set_vip(state.applied, name, fields, new=True))


@vip.command("set")
@click.argument("name")
@click.argument("settings_", metavar="SETTING=VALUE...", nargs=-1, required=True)
@click.pass_context
def vip_set(ctx: click.Context, name: str, settings_: tuple[str, ...]) -> None:
    """Change settings of VIP NAME: `vip set web sample=1024`."""
    from schemas import lb_edit as edit

    with _open(ctx) as state:
        _apply(state, edit.set_vip(state.applied, name, _fields(settings_), new=False))


@vip.command("rm")
@click.argument("name")
@click.pass_context
def vip_rm(ctx: click.Context, name: str) -> None:
    """Remove VIP NAME with its reals."""
    from schemas import lb_edit as edit

    with _open(ctx) as state:
        _apply(state, edit.remove_vip(state.applied, name))


def _set_real(ctx: click.Context, vip: str, address: str, fields: dict[str, Any], *, new: bool) -> None:
    from schemas import lb_edit as edit

    with _open(ctx) as state:
        _apply(state, edit.set_real(state.applied, vip, address, fields, new=new))


@real.command("add")
@click.argument("vip")
@click.argument("address")
@click.argument("settings_", metavar="[SETTING=VALUE]...", nargs=-1)
@click.pass_context
def real_add(ctx: click.Context, vip: str, address: str, settings_: tuple[str, ...]) -> None:
    """Add a real to VIP: `real add web 10.0.0.4 weight=50`."""
    _set_real(ctx, vip, address, _fields(settings_), new=True)


@real.command("set")
@click.argument("vip")
@click.argument("address")
@click.argument("settings_", metavar="SETTING=VALUE...", nargs=-1, required=True)
@click.pass_context
def real_set(ctx: click.Context, vip: str, address: str, settings_: tuple[str, ...]) -> None:
    """Change a real of VIP: `real set web 10.0.0.4 weight=100 drain=false`."""
    _set_real(ctx, vip, address, _fields(settings_), new=False)


@real.command("drain")
@click.argument("vip")
@click.argument("address")
@click.pass_context
def real_drain(ctx: click.Context, vip: str, address: str) -> None:
    """Send a real of VIP no new flows; those it has go on."""
    _set_real(ctx, vip, address, {"drain": True}, new=False)


@real.command("rm")
@click.argument("vip")
@click.argument("address")
@click.pass_context
def real_rm(ctx: click.Context, vip: str, address: str) -> None:
    """Remove a real from VIP; flows it still has end."""
    from schemas import lb_edit as edit

    with _open(ctx) as state:
        _apply(state, edit.remove_real(state.applied, vip, address))


@lb.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_context
def show(ctx: click.Context, as_json: bool) -> None:
    """Show VIPs, reals, their share of the ring, traffic, and how often each reason occurred."""
    from collector.balancer import show as view

    with _open(ctx) as state:
        found = view.collect(state)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(view.lines(found)))


@lb.command()
@click.argument("flow")
@click.pass_context
def explain(ctx: click.Context, flow: str) -> None:
    """Say where a packet of FLOW goes, and why: 'tcp 192.0.2.7:4711 -> 198.51.100.1:443'."""
    from collector.balancer import explain as view
    from collector.balancer.flow import Flow

    parsed = Flow.parse(flow)
    with _open(ctx) as state:
        found = view.explain(state, parsed)
    click.echo("\n".join(view.lines(parsed, found)))


@lb.command()
@click.pass_context
def watch(ctx: click.Context) -> None:
    """Check the health of reals until interrupted; print each transition as a line of JSON."""
    import dataclasses

    from collector import xdp
    from collector.balancer import health

    loaded, instance = ctx.obj
    _open(ctx).__exit__(None, None, None)

    def report(transition: health.Transition) -> None:
        click.echo(json.dumps(dataclasses.asdict(transition)))

    health.run(loaded or settings.load(), xdp.PINS / instance, report)
