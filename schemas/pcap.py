"""libpcap through ctypes: compile an expression to classic BPF, and judge packets with it.

The interpreter of libpcap itself (:func:`Program.matches`) is the definition of what a rule means, on hosts
that drop packets and for whoever asks what would have been dropped. Needs libpcap (Debian: ``libpcap0.8``).
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import BpfleetError, UsageError

ETHERNET = 1  # DLT_EN10MB
SNAP = 65_535
NETMASK_UNKNOWN = 0xFFFFFFFF
HEADER = np.dtype([("time", "<i8", 2), ("captured", "<u4"), ("length", "<u4")])  # struct pcap_pkthdr


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Code(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.POINTER(_Instruction)))


class _Header(ctypes.Structure):
    _fields_ = (
        ("seconds", ctypes.c_long),
        ("microseconds", ctypes.c_long),
        ("captured", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
    )


@dataclass(frozen=True)
class Instruction:
    """One instruction of classic BPF, as in linux/filter.h."""

    code: int
    jt: int
    jf: int
    k: int


@cache
def _library() -> Any:
    for name in ("libpcap.so.0.8", "libpcap.so.1"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.pcap_open_dead.restype = ctypes.c_void_p
        library.pcap_geterr.restype = ctypes.c_char_p
        library.pcap_geterr.argtypes = [ctypes.c_void_p]
        library.pcap_compile.argtypes = [
            ctypes.c_void_p, ctypes.POINTER(_Code), ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32,
        ]  # fmt: skip
        library.pcap_offline_filter.argtypes = [
            ctypes.POINTER(_Code), ctypes.POINTER(_Header), ctypes.c_char_p,
        ]  # fmt: skip
        return library
    raise BpfleetError("libpcap is not installed; install the package libpcap0.8 (Debian, Ubuntu)")


@cache
def _quick() -> Any:
    """pcap_offline_filter that keeps the interpreter's lock: half the price when called by the million."""
    judge = ctypes.PyDLL(_library()._name).pcap_offline_filter
    judge.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    return judge


@cache
def _handle() -> ctypes.c_void_p:
    return ctypes.c_void_p(_library().pcap_open_dead(ETHERNET, SNAP))


class Program:
    """A compiled expression. It owns libpcap's copy for its lifetime."""

    def __init__(self, expression: str) -> None:
        """Compile, or raise :class:`UsageError` with libpcap's own words."""
        self._code = _Code()
        text = expression.encode()
        if b"\0" in text:
            raise UsageError("an expression cannot contain a NUL character; remove it")
        status = _library().pcap_compile(_handle(), ctypes.byref(self._code), text, 1, NETMASK_UNKNOWN)
        if status != 0:
            self._code = _Code()
            reason = _library().pcap_geterr(_handle()).decode(errors="replace")
            raise UsageError(f"{expression!r}: {reason}; see pcap-filter(7)")

    def __del__(self) -> None:
        if self._code.length:
            _library().pcap_freecode(ctypes.byref(self._code))

    @property
    def instructions(self) -> Sequence[Instruction]:
        """The classic BPF program."""
        raw = self._code.instructions
        return [Instruction(raw[i].code, raw[i].jt, raw[i].jf, raw[i].k) for i in range(self._code.length)]

    def matches(self, packet: bytes, length: int | None = None) -> bool:
        """libpcap's verdict on a frame; ``length`` is that on the wire if the frame is a cut sample."""
        header = _Header(0, 0, len(packet), length or len(packet))
        return bool(_library().pcap_offline_filter(ctypes.byref(self._code), ctypes.byref(header), packet))

    def select(
        self, frames: NDArray[np.uint8], captured: NDArray[Any], length: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """libpcap's verdict on many frames, one a row of ``frames``, of which ``captured`` bytes are of the
        frame; ``length`` is that on the wire. About half a microsecond each."""
        frames = np.ascontiguousarray(frames)
        count, width = frames.shape
        headers = np.zeros(count, HEADER)
        headers["captured"] = np.minimum(captured, width)
        headers["length"] = np.maximum(length, headers["captured"])
        first, data = headers.ctypes.data, frames.ctypes.data
        verdicts = map(
            _quick(), repeat(ctypes.addressof(self._code)), range(first, first + count * HEADER.itemsize,
            HEADER.itemsize), range(data, data + count * width, width),
        )  # fmt: skip
        found: NDArray[np.bool_] = np.fromiter(verdicts, np.int64, count) != 0
        return found
