"""Three hosts under attack: each a network namespace with its collector, interface and web server; all real.

    with siege(place, folder) as fleet:
        frames, target = fleet.frames("dns amplification")
        attack = fleet.attack(frames)   # sends until stopped, bounded

A host `i` and its outside are two namespaces joined by a veth pair. The service addresses 10.99.0.0/16 are on
all three hosts (anycast), so that an attack on one address arrives at three hosts, a third at each. Attackers
write frames to the outside's end; clients there download from the service address meanwhile.
"""

import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from assault import CLONE_NEWNET, LONGEST_S, SERVICE, Attack, Client, inside
from attacking import ATTACKS, carpet
from collecting import CollectorProcess, wait_for
from lb_fleet import ENTER, Relay
from sinking import Place

from collector import xdp
from fleet.acknowledge import Watch, live_hosts
from fleet.desired import Board, Draft
from fleet.mitigate_vectors import RAMP
from schemas.config import Config
from schemas.signing import private_key

HOSTS = (1, 2, 3)
RATE, FLOOR = 200, 300  # packets per second at each host; what is an attack: one host alone would not notice
VOLLEY = 3_000  # packets at each host, counted exactly
SERVER = """
import http.server, sys
BODY = bytes(200_000)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)
    def log_message(self, *_):
        pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 512
Server(("0.0.0.0", 80), Handler).serve_forever()
"""


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


@dataclass(frozen=True)
class Blow:
    """One attack, as it went."""

    name: str
    target: str
    attack: str
    seconds: float  # from its detection until the last host dropped
    hosts: int
    sent: int  # packets of the volley, on all hosts
    dropped: int
    legitimate: int  # segments that clients sent meanwhile
    lost: int
    broken: int  # clients that lost a connection

    def __str__(self) -> str:
        return (
            f"{self.name}: detected → dropped on {self.hosts} hosts {self.seconds:.2f} s; then"
            f" {self.dropped / self.sent:.2%} of {self.sent:,} dropped; {self.lost} of {self.legitimate:,}"
            f" legitimate segments lost, {self.broken} connections broken"
        )


