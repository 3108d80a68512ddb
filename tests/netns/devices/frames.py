"""Frames for devices under test."""

from __future__ import annotations

import struct
from collections.abc import Callable

from ipvsw.linux.devices import tap
from tests.support.spaces import Namespace

Make = Callable[..., Namespace]
Pair = Callable[..., tuple[str, str]]
HEADER = bytes(tap.VNET_HEADER)


def frame(destination: str = "ff:ff:ff:ff:ff:ff", kind: int = 0x88B5, text: bytes = b"") -> bytes:
    """An Ethernet frame of a local experimental type (IEEE 802, 88b5)."""
    source = bytes.fromhex("020000000001")
    return (bytes.fromhex(destination.replace(":", "")) + source + struct.pack("!H", kind) + text).ljust(60, b"\0")
