"""The handlers of desired state that this installation has: entry points ``bpfleet.handlers``.

Each names a function that takes the :class:`collector.agent.Agent` and returns a handler; its name is the
kind's. Only those of ``collector.kinds`` are made. One that cannot be made is left out, and hosts that are
asked for its kind say that they lack it. A handler that has rows to ship appends a
:class:`collector.companion.Companion` to ``agent.companions``; the run time of its programs is measured once
they stand in ``agent.costs``.
"""

import logging
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from collector.desired_worker import Handler
from schemas.errors import BpfleetError

if TYPE_CHECKING:
    from collector.agent import Agent

log = logging.getLogger("bpfleet.collector")


def make(agent: "Agent") -> list[Handler]:
    """One handler of each kind."""
    made: list[Handler] = []
    for entry in sorted(entry_points(group="bpfleet.handlers"), key=lambda each: each.name):
        if entry.name not in agent.config.collector.kinds:
            continue
        try:
            made.append(entry.load()(agent))
        except (BpfleetError, ImportError) as error:
            log.warning("desired state of kind %s is not taken here: %s", entry.name, error)
    return made
