"""AF_PACKET sockets for tests: frames as a namespace receives them, with what the kernel knows of each."""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import threading
import time
from collections.abc import Iterator

from tests.support.topology import inside, until

ETH_P_ALL = 3
SO_RCVBUFFORCE = 33
SOL_PACKET, PACKET_AUXDATA, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 8, 15, 23
OUTGOING = 4


def raw(netns: str, device: str, protocol: int = 0) -> socket.socket:
    """A socket that sends whole frames from a device; it receives only with a `protocol`."""
    with inside(netns):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind((device, protocol))
    return sock


class Sniffer:
    """Collects (virtio_net_hdr, frame) that a device receives, on a thread of its own."""

    def __init__(self, netns: str, device: str, *, outgoing: bool = False) -> None:
        with inside(netns):
            self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        self.sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self.sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, int(not outgoing))
        self.sock.bind((device, ETH_P_ALL))
        self.sock.settimeout(0.05)
        self.frames: list[tuple[bytes, bytes]] = []
        self.times: list[float] = []  # when each was read
        self.outgoing: list[bool] = []
        self._end = math.inf
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while time.monotonic() < self._end:
            try:
                data, address = self.sock.recvfrom(1 << 17)
            except TimeoutError:
                if self._end < math.inf:
                    return
                continue
            except OSError:  # the device went
                time.sleep(0.01)
                continue
            self.times.append(time.monotonic())
            self.outgoing.append(address[2] == OUTGOING)
            self.frames.append((data[:10], data[10:]))

    def close(self) -> int:
        """Stop when what was received is read, at most a second later. Returns how many frames the socket lost."""
        self._end = time.monotonic() + 1
        self._thread.join()
        lost: int = struct.unpack("II", self.sock.getsockopt(SOL_PACKET, 6, 8))[1]
        self.sock.close()
        return lost

    def count(self, *needles: bytes) -> int:
        """Frames that contain every one of `needles`."""
        return sum(all(needle in frame for needle in needles) for _, frame in list(self.frames))

    def wait(self, needle: bytes, count: int = 1, seconds: float = 3.0) -> None:
        until(lambda: self.count(needle) >= count, seconds, f"{count} frames with {needle!r}")


@contextlib.contextmanager
def sniffing(netns: str, device: str, *, outgoing: bool = False) -> Iterator[Sniffer]:
    sniffer = Sniffer(netns, device, outgoing=outgoing)
    try:
        yield sniffer
    finally:
        if sniffer._end == math.inf:
            sniffer.close()
