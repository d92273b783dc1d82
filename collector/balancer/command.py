"""`bpfleet lb local`, and what else of `bpfleet lb` is about this host; imports are late.

Commands of one group may come from several stages: pyproject.toml says which (`lb.show`).
"""

import json
from typing import TYPE_CHECKING, Any

import click

from schemas import config as settings
from schemas.errors import BpfleetError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from collector.balancer.state import State
    from schemas.lb import Balancer, Limits

EXAMPLES = """\b
Examples:
  bpfleet lb local diff lb.yaml                what applying the file would change
  bpfleet lb local apply lb.yaml               change it; flows go on
  bpfleet lb local real drain web 10.0.0.3     no new flows for this real
"""


@click.group(epilog=EXAMPLES)
def local() -> None:
    """Change this host's own balancer at once, without Kafka, where no document governs it."""


def _open(ctx: click.Context, limits: "Limits | None" = None) -> "State":
    from collector.balancer.state import State

    place = _place(ctx)
    if limits is None and not place.exists():
        raise BpfleetError("no balancer runs on this host; start one with `bpfleet lb local apply FILE`")
    return State.open(_config(ctx), place, limits)


def _config(ctx: click.Context) -> settings.Config:
    return ctx.obj if isinstance(ctx.obj, settings.Config) else settings.load()


def _place(ctx: click.Context) -> "Path":
    from collector import xdp

    return xdp.PINS / _config(ctx).collector.lb_pins


@local.command()
@click.argument("file", type=click.Path())
@click.pass_context
def apply(ctx: click.Context, file: str) -> None:
    """Make the balancer what FILE says: all of it, or nothing and the reason."""
    from schemas import lb as model

    wanted = model.load(file)
    with _open(ctx, wanted.limits) as state:
        _apply(state, wanted)


def _apply(state: "State", wanted: "Balancer") -> None:
    if state.ledger.documents:
        name = next(iter(state.ledger.documents))
        raise UsageError(
            f"lb/{name} governs this host's balancer; change that, by `bpfleet lb` without `local`, or end "
            f"it with `bpfleet desired rm lb/{name}`"
        )
    changes = state.changes(wanted)
    try:
        state.apply(wanted)
    except BpfleetError as error:
        state.journal.add({"event": "refused", "state": "local", "reason": str(error)[:1000]})
        raise
    for line in changes or ["nothing to change"]:
        click.echo(line)


@local.command()
@click.argument("file", type=click.Path())
@click.pass_context
def diff(ctx: click.Context, file: str) -> None:
    """Print what `apply FILE` would change. Exit code 1 if anything."""
    from schemas import lb as model
    from schemas import lb_edit as edit

    wanted = model.load(file)
    if _place(ctx).exists():
        with _open(ctx) as state:
            changes = state.changes(wanted)
    else:
        changes = edit.changes(model.Balancer(), wanted)
    for line in changes:
        click.echo(line)
    ctx.exit(bool(changes))


@click.command()
@click.confirmation_option(prompt="Detach the balancer and forget its state? Flows through it end.")
@click.pass_context
def remove(ctx: click.Context) -> None:
    """Take the balancer off this host: program, maps, state; also one whose state cannot be read any more."""
    from collector.balancer.state import take_down

    try:
        state = _open(ctx)
    except BpfleetError:
        if not _place(ctx).exists():
            raise
        take_down(_config(ctx), _place(ctx))
        return
    with state:
        if state.ledger.documents:
            raise UsageError("documents govern this balancer; end them with `bpfleet desired rm`")
        state.remove()


@local.group()
def vip() -> None:
    """Add, change and remove VIPs."""


@local.group()
def real() -> None:
    """Add, change, drain and remove the reals of a VIP."""


def _fields(pairs: tuple[str, ...]) -> dict[str, Any]:
    from schemas.lb_edit import fields

    return fields(pairs)


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


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_context
def show(ctx: click.Context, as_json: bool) -> None:
    """Show VIPs, reals, their share of the ring, traffic, and how often each reason occurred."""
    from collector.balancer import show as view

    with _open(ctx) as state:
        found = view.collect(state)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(view.lines(found)))


@click.command()
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


@click.command()
@click.pass_context
def watch(ctx: click.Context) -> None:
    """Check the health of reals until interrupted; print each transition as a line of JSON."""
    import dataclasses

    from collector.balancer import health

    _open(ctx).__exit__(None, None, None)

    def report(transition: health.Transition) -> None:
        click.echo(json.dumps(dataclasses.asdict(transition)))

    health.run(_config(ctx), _place(ctx), report)
