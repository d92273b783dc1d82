"""A small network of namespaces: a switch and on it, by veth, a client, a balancer and reals.

    with network(reals=3) as net:
        net.run("client", "ping", …); net.start("real1", …)      # processes inside, ended with the network

10.9.0.x and fd09::x: 1 client, 2 balancer, 11 and up reals. The client reaches 198.51.100.0/24 and
2001:db8::/64 by the balancer; reals own these addresses on their loopback.
"""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from collector import bpf_sys, loader, xdp

ROOT = Path(__file__).resolve().parent.parent
VIPS4, VIPS6 = "198.51.100.0/24", "2001:db8::/64"
NUMBERS = {"client": 1, "balancer": 2, "real1": 11, "real2": 12, "real3": 13}
# ethtool commands: checksums, segmentation: XDP passes on what is in the packet, so it must be complete
NO_OFFLOAD = """
import array, fcntl, socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for command in (0x17, 0x1f, 0x25):
    value = array.array("B", struct.pack("II", command, 0))
    fcntl.ioctl(s, 0x8946, struct.pack("16sP", b"eth0", value.buffer_info()[0]))
"""


def ip(*words: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"ip {' '.join(words)}: {done.stderr}")


@dataclass
class Network:
    prefix: str
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def name(self, who: str) -> str:
        return f"{self.prefix}-{who}"

    def inside(self, who: str, *command: str) -> list[str]:
        """Only the network is switched: bpffs stays what it is, as `ip netns exec` would not have it."""
        return ["nsenter", f"--net=/run/netns/{self.name(who)}", *command]

    def run(self, who: str, *command: str, timeout: float = 60, check: bool = True) -> str:
        done = subprocess.run(
            self.inside(who, *command), capture_output=True, text=True, timeout=timeout, check=False, cwd=ROOT
        )
        if check and done.returncode:
            raise AssertionError(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout

    def start(self, who: str, *command: str, **how: object) -> "subprocess.Popen[bytes]":
        """A process that ends with the network at the latest."""
        process = subprocess.Popen(self.inside(who, *command), cwd=ROOT, **how)  # type: ignore[call-overload]
        self.processes.append(process)
        return process

    def python(self, who: str, text: str) -> str:
        return self.run(who, sys.executable, "-c", text)

    def add(self, who: str) -> None:
        """A namespace whose eth0 is on the switch."""
        name, number = self.name(who), NUMBERS[who]
        ip("netns", "add", name)
        port = f"{self.prefix[-6:]}{number}"
        ip(
            "link",
            "add",
            port,
            "netns",
            self.name("switch"),
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            name,
        )
        ip("-n", self.name("switch"), "link", "set", port, "master", "br0", "up")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "addr", "add", f"10.9.0.{number}/24", "dev", "eth0")
        ip("-n", name, "addr", "add", f"fd09::{number}/64", "dev", "eth0", "nodad")
        self.python(who, NO_OFFLOAD)

    def add_real(self, who: str) -> None:
        self.add(who)
        for number in range(1, 9):
            ip("-n", self.name(who), "addr", "add", f"198.51.100.{number}/32", "dev", "lo")
            ip("-n", self.name(who), "addr", "add", f"2001:db8::{number}/128", "dev", "lo", "nodad")

    def route_vips(self) -> None:
        ip("-n", self.name("client"), "route", "add", VIPS4, "via", "10.9.0.2")
        ip("-n", self.name("client"), "-6", "route", "add", VIPS6, "via", "fd09::2")

    def wake_switch_port(self, who: str) -> None:
        """veth takes what XDP sends back only where the other end runs XDP too: a program that passes all."""
        passing = loader.load([loader.Source("pass", text="XDP(passing)\n{\n return XDP_PASS;\n}\n")])
        assert not passing.failed, passing.failed
        pin = xdp.pin_directory(f"test-{self.prefix}") / who
        bpf_sys.pin(passing.loaded["pass"].programs[0].fd, pin)
        passing.close()
        port = f"{self.prefix[-6:]}{NUMBERS[who]}"
        text = (
            "from pathlib import Path; from collector import bpf_sys, xdp\n"
            f"xdp.attach(bpf_sys.obj_get('{pin}'), '{port}', pin=Path('{pin}_link'))"
        )
        self.python("switch", text)

    def close(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
        pins = xdp.PINS / f"test-{self.prefix}"
        for each in pins.glob("*"):
            each.unlink()
        with suppress(FileNotFoundError):
            pins.rmdir()
        for who in ("client", "balancer", "real1", "real2", "real3", "switch"):
            ip("netns", "del", self.name(who), check=False)


@contextmanager
def network(reals: int = 3) -> Iterator[Network]:
    net = Network(f"lb{os.getpid() % 1000}{uuid.uuid4().hex[:4]}")
    try:
        ip("netns", "add", net.name("switch"))
        ip("-n", net.name("switch"), "link", "add", "br0", "type", "bridge")
        ip("-n", net.name("switch"), "link", "set", "br0", "up")
        net.add("client")
        net.add("balancer")
        for number in range(1, reals + 1):
            net.add_real(f"real{number}")
        net.route_vips()
        net.wake_switch_port("balancer")
        yield net
    finally:
        net.close()