class Fleet:
    """Everything: see the module."""

    def __init__(self, place: Place, folder: Path, **mitigate: Any) -> None:
        self.place, self.folder = place, folder
        self.prefix = f"siege{os.getpid() % 100_000}"
        self.processes: list[subprocess.Popen[Any]] = []
        self.collectors: list[CollectorProcess] = []
        self.relays: list[Relay] = []
        self.clients: list[Client] = []
        self.steps: list[dict[str, Any]] = []
        self.attackers: list[socket.socket] = []
        self.config = Config(host="operator", state_dir=str(folder))
        self.config.kafka.servers = place.servers
        self.config.clickhouse.url, self.config.clickhouse.database = place.url, place.database
        self.config.operator.key_file = str(folder / "ops.key")
        self.settings = {"floor_pps": FLOOR, "quiet_s": 6, "rule_ttl_s": 60, **mitigate}
        self.targets = iter(range(1, 250))
        self._pen: tuple[Board, Watch, dict[str, dict[str, str]]] | None = None

    # ── Up and down ──────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        self.run_command("key", "new", self.config.operator.key_file)
        for host in HOSTS:
            self._network(host)
            self._collect(host)
        for each in self.collectors:
            each.start(
                wait=False, code=(ENTER.format(self.space(self.collectors.index(each) + 1), CLONE_NEWNET),)
            )
        self.place.sink()
        for host in HOSTS:
            self._serve(host)
            self.attackers.append(self._raw(host))
        wait_for(lambda: len(live_hosts(self.config)) == len(HOSTS), 60, "three collectors")
        try:
            self.run_command("drop", "watch", "--wait", "--timeout", "60")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{[each.said()[-2000:] for each in self.collectors]}") from None
        self.clients = [Client(self.outside(host)) for host in HOSTS]
        wait_for(self._seen, 30, "samples of all hosts")
        self._mitigate()

    def space(self, host: int) -> str:
        return f"{self.prefix}-h{host}"

    def outside(self, host: int) -> str:
        return f"{self.prefix}-o{host}"

    def _network(self, host: int) -> None:
        near, far = self.space(host), self.outside(host)
        for name in (near, far):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", near, "link", "add", "eth0", "address", "02:00:00:00:00:02", "type", "veth",
           "peer", "name", "out0", "netns", far)  # fmt: skip
        ip("-n", near, "addr", "add", "10.66.0.1/24", "dev", "eth0")
        ip("-n", far, "addr", "add", "10.66.0.2/24", "dev", "out0")
        ip("-n", near, "link", "set", "eth0", "up")
        ip("-n", far, "link", "set", "out0", "up")
        ip("-n", near, "route", "add", "default", "via", "10.66.0.2")
        ip("-n", near, "route", "add", "local", "10.99.0.0/16", "dev", "lo")
        ip("-n", far, "route", "add", "10.99.0.0/16", "via", "10.66.0.1")
        self.relays.append(Relay(near, int(self.place.servers.rpartition(":")[2])))

    def _collect(self, host: int) -> None:
        public = private_key(Path(self.config.operator.key_file)).public.text
        self.collectors.append(CollectorProcess(
            self.folder / f"host{host}", self.place.servers, f"edge{host}", probes=["runq_latency"],
            kinds=["filter"], filter_pins=self.space(host), trusted_keys=[public],
        ))  # fmt: skip

    def _serve(self, host: int) -> None:
        command = ["nsenter", f"--net=/run/netns/{self.space(host)}", sys.executable, "-c", SERVER]
        self.processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

        def answers() -> bool:
            with inside(self.outside(host)):
                try:
                    socket.create_connection((SERVICE, 80), 2).close()
                except OSError:
                    return False
                return True

        wait_for(answers, 20, "a web server")

    def _raw(self, host: int) -> socket.socket:
        with inside(self.outside(host)):
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            made.bind(("out0", 0))
        return made

    def _seen(self) -> bool:
        question = "SELECT uniqExact(host) FROM DB.packet_sample WHERE established"
        found = self.place.ask(question)
        return bool(found and found[0][0] == len(HOSTS))

    def settings_file(self) -> Path:
        file = self.folder / "operator.yaml"
        file.write_text(yaml.safe_dump({
            "host": "operator", "state_dir": str(self.folder), "kafka": {"servers": self.place.servers},
            "clickhouse": {"url": self.place.url, "database": self.place.database},
            "operator": {"key_file": self.config.operator.key_file}, "mitigate": self.settings,
        }))  # fmt: skip
        return file

    def run_command(self, *words: str) -> str:
        command = [sys.executable, "-m", "fleet", "--config", str(self.settings_file()), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def _mitigate(self) -> None:
        command = [
            sys.executable,
            "-u",
            "-m",
            "fleet",
            "--config",
            str(self.settings_file()),
            "mitigate",
            "--json",
        ]
        self.log = (self.folder / "mitigate.log").open("w")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.processes.append(process)

        def listen() -> None:
            assert process.stdout
            for line in process.stdout:
                self.steps.append(json.loads(line))

        threading.Thread(target=listen, daemon=True).start()
        wait_for(lambda: "mitigating" in (self.folder / "mitigate.log").read_text(), 30, "the service")

    def close(self) -> None:
        if self._pen:
            self._pen[0].close()
            self._pen[1].close()
        for client in self.clients:
            client.stop()
        for each in self.processes:
            each.terminate()
        for each in self.processes:
            try:
                each.wait(10)
            except subprocess.TimeoutExpired:
                each.kill()
                each.wait()
        for collector in self.collectors:
            collector.kill()
        for relay in self.relays:
            relay.close()
        for raw in self.attackers:
            raw.close()
        for host in HOSTS:
            pins = xdp.PINS / self.space(host)
            if pins.is_dir():
                for each in sorted(pins.rglob("*"), reverse=True):
                    each.rmdir() if each.is_dir() else each.unlink()
                pins.rmdir()
            for name in (self.space(host), self.outside(host)):
                subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    # ── Attacks ──────────────────────────────────────────────────────────────────────────────────

    def frames(self, name: str, count: int = 4000) -> tuple[list[bytes], str]:
        """Frames of a pattern to a target of its own, and that target as its record will name it."""
        number, dice = next(self.targets), random.Random(len(self.steps))
        if name == RAMP:
            name = "syn flood"
        if name == "carpet bombing":
            return carpet(dice, count, f"10.99.{number}"), f"10.99.{number}."
        target = f"10.99.200.{number}"
        return ATTACKS[name](dice, count, target), target  # type: ignore[call-arg]

    def attack(self, frames: list[bytes], rate: float = RATE, count: int = 0, ramp: float = 0) -> Attack:
        return Attack(self.attackers, frames, rate, count, ramp)

    def strike(self, name: str) -> "Blow":
        """Attack until the rule is in force everywhere; then a counted volley; what became of all that."""
        frames, target = self.frames(name)
        address = f"{target}80" if target.endswith(".") else target  # they download from whom is attacked
        clients = [Client(self.outside(host), address) for host in HOSTS]
        self.clients += clients
        wait_for(lambda: all(each.downloads for each in clients), 20, "downloads")
        sent_before, again_before = self.retransmitted()
        attack = self.attack(frames, 0, ramp=20) if name == RAMP else self.attack(frames)
        try:
            in_force = self.step("in_force", target, 2 * LONGEST_S if name == RAMP else LONGEST_S)
        finally:
            attack.stop()
        before = self.dropped()
        volley = self.attack(frames, 1000, VOLLEY)
        volley.join(LONGEST_S + 5)
        dropped = self.dropped(before + volley.sent * len(HOSTS), 8) - before
        sent_after, again_after = self.retransmitted()
        for each in clients:
            each.stop()
            self.clients.remove(each)
        return Blow(
            name, target, in_force["attack"], in_force["after_us"] / 1e6, in_force["hosts"],
            volley.sent * len(HOSTS), dropped, sent_after - sent_before, again_after - again_before,
            sum(each.broken for each in [*clients, *self.clients]),
        )  # fmt: skip

    def publish(self, drafts: "list[Draft]") -> float:
        """Seconds from publishing to the last host's answer."""
        if self._pen is None:
            self._pen = Board(self.config), Watch(self.config), live_hosts(self.config)
        board, watch, hosts = self._pen
        documents = board.publish(drafts)
        answers = watch.wait(documents, hosts, 20)
        said = {host: each.state if each else "not heard" for (_, host), each in answers.items()}
        assert set(said.values()) == {"applied"}, said
        return max(each.heard - documents[0].created for each in answers.values() if each) / 1e6

    def step(self, event: str, target: str, seconds: float = 20) -> dict[str, Any]:
        """The first step of that name against that target; waits for it."""

        def found() -> Any:
            return next(
                (each for each in self.steps if each["event"] == event and each["target"].startswith(target)),
                None,
            )

        what = f"{event} {target}; steps: {[(each['event'], each.get('reason')) for each in self.steps[-8:]]}"
        try:
            return wait_for(found, seconds)
        except AssertionError:
            raise AssertionError(what + (self.folder / "mitigate.log").read_text()[-2000:]) from None

    def dropped(self, enough: float = float("inf"), still_s: float = 2.5) -> int:
        """Exactly, by the hosts' counters, so far; waits until they are ``enough``, or stand still."""
        question = "SELECT sum(packets) FROM DB.filter_stats WHERE verdict = 'drop'"
        last, since = -1, time.monotonic()
        while time.monotonic() - since < still_s and last < enough:
            found = self.place.ask(question)
            count = int(found[0][0]) if found else 0
            if count != last:
                last, since = count, time.monotonic()
            time.sleep(0.1)
        return last

    def retransmitted(self) -> tuple[int, int]:
        """Segments that clients sent, and those they had to send again: an upper bound of what was lost."""
        sent = again = 0
        for host in HOSTS:
            with inside(self.outside(host)):
                lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
            names, values = (line.split() for line in lines if line.startswith("Tcp:"))
            counters = dict(zip(names, values, strict=True))
            sent, again = sent + int(counters["OutSegs"]), again + int(counters["RetransSegs"])
        return sent, again


@contextmanager
def siege(place: Place, folder: Path, **mitigate: Any) -> Iterator[Fleet]:
    """All of it up, the service running; gone afterwards."""
    made = Fleet(place, folder, **mitigate)
    try:
        made.start()
        yield made
    finally:
        made.close()


def quietly(seconds: float, check: Callable[[], bool]) -> None:
    """Assert something all the while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert check()
        time.sleep(0.2)
