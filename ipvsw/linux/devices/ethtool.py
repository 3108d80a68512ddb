"""What a network card does by itself: ethtool's ioctl, where one bit is all that is asked for."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct

SIOCETHTOOL = 0x8946
ETHTOOL_GFLAGS = 0x25  # linux/ethtool.h
ETH_FLAG_LRO = 1 << 15


def has_lro(name: str) -> bool:
    """Whether the device of the thread's namespace merges TCP segments as it receives them, without a way back."""
    value = ctypes.create_string_buffer(struct.pack("=II", ETHTOOL_GFLAGS, 0))
    request = struct.pack("@16sP", name.encode(), ctypes.addressof(value)) + bytes(16)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            fcntl.ioctl(sock, SIOCETHTOOL, request)
        except OSError:  # it has no such flags
            return False
    flags: int = struct.unpack("=II", value.raw[:8])[1]
    return bool(flags & ETH_FLAG_LRO)
