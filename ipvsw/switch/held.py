"""What of a master outlives the daemon: the receiving sockets, the TAP for tunnels and the host's interface, by the
names under which the holder of descriptors has them.

Frames wait in the receiving sockets' rings while no daemon runs, as they do in the TAPs of ports. A daemon that leaves
in good order says how far it has read. Of one that was killed the frames that wait tell it: what it had in hand, a
burst at most, is read again. Where none waits the sockets are made anew.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from hashlib import blake2b

from msgspec import Struct

from ipvsw.linux.devices.tap import Tap
from ipvsw.linux.lasting.fdstore import FdStore, close_fds
from ipvsw.linux.netlink import Link
from ipvsw.switch.hostport import HostLeft

COUNTS = "counts"  # the map of what the kernel has forwarded
TUNNELS = "tunnels"  # the TAP by which GSO frames of tunnels leave


class MasterLeft(Struct, frozen=True):
    """What the last daemon had on a master when it ended."""

    index: int
    place: tuple[int, int]  # the identity of its namespace
    frames: tuple[int, ...]  # descriptors of the receiving sockets
    ring: tuple[int, int]  # of each of them: slots, and bytes of a slot
    starts: tuple[int, ...] = ()  # the slots that come next; (): it was killed
    groups: frozenset[bytes] = frozenset()  # that the device listens to for them
    host: HostLeft | None = None  # the host's interface
    tunnels: int | None = None  # the descriptor of the TAP for tunnels


def held_name(switch: str, word: str) -> str:
    """The name under which a descriptor of the master's is held, see `FdStore`. `word`: "host", COUNTS, TUNNELS, or a
    worker's number."""
    return f"master-{blake2b(switch.encode(), digest_size=12).hexdigest()}-{word}"


def frame_names(switch: str, workers: int) -> list[str]:
    """Those of the receiving sockets."""
    return [held_name(switch, str(worker)) for worker in range(workers)]


class HeldFrames:
    """One master's receiving sockets and TAP for tunnels: the last daemon's, and this one's for the next."""

    def __init__(self, store: FdStore, switch: str, workers: int, left: MasterLeft | None) -> None:
        self._store = store
        self._names = frame_names(switch, workers)
        self._tunnels = held_name(switch, TUNNELS)
        self._left = left

    def take(self, link: Link, place: tuple[int, int] | None) -> MasterLeft | None:
        """What the last daemon had on this very device, whose descriptors are the caller's then."""
        left = self._left
        if left is None or (left.index, left.place) != (link.index, place):
            return None
        self._left = None
        return left

    def hold(self, frames: Sequence[socket.socket], tunnels: Tap | None, *, adopted: bool) -> None:
        """Have a successor find these. `adopted`: the sockets are those of the last daemon, and held already. Their
        numbers would not tell: a socket that was closed leaves its own to the next one."""
        self._discard()
        if tunnels is not None:
            self._store.put(self._tunnels, tunnels.fd)
        else:
            self._store.forget(self._tunnels)
        if adopted:
            return
        for name, each in zip(self._names, frames, strict=True):
            self._store.put(name, each.fileno())

    def release(self) -> None:
        """No successor finds any. Idempotent."""
        self._discard()
        for name in (*self._names, self._tunnels):
            self._store.forget(name)

    async def drop(self) -> None:
        """As `release`; returns when nobody holds the TAP any more, which is gone when the caller closes it."""
        await self._store.drop(self._tunnels)
        self.release()

    def _discard(self) -> None:
        """What was open on a device that is not the master any more."""
        left, self._left = self._left, None
        if left is not None:
            close_fds([*left.frames, *([] if left.tunnels is None else [left.tunnels])])
