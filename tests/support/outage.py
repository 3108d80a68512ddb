"""What an outage looks like from a namespace: datagrams that are missing, and what the kernel announces of devices."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import subprocess
import threading
import time

from tests.support.patience import LIMIT, until
from tests.support.topology import Lab, inside
from tests.support.traffic import family, listen

RATE = 2000  # datagrams a second
SO_RCVBUFFORCE = 33  # asm-generic/socket.h


class Numbered:
    """Datagrams with numbers from one namespace to an address of another, `rate` a second. A context manager."""

    def __init__(self, source: str, target: str, address: str, rate: int = RATE) -> None:
        self.sent = 0
        self._rate = rate
        self.received: list[tuple[float, int]] = []  # when, which
        self._receiver = listen(target, address, socket.SOCK_DGRAM)
        self._receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)  # what has waited comes at once
        with inside(source):
            self._sender = socket.socket(family(address), socket.SOCK_DGRAM)
        self._sender.connect(self._receiver.getsockname()[:2])
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._receive)]

    def __enter__(self) -> Numbered:
        for thread in self._threads:
            thread.start()
        until(lambda: self.received, "datagrams arrive")
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        self._sender.close()
        self._receiver.close()

    def _send(self) -> None:
        start = time.monotonic()
        while not self._ending.is_set():
            for _ in range(int((time.monotonic() - start) * self._rate) - self.sent):
                self._sender.send(struct.pack("!I", self.sent))
                self.sent += 1
            time.sleep(0.002)

    def _receive(self) -> None:
        self._receiver.settimeout(0.2)
        while not self._ending.is_set():
            try:
                content = self._receiver.recv(64)
            except TimeoutError:
                continue
            self.received.append((time.monotonic(), struct.unpack("!I", content)[0]))

    def goes_on(self) -> None:
        """Datagrams that are sent from now on arrive."""
        now = self.sent
        until(lambda: self.received[-1][1] > now, "datagrams arrive again")

    @property
    def gap(self) -> float:
        """Seconds between two that arrived, at most."""
        times = [when for when, _ in self.received]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    @property
    def lost(self) -> int:
        """Of those before the last that arrived."""
        numbers = [number for _, number in self.received]
        return max(numbers) + 1 - min(numbers) - len(set(numbers))

    @property
    def doubled(self) -> int:
        return len(self.received) - len({number for _, number in self.received})


class LinkEvents:
    """What `ip monitor` prints of the devices of a namespace, from now on. A context manager."""

    def __init__(self, lab: Lab, netns: str) -> None:
        self._lab, self._netns = lab, netns
        self._process: subprocess.Popen[str] = lab.spawn(netns, "ip", "-d", "-o", "monitor", "link", "address", "route")
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._marks = 0

    def __enter__(self) -> LinkEvents:
        self._reader.start()
        self._mark()
        self._lines.clear()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(LIMIT)
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._lines += iter(self._process.stdout.readline, "")

    def _mark(self) -> None:
        """Everything before is in `_lines`."""
        self._marks += 1
        mark = f"mark{os.getpid()}x{self._marks}"

        def is_seen() -> bool:
            self._lab.ip(self._netns, "link", "set", "lo", "alias", mark)
            return any(mark in line for line in self._lines)

        until(is_seen, "ip monitor prints", every=0.05)

    def disturbances(self) -> list[str]:
        """Events of lost carriers and of what was deleted or set down."""
        self._mark()
        return [line for line in self._lines if "NO-CARRIER" in line or "Deleted" in line or "state DOWN" in line]
