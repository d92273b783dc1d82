"""The sink as a process: log lines, metrics, and an end within seconds of SIGTERM whatever hangs."""

import logging
import os
import signal
import sys
import threading
import time

from schemas.config import Config
from schemas.errors import BpfleetError
from sinks import heap
from sinks.metrics import Metrics
from sinks.report import Report
from sinks.sink import Sink

STOP_SECONDS = 8.0
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
log = logging.getLogger("bpfleet.sink")


def run(config: Config) -> None:
    """Run a sink until SIGTERM, SIGINT or SIGHUP. Raises :class:`BpfleetError`."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    heap.keep()
    logging.getLogger("clickhouse_connect").setLevel(logging.ERROR)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    stop = threading.Event()
    _stop_on_signals(stop)
    metrics = Metrics()
    port = config.sink.metrics_port
    try:
        metrics.serve(port)
    except OSError as error:
        advice = "set sink.metrics_port to another port"
        raise BpfleetError(f"port {port} cannot be used for metrics ({error.strerror}); {advice}") from None
    log.info("sink: %s → %s, group %s", config.kafka.servers, config.clickhouse.url, config.sink.group)
    Report(config, metrics).start()
    Sink(config, metrics).run(stop)
    log.info("sink: stopped")


def _stop_on_signals(stop: threading.Event) -> None:
    """Set ``stop`` on each of :data:`STOPS`; end the process if that has not helped in STOP_SECONDS.

    The main thread may wait for a broker that hangs, where no Python signal handler runs; the interpreter
    writes to the wake-up descriptor all the same. Ending early is safe: it is what SIGKILL does.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in STOPS:
        signal.signal(number, lambda *_: stop.set())

    def watch() -> None:
        while not set(STOPS).intersection(os.read(reader, 64)):
            pass
        stop.set()
        time.sleep(STOP_SECONDS)
        log.warning("sink: a server hangs; ending without its answer (nothing is lost: the next one goes on)")
        os._exit(0)

    threading.Thread(target=watch, name="signals", daemon=True).start()
