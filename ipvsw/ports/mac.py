"""The MAC address that a port is given, if it has one of its own."""

from __future__ import annotations

from hashlib import blake2b


def own_mac(switch: str, port: str, master: bytes) -> bytes:
    """6 bytes, locally administered (IEEE 802 section 8.4): the same after a restart, and others for every other MAC
    address of a `master`, switch and port."""
    digest = blake2b(f"{switch}/{port}".encode(), digest_size=6, key=master, person=b"ipvsw").digest()
    return bytes([digest[0] & 0xFC | 2]) + digest[1:]
