"""The command ``bpfleet``: one group; every stage brings its own commands.

Commands are found through the entry points ``bpfleet.commands`` (pyproject.toml), so that this file knows
none of them and a host with the collector alone carries nothing else.
"""

import os
import sys
from importlib.metadata import EntryPoint, entry_points, version

import click

from schemas import config
from schemas.errors import BpfleetError

EXTRAS = {
    **dict.fromkeys(("clickhouse_connect", "fastavro", "plotly", "rich"), "fleet"),
    **dict.fromkeys(("chdb", "httptools", "lz4", "starlette", "uvicorn", "uvloop", "zstandard"), "embedded"),
}  # library → the extra of pyproject.toml that brings it


class Commands(click.Group):
    """A group whose commands are loaded when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every registered command, by name."""
        return sorted(name for name in _registered() if "." not in name)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take ``--config FILE`` behind the command's name as well as before it."""
        return super().parse_args(ctx, _config_first(args))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        registered = _registered()
        entry = registered.get(cmd_name)
        if entry is None or "." in cmd_name:
            return None
        command: click.Command = entry.load()
        # `drop.backtest` is a command of another stage in the group `drop`.
        for name, other in registered.items():
            if isinstance(command, click.Group) and name.startswith(f"{cmd_name}."):
                command.add_command(other.load(), name.partition(".")[2])
        return command


def _config_first(args: list[str]) -> list[str]:
    own = args[: args.index("--")] if "--" in args else args
    for place, word in enumerate(own):
        if word == "--config" or word.startswith("--config="):
            end = place + (2 if word == "--config" else 1)
            return [*args[place:end], *args[:place], *args[end:]]
    return args


def _registered() -> dict[str, EntryPoint]:
    return {each.name: each for each in entry_points(group="bpfleet.commands")}


EXAMPLES = """\b
Examples:
  bpfleet run                                   everything on this machine, with a live view
  bpfleet check                                 does every probe work on this host?
  bpfleet sql "SELECT host, count() FROM tcp_flow GROUP BY host"
  bpfleet status                                what is up, what lags, what was last seen
"""


@click.group(cls=Commands, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config", "file", metavar="FILE", help="Settings; else $BPFLEET_CONFIG, /etc/bpfleet/bpfleet.yaml."
)
@click.version_option(version("bpfleet"), prog_name="bpfleet")
@click.pass_context
def root(ctx: click.Context, file: str | None) -> None:
    """See, steer and defend a fleet of Linux hosts with eBPF, and ask it with SQL."""
    asks_for_help = any(each in ("-h", "--help") for each in sys.argv)
    ctx.obj = config.Config() if asks_for_help else config.load(file)


def main() -> None:
    """Run the command line; a fault outside bpfleet is one line and an exit code, never a traceback."""
    try:
        result = root.main(prog_name="bpfleet", standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except BpfleetError as error:
        click.echo(f"bpfleet: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        asked = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "bpfleet"
        click.echo(f"bpfleet: {error.format_message().rstrip('.')}; see `{asked} --help`", err=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        # A host with the collector alone has not the operator's libraries, imported where they are used.
        library = str(error.name).split(".")[0]
        if library not in EXTRAS:
            raise
        click.echo(
            f"bpfleet: this needs {library}, which a collector alone has not; "
            f"install bpfleet with its extra `{EXTRAS[library]}`, or ask from an operator's machine",
            err=True,
        )
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:  # the reader of our pipe went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
