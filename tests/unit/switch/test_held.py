"""What is held of a master for the next daemon is what this one reads from."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from ipvsw.linux.devices.tap import Tap
from ipvsw.linux.lasting.fdstore import FdStore
from ipvsw.linux.netlink import Link
from ipvsw.switch.held import TUNNELS, HeldFrames, MasterLeft, frame_names, held_name

INDEX, PLACE = 7, (4, 4026531840)
(NAME,) = frame_names("lan", 1)
TAP = held_name("lan", TUNNELS)


class Holder(FdStore):
    """Keeps the messages."""

    def __init__(self, held: dict[str, int]) -> None:
        super().__init__()
        self._held = held
        self.messages: list[str] = []

    def take(self) -> dict[str, int]:
        return dict(self._held)

    def _send(self, message: str, fd: int = -1) -> None:
        self.messages.append(message)

    def end(self) -> None:
        raise NotImplementedError


@pytest.fixture
def left() -> Iterator[MasterLeft]:
    with socket.socket(socket.AF_UNIX) as sock:
        yield MasterLeft(INDEX, PLACE, (os.dup(sock.fileno()),), (4096, 2048))


def link(index: int = INDEX) -> Link:
    return Link(
        index=index,
        name="m0",
        mac=bytes(6),
        mtu=1500,
        up=True,
        carrier=True,
        all_multicast=False,
        ethernet=True,
        kind="veth",
    )


def test_the_tap_for_tunnels_is_held_in_the_place_of_the_last(left: MasterLeft) -> None:
    frames, holder = made(left)
    assert frames.take(link(), PLACE) is left
    with socket.socket(fileno=left.frames[0]) as sock, socket.socket(socket.AF_UNIX) as device:
        tap = Tap.__new__(Tap)
        tap.fd = device.fileno()
        frames.hold([sock], tap, adopted=True)
        assert holder.held == {NAME: sock.fileno(), TAP: tap.fd}
        frames.hold([sock], tap, adopted=True)
        frames.hold([sock], None, adopted=True)
    assert holder.messages == [f"put {TAP}", f"drop {TAP}", f"put {TAP}", f"drop {TAP}"]


def made(left: MasterLeft) -> tuple[HeldFrames, Holder]:
    holder = Holder({NAME: left.frames[0]})
    return HeldFrames(holder, "lan", 1, left), holder


def test_adopted_sockets_are_held_already(left: MasterLeft) -> None:
    frames, holder = made(left)
    assert frames.take(link(), PLACE) is left
    with socket.socket(fileno=left.frames[0]) as sock:
        frames.hold([sock], None, adopted=True)
    assert holder.messages == []


def test_a_new_socket_with_the_number_of_one_that_was_closed_is_held(left: MasterLeft) -> None:
    frames, holder = made(left)
    assert frames.take(link(), PLACE) is left
    with socket.socket(socket.AF_UNIX) as sock:
        os.dup2(sock.fileno(), left.frames[0])
    with socket.socket(fileno=left.frames[0]) as again:
        frames.hold([again], None, adopted=False)
    assert holder.messages == [f"drop {NAME}", f"put {NAME}"]


def test_what_was_left_on_another_device_is_closed(left: MasterLeft) -> None:
    frames, holder = made(left)
    assert frames.take(link(index=8), PLACE) is None
    with socket.socket(socket.AF_UNIX) as sock:
        frames.hold([sock], None, adopted=False)
        assert holder.held == {NAME: sock.fileno()}
    assert holder.messages == [f"drop {NAME}", f"put {NAME}"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(left.frames[0])
