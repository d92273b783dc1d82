"""`bpfleet lb`: balancers of the fleet, as documents of kind `lb`; hosts make them true and say so.

Changes go to Kafka. What is about one host's kernel (`local`, `show`, `explain`, `watch`, `decapsulate`) is
in the collector's package and joins this group by the entry points `lb.…`. Imports are late.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from fleet.desired_options import How, publish_options, scope_options
from schemas.errors import UsageError

if TYPE_CHECKING:
    from fleet.desired import Board
    from schemas.config import Config
    from schemas.desired import Document, Scope
    from schemas.lb import Balancer

EXAMPLES = """\b
Examples:
  bpfleet lb diff lb.yaml                          what publishing the file would change
  bpfleet lb apply lb.yaml --host 'lb*' --wait     publish it; return when those hosts have it in force
  bpfleet lb real drain web 10.0.0.3 --wait        no new flows for this real
  bpfleet lb show                                  on a balancer: reals, their share and traffic
  bpfleet lb explain 'tcp 192.0.2.7:4711 -> 198.51.100.1:443'
  bpfleet lb local apply lb.yaml                   this host alone, without Kafka
"""
Change = Callable[["Balancer"], "Balancer"]

document = click.option("--id", "name", default="main", show_default=True, help="Which document of kind lb.")


@click.group(epilog=EXAMPLES)
def lb() -> None:
    """Balance connections to VIPs over reals, in XDP, on the hosts of the fleet."""


@lb.command()
@click.argument("file", type=click.Path())
@document
@scope_options
@publish_options
@click.pass_obj
def apply(config: "Config", file: str, name: str, scope: "Scope", how: How) -> None:
    """Make the balancers what FILE says: on each host all of it, or nothing and the reason.

    Without a scope, that of the document's last revision stays.
    """
    from schemas import lb as model

    wanted = model.load(file)
    how.run(config, lambda board: _publish(board, name, lambda _: wanted, scope, how, must_exist=False))


@lb.command()
@click.argument("file", type=click.Path())
@document
@click.pass_context
def diff(ctx: click.Context, file: str, name: str) -> None:
    """Print what `apply FILE` would change. Exit code 1 if anything."""
    from fleet.desired import Board
    from schemas import lb as model
    from schemas.lb_edit import changes

    wanted = model.load(file)
    board = Board(ctx.obj)
    try:
        lines = changes(_known(board, name)[0] or model.Balancer(), wanted)
    finally:
        board.close()
    for line in lines:
        click.echo(line)
    ctx.exit(bool(lines))


def _known(board: "Board", name: str) -> "tuple[Balancer | None, Scope | None]":
    """The published configuration of that id and its scope; None: there is none."""
    from schemas import lb as model

    sealed = board.refresh().get(f"lb/{name}")
    if sealed is None or sealed.document.deleted:
        return None, None
    return model.parse(sealed.document.spec, f"lb/{name}"), sealed.document.scope


def _publish(
    board: "Board", name: str, change: Change, scope: "Scope | None", how: How, *, must_exist: bool = True
) -> "list[Document]":
    from fleet.desired import Draft
    from schemas import desired
    from schemas import lb as model

    known, former = _known(board, name)
    if known is None and must_exist:
        doubt = board.doubt(f"lb/{name}")
        raise UsageError(f"there is no lb/{name}{doubt}; `bpfleet lb apply FILE` publishes one")
    wanted = change(known or model.Balancer())
    if scope is None or scope == desired.Scope():
        scope = former or desired.Scope()
    return board.publish([Draft(model.LB, name, model.dump(wanted), scope, comment=how.comment)])


def _edit(config: "Config", name: str, change: Change, how: How) -> None:
    how.run(config, lambda board: _publish(board, name, change, None, how))


def _fields(pairs: tuple[str, ...]) -> dict[str, Any]:
    from schemas.lb_edit import fields

    return fields(pairs)


@lb.group()
def vip() -> None:
    """Add, change and remove VIPs of a published balancer."""


@lb.group()
def real() -> None:
    """Add, change, drain and remove the reals of a VIP."""


@vip.command("add")
@click.argument("vip")
@click.argument("settings", metavar="SETTING=VALUE...", nargs=-1, required=True)
@click.option(
    "--real", "reals", multiple=True, required=True, metavar="ADDRESS", help="A first real; again for more."
)
@document
@publish_options
@click.pass_obj
def vip_add(
    config: "Config", vip: str, settings: tuple[str, ...], reals: tuple[str, ...], name: str, how: How
) -> None:
    """Add VIP: `vip add web address=198.51.100.1 port=443 --real 10.0.0.1`."""
    from schemas.lb_edit import set_vip

    tree = {**_fields(settings), "reals": [{"address": each} for each in reals]}
    _edit(config, name, lambda before: set_vip(before, vip, tree, new=True), how)


@vip.command("set")
@click.argument("vip")
@click.argument("settings", metavar="SETTING=VALUE...", nargs=-1, required=True)
@document
@publish_options
@click.pass_obj
def vip_set(config: "Config", vip: str, settings: tuple[str, ...], name: str, how: How) -> None:
    """Change settings of VIP: `vip set web sample=1024`."""
    from schemas.lb_edit import set_vip

    tree = _fields(settings)
    _edit(config, name, lambda before: set_vip(before, vip, tree, new=False), how)


@vip.command("rm")
@click.argument("vip")
@document
@publish_options
@click.pass_obj
def vip_rm(config: "Config", vip: str, name: str, how: How) -> None:
    """Remove VIP with its reals."""
    from schemas.lb_edit import remove_vip

    _edit(config, name, lambda before: remove_vip(before, vip), how)


@real.command("add")
@click.argument("vip")
@click.argument("address")
@click.argument("settings", metavar="[SETTING=VALUE]...", nargs=-1)
@document
@publish_options
@click.pass_obj
def real_add(
    config: "Config", vip: str, address: str, settings: tuple[str, ...], name: str, how: How
) -> None:
    """Add a real to VIP: `real add web 10.0.0.4 weight=50`."""
    from schemas.lb_edit import set_real

    tree = _fields(settings)
    _edit(config, name, lambda before: set_real(before, vip, address, tree, new=True), how)


@real.command("set")
@click.argument("vip")
@click.argument("address")
@click.argument("settings", metavar="SETTING=VALUE...", nargs=-1, required=True)
@document
@publish_options
@click.pass_obj
def real_set(
    config: "Config", vip: str, address: str, settings: tuple[str, ...], name: str, how: How
) -> None:
    """Change a real of VIP: `real set web 10.0.0.4 weight=100 drain=false`."""
    from schemas.lb_edit import set_real

    tree = _fields(settings)
    _edit(config, name, lambda before: set_real(before, vip, address, tree, new=False), how)


@real.command("drain")
@click.argument("vip")
@click.argument("address")
@document
@publish_options
@click.pass_obj
def real_drain(config: "Config", vip: str, address: str, name: str, how: How) -> None:
    """Send a real of VIP no new flows; those it has go on. Its end is the event `drained`."""
    from schemas.lb_edit import set_real

    _edit(config, name, lambda before: set_real(before, vip, address, {"drain": True}, new=False), how)


@real.command("rm")
@click.argument("vip")
@click.argument("address")
@document
@publish_options
@click.pass_obj
def real_rm(config: "Config", vip: str, address: str, name: str, how: How) -> None:
    """Remove a real from VIP; flows it still has end."""
    from schemas.lb_edit import remove_real

    _edit(config, name, lambda before: remove_real(before, vip, address), how)
