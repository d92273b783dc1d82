"""packet_drop: packets nobody listens for, by reason, place, addresses and ports; counted and sampled."""

import socket
import struct
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from probing import probing

from collector.btf import Btf

LOOPBACK = bytes(10) + b"\xff\xff" + bytes([127, 0, 0, 1])


@pytest.fixture(scope="module")
def probe():
    with probing("packet_drop", settings={"drop_samples_per_second": 1_000_000}) as loaded:
        yield loaded  # whatever else this host drops at the time, a sample of ours is left


@pytest.fixture(autouse=True)
def emptied(probe):
    """What others dropped between two tests does not fill the ring."""
    probe.events("packet_drop")


@contextmanager
def closed_port(family: int = socket.AF_INET):
    """(A UDP socket of ours, a port of this host where no one listens.)"""
    with closing(socket.socket(family, socket.SOCK_DGRAM)) as other:
        other.bind(("", 0))
        port = other.getsockname()[1]
    with closing(socket.socket(family, socket.SOCK_DGRAM)) as sender:
        sender.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        yield sender, port


def dropped(probe, port: int, expected: int) -> list:
    def ours(events):
        return [each for each in events if each["destination_port"] == port]

    found = ours(probe.events("packet_drop", lambda all_: len(ours(all_)) >= expected))
    assert len(found) == expected
    return found


def reasons(probe) -> dict[str, tuple[int, int]]:
    names = probe.enums["skb_drop_reason"]
    return {
        names[int(key["reason"])]: (int(value["packets"]), int(value["bytes"]))
        for key, value in probe.rows("packet_drop_count")
    }


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def test_datagrams_to_a_closed_port(probe, family):
    address, mapped = ("127.0.0.1", LOOPBACK) if family == socket.AF_INET else ("::1", bytes(15) + b"\1")
    probe.rows("packet_drop_count")
    with closed_port(family) as (sender, port):
        for _ in range(23):
            sender.sendto(b"anyone?", (address, port))
        source = sender.getsockname()[1]
        found = dropped(probe, port, 23)
    assert {probe.enums["skb_drop_reason"][int(each["reason"])] for each in found} == {"NO_SOCKET"}
    assert {int(each["source_port"]) for each in found} == {source}
    assert {bytes(each["source_address"]) for each in found} == {mapped}
    assert {bytes(each["destination_address"]) for each in found} == {mapped}
    assert {int(each["protocol"]) for each in found} == {17}
    assert {each["interface"] for each in found} == {b"lo"}
    assert {int(each["weight"]) for each in found} == {1}
    assert reasons(probe)["NO_SOCKET"][0] >= 23
    where = symbol(int(found[0]["location"]))
    assert "udp" in where, where


def symbol(address: int) -> str:
    """The kernel function around an address."""
    best = (0, "")
    with Path("/proc/kallsyms").open() as table:
        for line in table:
            place, _, name = line.split()[:3]
            if best[0] < int(place, 16) <= address:
                best = (int(place, 16), name)
    return best[1]


def test_a_reset_segment_shows_its_flags(probe):
    """A SYN to a closed TCP port is dropped with NO_SOCKET too."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    (syn,) = dropped(probe, port, 1)
    assert syn["protocol"] == 6
    assert syn["tcp_flags"] == 2
    assert syn["ethertype"] == 0x0800


def test_counts_are_exact_and_weights_estimate_them():
    """20,000 drops under a budget of 200 samples a second."""
    with (
        probing("packet_drop", settings={"drop_samples_per_second": 200}) as probe,
        closed_port() as (sender, port),
    ):
        sender.connect(("127.0.0.1", port))
        sent = 0
        while sent < 20_000:
            try:
                sender.send(b"x" * 100)
                sent += 1
            except ConnectionRefusedError:
                continue  # the answer to an earlier one; nothing was sent now
        events = [each for each in probe.events("packet_drop", seconds=0) if each["destination_port"] == port]
        packets = reasons(probe)["NO_SOCKET"][0]
        made, lost, sampled_out, _ = probe.counts()[0].tolist()
    assert packets >= sent
    assert packets < sent * 1.2  # others on this host may be refused meanwhile
    assert lost == 0
    assert made + sampled_out >= packets
    assert 100 < len(events) < 3_000
    estimate = sum(int(each["weight"]) for each in events)
    assert estimate == pytest.approx(sent, rel=0.35)


def test_reasons_are_the_running_kernels(probe):
    table = Btf.read().enum("skb_drop_reason")
    assert probe.enums["skb_drop_reason"][table["SKB_DROP_REASON_NO_SOCKET"]] == "NO_SOCKET"
    assert len(probe.enums["skb_drop_reason"]) == len(set(table.values()))


def test_consumed_packets_are_no_drops(probe):
    """A few megabytes over loopback, all of which arrive."""
    probe.rows("packet_drop_count")
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as server,
        closing(socket.create_connection(server.getsockname())) as client,
        closing(server.accept()[0]) as accepted,
    ):
        for _ in range(100):
            client.sendall(bytes(30_000))
            left = 30_000
            while left:
                left -= len(accepted.recv(left))
    assert sum(packets for packets, _ in reasons(probe).values()) < 20


def test_ports_are_found_behind_extension_headers(probe):
    """Hop-by-hop and destination options, eight bytes each, one of them twice as long."""
    pad = bytes([0, 0, 1, 4, 0, 0, 0, 0])
    long = bytes([0, 1, 1, 12, *bytes(12)])
    with closed_port(socket.AF_INET6) as (sender, port):
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, pad)
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, long)
        sender.sendto(b"anyone?", ("::1", port))
        (found,) = dropped(probe, port, 1)
        assert int(found["source_port"]) == sender.getsockname()[1]
    assert int(found["protocol"]) == socket.IPPROTO_UDP


def test_packets_are_found_behind_tags_of_vlans(probe):
    """Of two tags a device takes off the first; nobody is there for the second."""
    port = 47_611
    ip = bytes([0x45, 0, 0, 28, 0, 1, 0, 0, 9, socket.IPPROTO_UDP, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1])
    udp = struct.pack("!HHHH", 4711, port, 8, 0)
    frame = bytes(12) + struct.pack("!HHHHH", 0x88A8, 5, 0x8100, 6, 0x0800) + ip + udp
    with closing(socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as sender:
        sender.bind(("lo", 0))
        sender.send(frame)
    found = dropped(probe, port, 1)[0]
    assert (int(found["ethertype"]), int(found["source_port"])) == (0x0800, 4711)
    assert bytes(found["destination_address"]) == LOOPBACK
