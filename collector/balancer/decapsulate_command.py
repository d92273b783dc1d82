"""`bpfleet lb decapsulate`: on a real, take the balancers' outer header off."""

import click


@click.group()
def decapsulate() -> None:
    """On a real: take the balancers' outer header off, in XDP."""


@decapsulate.command("apply")
@click.argument("interface")
@click.argument("balancers", metavar="PREFIX...", nargs=-1, required=True)
@click.option(
    "--vip",
    "vips",
    multiple=True,
    metavar="PREFIX",
    help="Only packets for these addresses; again for more. Without it, for any.",
)
@click.option("--mode", type=click.Choice(["auto", "native", "generic"]), default="auto", show_default=True)
def apply(interface: str, balancers: tuple[str, ...], vips: tuple[str, ...], mode: str) -> None:
    """Do it on INTERFACE for packets whose outer source is in a PREFIX; again to change the prefixes.

    With --vip, whoever forges such a source reaches no other address of this host.
    """
    from collector.balancer import decapsulate as work

    work.apply(interface, list(balancers), vips, mode=mode)


@decapsulate.command("show")
def show() -> None:
    """Count what came: decapsulated, not encapsulated, from strangers, not for a VIP, broken."""
    from collector.balancer import decapsulate as work

    for name, count in work.counts().items():
        click.echo(f"{name.replace('_', ' ')}: {count}")


@decapsulate.command("rm")
@click.argument("interface")
def rm(interface: str) -> None:
    """Stop taking outer headers off on INTERFACE."""
    from collector.balancer import decapsulate as work

    work.remove(interface)
