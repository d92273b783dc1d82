"""A collector process from its settings to its exit code: state, Kafka and agent put together."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from collector import memory, privileges
from schemas.config import Config

if TYPE_CHECKING:
    from collector.agent import Agent

SLOW_S = 5.0  # what nobody judges second by second


def collect(config: Config, *, to_stdout: bool = False) -> int:
    """Run until a signal; the exit code. Raises BpfleetError when it cannot start."""
    memory.spare()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="bpfleet: %(message)s")
    privileges.require()  # before anything complains that it cannot be had
    return _print(config) if to_stdout else _ship(config)


def _print(config: Config) -> int:
    from collector.agent import Agent
    from collector.printer import Printer

    config.collector.metrics_port = 0
    try:
        agent = Agent(config, Printer(config.host))
        companions(agent, kafka=False)
        return run(agent)
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _ship(config: Config) -> int:
    from collector.agent import Agent
    from collector.kafka import Desk
    from collector.recovery import open_state, resolve
    from collector.ship import Shipper
    from schemas import declare

    state = open_state(config)
    wanted = declare.streams()
    desk = Desk(config, config.host, wanted.values())
    shipper = Shipper(config, state.sequences, state.spool, state.losses, desk)
    agent = Agent(
        config, shipper, sequences=state.sequences, losses=state.losses, killed_since_us=state.killed_since_us
    )

    def settle() -> None:
        desk.ask(state.losses.open())
        resolve(state, desk.answers())

    agent.resolve = settle
    companions(agent)

    def begin() -> None:
        shipper.open()
        desk.start()

    code = run(agent, begin)
    desk.stop()
    state.sequences.close()
    return code


def companions(agent: "Agent", *, kafka: bool = True) -> None:
    """Give a new agent what runs beside its probes: what is read every few seconds, and desired state."""
    from collector import handlers
    from collector.cpu_time import CpuTime
    from collector.desired import DesiredState
    from collector.listeners import Listeners
    from collector.polled import Polled, Reader
    from collector.pressure import HostReader
    from collector.pressure_cgroup import RATES, CgroupReader

    polled = Polled(
        Reader("pressure", HostReader().rows),
        Reader("cgroup_pressure", CgroupReader().rows, rates=RATES),
        Reader("cpu_time", CpuTime().rows, SLOW_S),
        Reader("listen_drop", Listeners().rows, SLOW_S),
    )
    agent.companions.append(polled)
    agent.companions.append(DesiredState(agent.config, handlers.make(agent), kafka=kafka))


def run(agent: "Agent", started: Callable[[], None] = lambda: None) -> int:
    """Start, call ``started``, collect until a signal, close; the exit code."""
    from collector.windows import Windows

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, agent.stop)  # before anything is attached: the end is always an orderly one
    agent.start()
    agent.companions.append(Windows(agent.attached))
    started()
    names = ", ".join(each.probe.name for each in agent.attached)
    logging.getLogger("bpfleet.collector").info("collecting: %s", names)
    try:
        agent.run()
    finally:
        agent.close()
    return 0
