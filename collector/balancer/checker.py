"""Health checks inside the collector: a thread with a loop of its own. Transitions go by the journal."""

import asyncio
import contextlib
import logging
import threading

from collector import xdp
from collector.balancer import health
from collector.companion import Companion
from schemas.config import Config
from schemas.errors import BpfleetError

log = logging.getLogger("bpfleet.collector")
RETRY_S = 2.0


class Checker(Companion):
    """Runs :class:`collector.balancer.health.Watch` while the collector runs."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._config = config
        self._stopping = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="balancer checks", daemon=True)

    def start(self) -> None:
        """Begin to check."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is down stays down."""
        self._stopping.set()
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(self._task.cancel)
        if self._thread.is_alive():
            self._thread.join(5)

    def _run(self) -> None:
        said = ""
        while not self._stopping.is_set():
            try:
                asyncio.run(self._watch())
            except asyncio.CancelledError:
                return
            except BpfleetError as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("health checks: %s", error)
            except Exception:  # one part's fault must not end the others
                log.exception("health checks: a fault of our own")
            self._stopping.wait(RETRY_S)

    async def _watch(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        place = xdp.PINS / self._config.collector.lb_pins
        await health.Watch(self._config, place, lambda _: None).run()
