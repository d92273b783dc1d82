"""Structs, constants and reasons of the balancer, read from its C headers: nothing is written twice.

VIP_KEY, VIP, BACKEND …   numpy dtypes of ``struct lb_…`` as the compiler lays them out
CONSTANTS["RING_SLOTS"]   the ``#define LB_…`` numbers
FLAGS["VIP_QUIC"]         the enums of flags
REASONS[3]                Reason(number, name, verdict, text)
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from schemas.errors import BpfleetError

FOLDER = Path(__file__).resolve().parent.parent.parent / "bpf" / "xdp"
Dtype = np.dtype[Any]
_STRUCT = re.compile(r"^struct (lb_\w+) \{\n(.*?)^\};", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"(u8|u16|u32|u64)\s+([^;]+);")
_NAME = re.compile(r"(\w+)(?:\[(\d+)\])?$")
_DEFINE = re.compile(r"^#define LB_(\w+) (\d+)\b", re.MULTILINE)
_FLAG = re.compile(r"\bLB_(\w+) = (\d+),")
_REASONS = re.compile(r"#define LB_(PASS|DROP|REPLY|FORWARD)_REASONS\(X\)((?:.*\\\n)+.*)")
_REASON = re.compile(r'X\((\w+), "([^"]*)"\)')
_COMMENT = re.compile(r"//[^\n]*")


@dataclass(frozen=True)
class Reason:
    """Why a packet ended as it did; ``verdict`` is pass, drop, reply or forward."""

    number: int
    name: str
    verdict: str
    text: str


def _read(name: str) -> str:
    try:
        return (FOLDER / name).read_text()
    except OSError as error:
        raise BpfleetError(f"cannot read {FOLDER / name}: {error.strerror}; reinstall bpfleet") from None


def _dtype(body: str) -> Dtype:
    fields: list[Any] = []
    for kind, names in _FIELD.findall(_COMMENT.sub("", body)):
        for each in names.split(","):
            found = _NAME.match(each.strip())
            assert found is not None, each
            one = f"<u{int(kind[1:]) // 8}"
            fields.append((found[1], one, (int(found[2]),)) if found[2] else (found[1], one))
    return np.dtype(fields, align=True)


def structs(text: str) -> dict[str, Dtype]:
    """Every ``struct lb_…`` of fixed-width fields in a header."""
    return {name: _dtype(body) for name, body in _STRUCT.findall(text)}


def reasons(text: str) -> tuple[Reason, ...]:
    """The reasons in the order of their numbers."""
    found = [
        (verdict.lower(), name, words)
        for verdict, body in _REASONS.findall(text)
        for name, words in _REASON.findall(body)
    ]
    return tuple(Reason(number, name, verdict, words) for number, (verdict, name, words) in enumerate(found))


STRUCTS = structs(_read("balancer_structs.h"))
_CONSTS = _read("balancer_consts.h")
CONSTANTS = {name: int(value) for name, value in _DEFINE.findall(_CONSTS)}
FLAGS = {name: int(value) for name, value in _FLAG.findall(_CONSTS)}
REASONS = reasons(_CONSTS)
REASON = {each.name: each for each in REASONS}

VIP_KEY, VIP = STRUCTS["lb_vip_key"], STRUCTS["lb_vip"]
SLOT, BACKEND, COUNTERS = STRUCTS["lb_slot"], STRUCTS["lb_backend"], STRUCTS["lb_counters"]
SETTINGS, BUDGET = STRUCTS["lb_settings"], STRUCTS["lb_budget"]
PREFIX_KEY, PREFIX = STRUCTS["lb_prefix_key"], STRUCTS["lb_prefix"]
SOURCE_KEY, QUIC_KEY = STRUCTS["lb_source_key"], STRUCTS["lb_quic_key"]
FLOW_KEY, FLOW_ENTRY = STRUCTS["lb_flow_key"], STRUCTS["lb_flow_entry"]
RING_SLOTS = CONSTANTS["RING_SLOTS"]
TICK_SHIFT = CONSTANTS["TICK_SHIFT"]


def record(kind: Dtype, **values: Any) -> bytes:
    """One struct with these fields, the others 0; bytes for a field of bytes."""
    one = np.zeros((), kind)
    for name, value in values.items():
        one[name] = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
    return one.tobytes()
