"""``bpfleet mitigate``: the service that finds attacks and answers them."""

import json
import logging
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, Literal

import click

from schemas.config import Config

if TYPE_CHECKING:
    from fleet.mitigate import Mitigator

AGAIN_S = 600
EXAMPLES = """\b
Examples:
  bpfleet mitigate                        until it is told to stop
  bpfleet mitigate --policy shadow        count what it would drop, drop nothing
  bpfleet mitigate --once --dry-run       is anybody attacked now, and what would be done?
"""


@click.command(epilog=EXAMPLES)
@click.option(
    "--policy", type=click.Choice(["suggest", "shadow", "enforce"]), help="Instead of the settings'."
)
@click.option("--once", is_flag=True, help="Look once, and end.")
@click.option("--dry-run", is_flag=True, help="Say what it would do; publish and record nothing.")
@click.option("--json", "as_json", is_flag=True, help="Steps as JSON, one a line.")
@click.pass_obj
def mitigate(
    config: Config, policy: Literal["suggest", "shadow", "enforce"] | None, once: bool, dry_run: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Find attacks in the fleet's samples, and answer each with the narrowest rule."""
    from fleet.mitigate import Mitigator, run
    from fleet.mitigate_answer import Published, Told
    from fleet.samples import reader

    logging.basicConfig(format="bpfleet: %(message)s", level=logging.WARNING)
    config.mitigate.policy = policy or config.mitigate.policy
    client = reader(config.clickhouse)
    say = lambda event: _say(event, as_json)  # noqa: E731
    answers = Told(say) if dry_run else Published(config, say)
    mitigator = Mitigator(config, client, answers)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        if once:
            mitigator.step()
            _refused(mitigator, {})
            if not mitigator.cases:
                click.echo("nobody is attacked", err=True)
        else:
            click.echo(f"mitigating: policy {config.mitigate.policy}", err=True)
            told: dict[tuple[str, Any], float] = {}
            run(mitigator, lambda seconds: _refused(mitigator, told) or stop.wait(seconds))
        answers.flush()
    finally:
        if isinstance(answers, Published):
            answers.close()
        client.close()


def _refused(mitigator: "Mitigator", told: dict[tuple[str, Any], float]) -> bool:
    """Say what is much and yet no attack, each once in ten minutes: who looks for an attack should know."""
    from fleet.mitigate_distill import plain

    now = time.monotonic()
    for key, reason in mitigator.refusals.items():
        if now - told.get(key, -AGAIN_S) >= AGAIN_S:
            told[key] = now
            click.echo(f"no attack: {key[0]} on {plain(key[1])}: {reason}", err=True)
    return False


def _say(event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(event))
        return
    about = [f"{event['after_us'] / 1e6:+6.2f} s", event["attack"], event["event"], event["target"],
             event.get("vector", ""), event.get("rule", ""), event.get("reason", "")]  # fmt: skip
    click.echo("  ".join(each for each in about if each))
