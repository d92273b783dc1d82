"""What runs inside the namespaces: `server NAME` on reals, `client` as the one who holds connections.

Server: port 80 HTTP (GET /N: N bytes; POST: how many came), port 7000 lines (each answered by
the server's name), UDP port 7000 the same. The client obeys lines on its input, answers each by one of JSON:
  open N HOST…          N connections, one after another host; hold them
  udp N HOST…           the same with UDP
  ping                  one line on every connection: {"answered", "broken", "moved"}
  surge N HOST…         N short connections at once: {"ok", "failed"}
  close NAME            close those held by that server: {"closed"}
"""

import asyncio
import json
import socket
import sys
from collections import Counter

PORT = 7000


async def serve_lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
    try:
        while await reader.readline():
            writer.write(f"{name}\n".encode())
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


async def serve_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split("\r\n")[0].split()
        if method == "POST":
            size = int(head.lower().partition("content-length:")[2].split()[0])
            body = str(len(await reader.readexactly(size))).encode()
        else:
            body = b"x" * int(path[1:])
        writer.write(
            f"HTTP/1.1 200 OK\r\nServer: {name}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    writer.close()


class Echo(asyncio.DatagramProtocol):
    def __init__(self, name: str) -> None:
        self.name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(self.name.encode(), addr)  # type: ignore[attr-defined]


async def server(name: str) -> None:
    loop = asyncio.get_running_loop()
    for family, addresses in (
        (socket.AF_INET, [f"198.51.100.{n}" for n in range(1, 9)]),
        (socket.AF_INET6, [f"2001:db8::{n}" for n in range(1, 9)]),
    ):
        for each in addresses:  # one socket an address: answers to datagrams come from the VIP
            await asyncio.start_server(
                lambda r, w: serve_lines(r, w, name), each, PORT, family=family, backlog=4096
            )
            await asyncio.start_server(
                lambda r, w: serve_http(r, w, name), each, 80, family=family, backlog=1024
            )
            await loop.create_datagram_endpoint(lambda: Echo(name), (each, PORT), family=family)
    print("ready", flush=True)
    await asyncio.Event().wait()


class Held:
    """A connection and who answered on it first."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer, self.owner = reader, writer, ""

    async def ping(self) -> str:
        try:
            self.writer.write(b"ping\n")
            name = (await asyncio.wait_for(self.reader.readline(), 10)).decode().strip()
        except (OSError, TimeoutError):
            return "broken"
        if not name:
            return "broken"
        self.owner = self.owner or name
        return "answered" if name == self.owner else "moved"


class HeldDatagrams(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.owner = ""
        self.answers: asyncio.Queue[str] = asyncio.Queue()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.answers.put_nowait(data.decode())

    async def ping(self) -> str:
        self.transport.sendto(b"ping")  # type: ignore[attr-defined]
        try:
            name = await asyncio.wait_for(self.answers.get(), 5)
        except TimeoutError:
            return "broken"
        self.owner = self.owner or name
        return "answered" if name == self.owner else "moved"


async def connect(host: str) -> Held:
    reader, writer = await asyncio.wait_for(asyncio.open_connection(host, PORT), 10)
    return Held(reader, writer)


async def short(host: str) -> bool:
    try:
        one = await connect(host)
        done = await one.ping() == "answered"
        one.writer.close()
        return done
    except (OSError, TimeoutError):
        return False


async def obey(words: list[str], held: list[Held | HeldDatagrams]) -> dict[str, object]:
    loop = asyncio.get_running_loop()
    if words[0] == "open":
        hosts = words[2:]
        for at in range(int(words[1])):
            held.append(await connect(hosts[at % len(hosts)]))
    elif words[0] == "udp":
        hosts = words[2:]
        for at in range(int(words[1])):
            address = (hosts[at % len(hosts)], PORT)
            held.append((await loop.create_datagram_endpoint(HeldDatagrams, remote_addr=address))[1])
    elif words[0] == "ping":
        return dict(Counter(await asyncio.gather(*(each.ping() for each in held))))
    elif words[0] == "surge":
        hosts = words[2:]
        count = int(words[1])
        done = await asyncio.gather(*(short(hosts[at % len(hosts)]) for at in range(count)))
        return {"ok": sum(done), "failed": count - sum(done)}
    elif words[0] == "close":
        gone = [each for each in held if isinstance(each, Held) and each.owner == words[1]]
        for each in gone:
            each.writer.close()
            held.remove(each)
        return {"closed": len(gone)}
    return {"held": len(held), **Counter(each.owner for each in held)}


async def client() -> None:
    held: list[Held | HeldDatagrams] = []
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        try:
            print(json.dumps(await obey(line.split(), held)), flush=True)
        except Exception as error:
            print(json.dumps({"error": repr(error)}), flush=True)


if __name__ == "__main__":
    asyncio.run(server(sys.argv[2]) if sys.argv[1] == "server" else client())
