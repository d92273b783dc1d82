"""A rule of fields for people: in words, and as the command that puts it in force by hand."""

import shlex
from collections.abc import Mapping

NAMES = {"icmp,icmp6": "ICMP", "tcp": "TCP", "udp": "UDP", "gre": "GRE"}


def words(fields: Mapping[str, str]) -> str:
    """What it matches: ``UDP from port 53 to 10.9.0.1, 846-1395 bytes, TTL 39-60``."""
    protocol = fields.get("protocol", "")
    what = NAMES.get(protocol, f"protocol {protocol}" if protocol else "packets")
    if "fragment" in fields:
        what = "fragments" if not protocol else f"{what} fragments"
    source = " ".join(filter(None, (fields.get("src"), _port(fields.get("src_port")))))
    target = " ".join(filter(None, (_one(fields.get("dst")), _port(fields.get("dst_port")))))
    text = what + (f" from {source}" if source else "") + (f" to {target}" if target else "")
    more = []
    if fields.get("tcp_flags"):
        more.append(f"flags {fields['tcp_flags'].partition('/')[0] or 'none'}")
    if "state" in fields:
        more.append(f"of {'no' if fields['state'] == 'new' else 'a'} known connection")
    if "length" in fields:
        more.append(f"{fields['length']} bytes")
    if "ttl" in fields:
        more.append(f"TTL {fields['ttl']}")
    if "payload" in fields:
        more.append(f"payload {fields['payload'].partition(':')[2]}")
    return ", ".join([text, *more])


def command(fields: Mapping[str, str], name: str) -> str:
    """What to type to enforce it for an hour."""
    given = " ".join(f"--field {shlex.quote(f'{key}={value}')}" for key, value in fields.items())
    return f"bpfleet drop add {given} --ttl 1h --id {name} --enforce --wait"


def _port(text: str | None) -> str:
    return f"port {text}" if text else ""


def _one(prefix: str | None) -> str:
    """A prefix of one address as that address."""
    host = (prefix or "").removesuffix("/32") if ":" not in (prefix or "") else (prefix or "")
    return host.removesuffix("/128")
