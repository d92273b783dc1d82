"""`bpfleet lb decapsulate`: on a real, take the balancers' outer header off."""

import click


@click.group()
def decapsulate() -> None:
    """On a real: take the balancers' outer header off, in XDP."""


@decapsulate.command("apply")
@click.argument("interface")
@click.argument("balancers", metavar="PREFIX...", nargs=-1, required=True)
@click.option("--mode", type=click.Choice(["auto", "native", "generic"]), default="auto", show_default=True)
def apply(interface: str, balancers: tuple[str, ...], mode: str) -> None:
    """Do it on INTERFACE for packets whose outer source is in a PREFIX; again to change the prefixes."""
    from collector.balancer import decapsulate as work

    work.apply(interface, list(balancers), mode=mode)


@decapsulate.command("show")
def show() -> None:
    """Count what came: decapsulated, not encapsulated, from strangers, broken."""
    from collector.balancer import decapsulate as work

    for name, count in work.counts().items():
        click.echo(f"{name.replace('_', ' ')}: {count}")


@decapsulate.command("rm")
@click.argument("interface")
def rm(interface: str) -> None:
    """Stop taking outer headers off on INTERFACE."""
    from collector.balancer import decapsulate as work

    work.remove(interface)
