"""What a reader of captured frames does with them: rings, filters, words, pcapng, and the API's part."""

from __future__ import annotations

import mmap
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipvsw.capture.filters import BadFilter, Filter
from ipvsw.capture.pcapng import BROADCAST, INBOUND, interface, packet, packet_options, section
from ipvsw.capture.ring import HELD, PADDING, RECORD, RX, TX, VOID, Captured, Ring, Rings
from ipvsw.capture.session import Ended, Session
from ipvsw.capture.words import described, fate, line
from ipvsw.cli.diagnose.pcap import frames
from ipvsw.client import Client, Stream
from ipvsw.outcomes import OUTCOMES
from ipvsw.status import CaptureAsked
from tests.support.patience import LIMIT, until
from tests.support.wire.frames import udp4
from tests.unit.daemon.fake_manager import Daemon

HEAD, SIZE = 64, 4096
NUMBERS = {name: number for number, name in enumerate(OUTCOMES)}
FRAME = udp4("10.1.0.1", "10.1.0.2", b"payload")


class Written:
    """A ring as the data plane writes it."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.truncate(self.fd, HEAD + SIZE)
        self.memory = mmap.mmap(self.fd, 0)
        self.at = self.number = 0

    def put(self, frame: bytes, direction: int = RX, outcome: int = 0) -> None:
        length = (RECORD.size + len(frame) + 7) // 8 * 8
        if SIZE - self.at % SIZE < length:
            padding = SIZE - self.at % SIZE
            struct.pack_into("=II", self.memory, HEAD + self.at % SIZE, padding, PADDING)
            self.at += padding
        start = HEAD + self.at % SIZE
        record = length, len(frame), 10**18, self.number, 3, 4, outcome, direction, 0, bytes(10)
        RECORD.pack_into(self.memory, start, *record)
        self.memory[start + RECORD.size : start + RECORD.size + len(frame)] = frame
        self.number += 1
        self.at += length
        struct.pack_into("=QQQ", self.memory, 0, self.at, self.at, self.number)

    def reader(self) -> Ring:
        return Ring(memoryview(self.memory), SIZE)


def test_every_record_is_read_once_across_the_end() -> None:
    written = Written()
    ring = written.reader()
    for k in range(500):
        frame = bytes([k % 256]) * (k % 300)
        written.put(frame)
        assert [one.frame for one in ring.read()] == [frame]
    assert ring.lost == 0


def test_what_was_overwritten_is_counted() -> None:
    written = Written()
    ring = written.reader()
    written.put(bytes(100))
    assert len(list(ring.read())) == 1
    for _ in range(100):
        written.put(bytes(100))
    assert list(ring.read()) == [] and ring.lost == 100
    written.put(bytes(100))
    assert len(list(ring.read())) == 1 and ring.lost == 100


def test_one_that_has_read_nothing_yet_knows_too() -> None:
    written = Written()
    ring = written.reader()
    for _ in range(100):
        written.put(bytes(100))
    assert list(ring.read()) == [] and ring.lost == 100


def test_a_write_that_failed_is_no_frame() -> None:
    written = Written()
    ring = written.reader()
    written.put(bytes(100), direction=VOID)
    written.put(bytes(60))
    assert [len(one.frame) for one in ring.read()] == [60]
    assert ring.lost == 0


def test_rings_of_several_workers() -> None:
    written = Written()
    rings = Rings(written.fd, head=HEAD, size=SIZE)
    written.put(FRAME)
    assert [one.frame for one in rings.read()] == [FRAME] and rings.lost == 0


@pytest.fixture
def session() -> Session:
    ends = socket.socketpair()
    made = Session(
        Rings(Written().fd, head=HEAD, size=SIZE),
        {name: one.reason for name, one in OUTCOMES.items()},
        Stream(ends[0], b""),
    )
    made.learn([{"event": "interface", "tag": 3, "name": "lan/web", "captured": True}])
    made.learn([{"event": "interface", "tag": 4, "name": "lan/db"}])
    return made


def captured(outcome: str | None = "to_port", direction: int = RX, **more: object) -> Captured:
    made = Captured(10**18, 3, 4, HELD if outcome is None else NUMBERS[outcome], direction, False, bytes(10), FRAME)
    return made._replace(**more)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (captured(), "delivered: to_port lan/db: the port that owns the destination address gets it"),
        (captured("drop_runt", peer=0), "dropped: drop_runt: it is shorter than an Ethernet header"),
        (captured(None, peer=0), "held: the daemon looks at it before it goes on"),
        (
            captured("to_ports", peer=0, again=True),
            "after the daemon has looked at it: delivered: to_ports: every port that listens to the group gets a copy",
        ),
        (captured(direction=TX), "sent, from lan/db"),
        (captured(direction=TX, peer=0), "sent: a copy, or made by the switch"),
        (
            captured(direction=TX, header=bytes([1, 1, 54, 0]) + (1448).to_bytes(2, "little") + bytes(4)),
            "sent, from lan/db; a GSO frame, of segments of 1448 bytes",
        ),
    ],
)
def test_the_fate_of_a_frame(session: Session, one: Captured, words: str) -> None:
    assert fate(one, session) == words


def test_a_line_has_it_all(session: Session) -> None:
    said = line(captured(), session)
    assert said.partition(".000000  ")[2] == (
        "lan/web in   49 bytes, IPv4 10.1.0.1 -> 10.1.0.2: delivered: to_port lan/db:"
        " the port that owns the destination address gets it"
    )


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (b"", "0 bytes"),
        (bytes(12) + b"\x08\x00", "14 bytes, IPv4 00:00:00:00:00:00 -> 00:00:00:00:00:00"),
        (bytes(12) + b"\x88\xb5", "14 bytes, ethertype 0x88b5 00:00:00:00:00:00 -> 00:00:00:00:00:00"),
        (bytes(12) + b"\x86\xdd" + bytes(40), "54 bytes, IPv6 :: -> ::"),
    ],
)
def test_what_is_said_of_any_frame(frame: bytes, words: str) -> None:
    assert described(frame) == words


def test_pcapng_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "seen.pcapng"
    options = packet_options("why it is here", INBOUND | BROADCAST, 2)
    blocks = [section("ipvsw"), interface("lan/web", "a port")]
    blocks += [packet(0, 10**18, bytes(range(length)), options, lost=7) for length in (60, 61, 62, 63)]
    file.write_bytes(b"".join(blocks))
    assert [len(frame) for frame in frames(str(file))] == [60, 61, 62, 63]


def test_filters_are_libpcaps() -> None:
    matching = Filter("udp and host 10.1.0.2")
    assert matching.matches(FRAME) and not matching.matches(bytes(60))
    with pytest.raises(BadFilter, match="syntax error"):
        Filter("udp and and")


# ---------------------------------------------------------------------------- by the API


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path / "api.sock")
    yield made
    made.close()


def test_the_memory_comes_before_what_is_said_of_it(daemon: Daemon) -> None:
    with Client(str(daemon.path), timeout=LIMIT).capture("lan") as (fd, stream):
        assert os.fstat(fd)
        assert stream.read() == [{"event": "interface", "name": "lan/ipvl0", "tag": 3, "captured": True}]
        assert daemon.manager.calls == [("capture", CaptureAsked(at="lan"))]
    until(lambda: daemon.manager.calls[1:] == [("captured",)], "the daemon sees at once that the reader has gone")


def test_the_end_of_the_daemon_is_seen(daemon: Daemon) -> None:
    with Client(str(daemon.path), timeout=LIMIT).capture() as (_, stream):
        stream.read()
        written = Written()
        made = Session(Rings(written.fd, head=HEAD, size=SIZE), {}, stream)
        daemon.call_soon(daemon.manager.end_streams)
        with pytest.raises(Ended):
            list(made.frames())
