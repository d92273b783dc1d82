"""The mark of rows that no kernel saw: their boot id is a UUID of a version that kernels never make.

Linux makes random ones (version 4); ours are of version 8, which RFC 9562 leaves to its users. The mark
travels in the envelope of each batch and stands in each row: one condition tells the two apart in any table.
"""

import hashlib

PREFIX = bytes.fromhex("51301a7e0000")  # then the version's nibble
SQL = f"substring(toString(boot), 1, 15) = '{PREFIX.hex()[:8]}-{PREFIX.hex()[8:]}-8'"


def boot(name: str) -> bytes:
    """The boot id of what ``name`` names: one run of one simulated host."""
    rest = bytearray(hashlib.blake2b(name.encode(), digest_size=10).digest())
    rest[0] = 0x80 | rest[0] & 0x0F
    rest[2] = 0x80 | rest[2] & 0x3F  # the variant that a UUID has
    return PREFIX + bytes(rest)


def is_simulated(boot_id: bytes) -> bool:
    """Whether a batch of that boot id was simulated."""
    return boot_id[:6] == PREFIX and boot_id[6] >> 4 == 8
