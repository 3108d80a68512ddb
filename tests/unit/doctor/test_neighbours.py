"""ARP probes on a LAN that never falls silent."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from ipvsw.doctor import neighbours
from tests.support.patience import LIMIT

MAC, OWN = bytes.fromhex("02000000000a"), bytes.fromhex("020000000001")
ASKED = "192.0.2.7"


class Flooded:
    """A packet socket that always has a frame."""

    def __init__(self, *_: object) -> None:
        self.until = time.monotonic() + LIMIT

    def __enter__(self) -> Flooded:
        return self

    def __exit__(self, *_: object) -> None: ...

    def bind(self, address: tuple[str, int]) -> None: ...

    def send(self, frame: bytes) -> None: ...

    def recv(self, size: int) -> bytes:
        assert time.monotonic() < self.until, "it goes on for as long as frames come"
        answer = neighbours.ARP.pack(1, 0x0800, 6, 4, neighbours.REPLY, MAC, bytes([192, 0, 2, 7]), OWN, bytes(4))
        return OWN + MAC + bytes.fromhex("0806") + answer


def test_who_floods_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = SimpleNamespace(AF_PACKET=17, SOCK_RAW=3, htons=lambda number: number, socket=Flooded)
    monkeypatch.setattr(neighbours, "socket", sockets)
    monkeypatch.setattr(neighbours, "select", SimpleNamespace(select=lambda reading, *_: (reading, [], [])))
    assert neighbours.ask("m0", OWN, [ASKED]) == {ASKED: {MAC.hex(":")}}
