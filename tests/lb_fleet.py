"""A balancer that is driven over Kafka: the collector in its namespace, the operator outside."""

import asyncio
import ctypes
import json
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from collecting import MAIN, CollectorProcess, read_topic, rows, wait_for
from lb_balanced import Balanced, running, serve

CLONE_NEWNET = 0x40000000
ENTER = (
    "import ctypes, os\n"
    "assert ctypes.CDLL(None).setns(os.open('/run/netns/{}', os.O_RDONLY), {}) == 0\n"
    f"{MAIN}"
)


class Relay:
    """A port of a namespace's loopback that leads to the same port of ours: there Kafka answers."""

    def __init__(self, space: str, port: int) -> None:
        self._port = port
        self._server = self._listen(space, port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @staticmethod
    def _listen(space: str, port: int) -> socket.socket:
        made: list[socket.socket] = []

        def inside() -> None:
            with Path(f"/run/netns/{space}").open() as there:
                assert ctypes.CDLL(None).setns(there.fileno(), CLONE_NEWNET) == 0
            made.append(socket.create_server(("127.0.0.1", port)))

        thread = threading.Thread(target=inside)  # the namespace is the thread's, the socket stays in it
        thread.start()
        thread.join()
        return made[0]

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._pair, sock=self._server))
        self._loop.run_forever()

    async def _pair(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._server.close()


class Fleet:
    """Operator, Kafka, a collector in the balancer's namespace, and the network around it."""

    def __init__(self, balanced: Balanced, servers: str, folder: Path, **collector: Any) -> None:
        self.balanced, self.net, self.servers = balanced, balanced.net, servers
        self.host = f"lb-{self.net.prefix}"
        self.relay = Relay(self.net.name("balancer"), int(servers.rpartition(":")[2]))
        self.collector = CollectorProcess(
            folder / "collector", servers, self.host, kinds=["lb"], probes=["runq_latency"],
            lb_pins=balanced.instance, **collector,
        )  # fmt: skip
        self.config = folder / "operator.yaml"
        self.config.write_text(yaml.safe_dump({"host": "operator", "kafka": {"servers": servers}}))
        self.file = folder / "wanted.yaml"

    def start(self) -> None:
        self.collector.start(code=(ENTER.format(self.net.name("balancer"), CLONE_NEWNET),))

    def operator(self, *words: str, code: int = 0) -> str:
        """`bpfleet …` where the operator sits."""
        done = subprocess.run(
            [sys.executable, "-c", MAIN, "--config", str(self.config), *words],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def lb(self, *words: str, wait: bool = True, code: int = 0) -> str:
        waiting = ("--wait", "--timeout", "30") if wait else ()
        return self.operator("lb", *words, "--id", self.host, *waiting, code=code)

    def apply(self, tree: dict[str, Any], *more: str, wait: bool = True, code: int = 0) -> str:
        self.file.write_text(yaml.safe_dump(tree))
        return self.lb("apply", str(self.file), "--host", self.host, *more, wait=wait, code=code)

    def shown(self) -> dict[str, Any]:
        """`bpfleet lb show --json` on the balancer."""
        found: dict[str, Any] = json.loads(self.on_host("lb", "show", "--json"))
        return found

    def on_host(self, *words: str, code: int = 0) -> str:
        """`bpfleet …` where the balancer is."""
        command = [sys.executable, "-c", MAIN, "--config", str(self.collector.config), *words]
        done = subprocess.run(
            self.net.inside("balancer", *command), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def servers_of(self, number: int) -> "subprocess.Popen[bytes]":
        return self.balanced.servers[number]

    def serve(self, number: int) -> None:
        self.balanced.servers[number].wait()
        self.balanced.servers[number] = serve(self.net, number)

    def rows(self, stream: str) -> list[dict[str, Any]]:
        """What this collector shipped of a stream, so far."""
        return rows(read_topic(self.servers, stream, self.host))

    def sums(self, found: list[dict[str, Any]] | None = None) -> Counter[tuple[str, ...]]:
        """The sums of lb_stats: (VIP, real, reason, column) → how much."""
        sums: Counter[tuple[str, ...]] = Counter()
        for row in self.rows("lb_stats") if found is None else found:
            for name in ("packets", "bytes", "flows"):
                sums[row["vip"], row["real"], row["reason"], name] += row[name]
        return +sums

    def kernel(self) -> Counter[tuple[str, ...]]:
        """The same from the kernel's counters."""
        shown = self.shown()
        sums: Counter[tuple[str, ...]] = Counter()
        for name, vip in shown["vips"].items():
            for real in vip["reals"]:
                for each in ("packets", "bytes", "flows"):
                    sums[name, real["address"], "", each] += real[each]
            for reason, count in vip["reasons"].items():
                sums[name, "", reason, "packets"] += count
        for reason, count in shown["no_vip"].items():
            sums["", "", reason, "packets"] += count
        return +sums

    def events(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.rows("lb_event") if each["event"] == event]

    def close(self) -> None:
        if f"lb/{self.host}" in self.operator("desired", "list", "lb"):
            self.operator("desired", "rm", f"lb/{self.host}")
        self.collector.kill()
        self.relay.close()


@contextmanager
def fleet(servers: str, folder: Path, **collector: Any) -> Iterator[Fleet]:
    """All of it up, no configuration published yet; gone afterwards."""
    with running(folder, apply=False) as balanced:
        for family, gateway in (("-4", "10.9.0.1"), ("-6", "fd09::1")):
            words = ["ip", "-n", balanced.net.name("balancer"), family, "route", "add", "default", "via"]
            subprocess.run([*words, gateway], check=True)
        made = Fleet(balanced, servers, folder, **collector)
        try:
            made.start()
            wait_for(lambda: made.rows("host"), 30, "its heartbeat")
            yield made
        finally:
            made.close()
