"""AF_PACKET sockets for tests: frames as a namespace receives them, with what the kernel knows of each."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

from tests.support.patience import until
from tests.support.topology import inside

ETH_P_ALL = 3
SO_RCVBUFFORCE = 33
SOL_PACKET, PACKET_AUXDATA, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 8, 15, 23
ROOM = 1 << 26  # bytes that a socket keeps
MOST = ROOM // 512  # frames in that room: each takes more than this


def raw(netns: str, device: str, protocol: int = 0) -> socket.socket:
    """A socket that sends whole frames from a device; it receives only with a `protocol`."""
    with inside(netns):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind((device, protocol))
    return sock


class Sniffer:
    """Collects (virtio_net_hdr, frame) that a device receives, on a thread of its own. Whatever has come by the time
    of a question is in its answer."""

    def __init__(self, netns: str, device: str, *, outgoing: bool = False) -> None:
        with inside(netns):
            self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        self.sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
        self.sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self.sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, int(not outgoing))
        self.sock.bind((device, ETH_P_ALL))
        self._frames: list[tuple[bytes, bytes]] = []
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self.sock, select.POLLIN)
        while not any(fd == self._wake for fd, _ in poll.poll()):
            with self._lock:
                self._drain()

    def _drain(self) -> None:
        """What waits, which is no more than there is room for: a flood would never end."""
        for _ in range(MOST):
            try:
                data = self.sock.recv(1 << 17)
            except BlockingIOError:
                return
            except OSError:  # the device went
                time.sleep(0.01)
                return
            self._frames.append((data[:10], data[10:]))

    def _caught_up(self) -> None:
        if self._thread.is_alive():
            with self._lock:
                self._drain()

    @property
    def frames(self) -> list[tuple[bytes, bytes]]:
        self._caught_up()
        return self._frames

    def close(self) -> int:
        """Stop, with everything that was received read. Returns how many frames the socket lost."""
        if not self._thread.is_alive():
            return 0
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._drain()
        lost: int = struct.unpack("II", self.sock.getsockopt(SOL_PACKET, 6, 8))[1]
        self.sock.close()
        os.close(self._wake)
        return lost

    def count(self, *needles: bytes) -> int:
        """Frames that contain every one of `needles`."""
        return sum(all(needle in frame for needle in needles) for _, frame in self.frames)

    def wait(self, needle: bytes, count: int = 1) -> None:
        until(lambda: self.count(needle) >= count, f"{count} frames with {needle!r}")


@contextlib.contextmanager
def sniffing(netns: str, device: str, *, outgoing: bool = False) -> Iterator[Sniffer]:
    sniffer = Sniffer(netns, device, outgoing=outgoing)
    try:
        yield sniffer
    finally:
        sniffer.close()
