"""``bpfleet key``: the keys that sign desired state."""

import getpass
import os
from pathlib import Path

import click

from schemas import signing
from schemas.config import Config
from schemas.errors import UsageError

EXAMPLES = """\b
Examples:
  bpfleet key new                                 into ~/.config/bpfleet/key, readable by you alone
  bpfleet key new ops.key --name ops@example.org
  bpfleet key show ops.key                        the line for collector.trusted_keys of the hosts
"""


def default_file() -> Path:
    """Where a person's key lies unless they say otherwise."""
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "bpfleet" / "key"


@click.group(epilog=EXAMPLES)
def key() -> None:
    """Make and show the keys that sign desired state (Ed25519)."""


@key.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--name", help="Who it belongs to; hosts name it in the audit trail. Default: user@host.")
@click.pass_obj
def new(config: Config, file: Path | None, name: str | None) -> None:
    """Make a key, write the private half to FILE (mode 0600), print the public half."""
    target = file or default_file()
    if file is None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UsageError(f"cannot make {target.parent}: {error.strerror}; name a file") from None
    made = signing.create(target, name or f"{getpass.getuser()}@{config.host}")
    click.echo(str(made.public))
    click.echo(
        f"bpfleet: private key in {target}; set operator.key_file to sign with it, "
        "and put the line above into collector.trusted_keys of the hosts",
        err=True,
    )


@key.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.pass_obj
def show(config: Config, file: Path | None) -> None:
    """Print the public half of the key in FILE (default: operator.key_file, then your own)."""
    named = config.operator.key_file
    target = file or (Path(named) if named else default_file())
    click.echo(str(signing.private_key(target).public))
