"""Which ports' unicast the kernel forwards, and which the daemon must because of something that the kernel can't do."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from ipvsw.changes import Changes
from ipvsw.linux.fastports import FastDevice, FastFlag


class Limits(Struct, frozen=True):
    """What is set for a port that the kernel can't do, by the word for it, in each direction; and whether there are
    guards, of which the kernel knows which frames they don't mind."""

    sends: tuple[str, ...] = ()
    receives: tuple[str, ...] = ()
    guarded: bool = False


NO_LIMITS = Limits()


def words_of(is_set: Mapping[str, object]) -> tuple[str, ...]:
    """Those for what is set."""
    return tuple(word for word, value in is_set.items() if value)


class FastPaths:
    """Of one switch's ports, by name, those that have the devices for it. Errors: OSError."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._devices: dict[str, tuple[int, FastDevice]] = {}  # with the port's number
        self._links: dict[str, tuple[bool, int]] = {}  # up, MTU
        self._limits: dict[str, Limits] = {}

    def attach(self, port: str, number: int, device: FastDevice, mtu: int) -> None:
        self._devices[port], self._links[port] = (number, device), (False, mtu)
        self._apply(port)

    def detach(self, port: str) -> None:
        """Nothing happens if it isn't attached."""
        self._devices.pop(port, None)
        self._limits.pop(port, None)

    def set_link(self, port: str, *, up: bool, mtu: int) -> None:
        if port in self._devices:
            self._links[port] = up, mtu
            self._apply(port)

    def restrict(self, port: str, limits: Limits) -> None:
        if port in self._devices:
            self._limits[port] = limits
            self._apply(port)

    def path(self, port: str) -> str:
        """Who forwards the port's unicast, and why; "" for a port without such devices."""
        if port not in self._devices:
            return ""
        limits = self._limits.get(port, NO_LIMITS)
        reasons = dict.fromkeys([*limits.sends, *limits.receives])
        return f"slow ({', '.join(reasons)})" if reasons else "fast"

    def _apply(self, port: str) -> None:
        number, device = self._devices[port]
        up, mtu = self._links[port]
        limits = self._limits.get(port, NO_LIMITS)
        is_set = {
            FastFlag.UP: up,
            FastFlag.SENDS: not limits.sends,
            FastFlag.RECEIVES: not limits.receives,
            FastFlag.GUARDED: limits.guarded,
        }
        flags = FastFlag(sum(flag for flag, on in is_set.items() if on))
        self._changes.set_fast(number, device, mtu, flags)
