"""Which ports' unicast the kernel forwards, and which the daemon must because of something that the kernel can't do."""

from __future__ import annotations

from collections.abc import Mapping

from ipvsw.changes import Changes
from ipvsw.linux.fastports import FastDevice, FastFlag


class FastPaths:
    """Of one switch's ports, by name, those that have the devices for it. Errors: OSError."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._devices: dict[str, tuple[int, FastDevice]] = {}  # with the port's number
        self._links: dict[str, tuple[bool, int]] = {}  # up, MTU
        self._reasons: dict[str, tuple[str, ...]] = {}

    def attach(self, port: str, number: int, device: FastDevice, mtu: int) -> None:
        self._devices[port], self._links[port] = (number, device), (False, mtu)
        self._apply(port)

    def detach(self, port: str) -> None:
        """Nothing happens if it isn't attached."""
        self._devices.pop(port, None)
        self._reasons.pop(port, None)

    def set_link(self, port: str, *, up: bool, mtu: int) -> None:
        if port in self._devices:
            self._links[port] = up, mtu
            self._apply(port)

    def restrict(self, port: str, is_set: Mapping[str, object]) -> None:
        """What the kernel can't do, by the word for it, and whether it is set for the port."""
        if port in self._devices:
            self._reasons[port] = tuple(word for word, value in is_set.items() if value)
            self._apply(port)

    def path(self, port: str) -> str:
        """Who forwards the port's unicast, and why; "" for a port without such devices."""
        if port not in self._devices:
            return ""
        reasons = self._reasons.get(port, ())
        return f"slow ({', '.join(reasons)})" if reasons else "fast"

    def _apply(self, port: str) -> None:
        number, device = self._devices[port]
        up, mtu = self._links[port]
        flags = FastFlag.UP if up else FastFlag(0)
        if not self._reasons.get(port):
            flags |= FastFlag.SENDS | FastFlag.RECEIVES
        self._changes.set_fast(number, device, mtu, flags)
