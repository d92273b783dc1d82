"""libpcap, under the name that this package knows it by: :mod:`schemas.pcap`."""

from schemas.pcap import Instruction, Program

__all__ = ["Instruction", "Program"]
