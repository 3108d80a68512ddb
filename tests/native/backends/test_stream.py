"""Ports that are unix sockets: framing, what waits for room, and speakers that don't keep to the rules."""

from __future__ import annotations

import random
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from ipvsw._fast import EVENT_GONE, FRAMINGS
from ipvsw.packets import segment
from tests.native.interfaces import MASTER, Lab, between, broadcast, frame, ipv4, lab, v4
from tests.native.speakers import Speaker
from tests.support.patience import LIMIT, until
from tests.support.wire.packets import TCP, TCPV4, TCPV6, UDP, USO, Made, verify

EVERY = pytest.mark.parametrize("framing", ["stream", "packets", "datagrams"])
MOST = 65535 + 18


@pytest.fixture(params=[1, 2], ids=["1-worker", "2-workers"])
def it(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Two devices, numbers 0 and 1; what is added has the next ones."""
    with lab(2, workers=request.param) as made:
        yield made


def to_speaker(k: int, payload: bytes, *, gso: int = 0, size: int = 0, version: int = 4, protocol: int = TCP) -> bytes:
    """A virtio_net_hdr and a frame from a device's kernel, its checksum partial, for the address of port k."""
    destination = v4(k) if version == 4 else bytes.fromhex("fd00" + "00" * 12) + (k + 1).to_bytes(2, "big")
    source = v4(0) if version == 4 else bytes.fromhex("fd00" + "00" * 13) + b"\1"
    made = Made(version, protocol, payload, source=source, destination=destination)
    whole = made.frame(gso, size)
    return whole[:10] + MASTER + MASTER + whole[22:]


# ------------------------------------------------------------------------------------------ frames


@EVERY
def test_frames_pass_both_ways(it: Lab, framing: str) -> None:
    one = Speaker(it, framing, 2)
    for n in range(200):
        it.interfaces[0].send(between(0, 2, n.to_bytes(8, "big")))
        assert one.receive() == between(0, 2, n.to_bytes(8, "big"))
        one.send(between(2, 1, n.to_bytes(8, "big")))
        assert it.interfaces[1].receive() == between(2, 1, n.to_bytes(8, "big"))
    counted = it.settled(one.number, 200)
    assert counted.outcomes == {"to_port": 200}
    assert (counted.tx_frames, counted.tx_errors) == (200, 0)
    assert counted.tx_bytes == counted.rx_bytes == 200 * len(between(0, 2))
    one.disconnect()


@EVERY
def test_many_frames_at_once_keep_their_order(it: Lab, framing: str) -> None:
    a, b = Speaker(it, framing, 2), Speaker(it, framing, 3)
    sent = [between(2, 3, n.to_bytes(4, "big") + bytes(n % 700)) for n in range(1000)]
    sender = threading.Thread(target=lambda: a.send(*sent))
    sender.start()
    came: list[bytes] = []
    while len(came) < len(sent):  # less than what may wait, so that none is lost
        came.append(b.receive())
    sender.join()
    assert came == sent
    assert it.settled(a.number, 1000).outcomes == {"to_port": 1000}
    assert it.counted(b.number).tx_frames == 1000


def test_a_stream_may_be_cut_anywhere(it: Lab) -> None:
    one = Speaker(it, "stream", 2)
    rng = random.Random(1)
    sent = [between(2, 0, n.to_bytes(4, "big") + bytes(rng.randrange(1400))) for n in range(60)]
    data = b"".join(len(each).to_bytes(4, "big") + each for each in sent)
    at = 0
    while at < len(data):
        end = min(len(data), at + rng.choice([1, 2, 3, 5, 700, 5000]))
        one.write(data[at:end])
        at = end
    assert [it.interfaces[0].receive() for _ in sent] == sent
    one.write(b"\0\0")
    one.write(b"\0")
    assert it.settled(one.number, 60).rx_frames == 60
    one.disconnect()


@EVERY
def test_multicast_frames_reach_sockets_and_come_from_them(it: Lab, framing: str) -> None:
    one, other = Speaker(it, framing, 2), Speaker(it, framing, 3)
    one.send(broadcast(2))
    assert other.receive() == it.interfaces[0].receive() == it.interfaces[1].receive() == broadcast(2)
    assert it.master[0].receive() == broadcast(2) if len(it.master) == 1 else True
    it.interfaces[0].send(broadcast(0))
    assert one.receive() == other.receive() == broadcast(0)
    assert it.settled(one.number, 1).outcomes == {"to_ports": 1}


# ------------------------------------------------------------------------------------------ offloads


@EVERY
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("protocol", "gso"), [(TCP, {4: TCPV4, 6: TCPV6}), (UDP, {4: USO, 6: USO})], ids=["tcp", "udp"]
)
def test_gso_frames_are_cut(it: Lab, framing: str, version: int, protocol: int, gso: dict[int, int]) -> None:
    one = Speaker(it, framing, 2)
    payload = random.Random(7).randbytes(60000)
    whole = to_speaker(2, payload, gso=gso[version], size=1400, version=version, protocol=protocol)
    it.interfaces[0].room(1 << 20)
    for _ in range(3):
        it.interfaces[0].outside.send(whole)
        wanted = segment.segment(segment.parse(whole))
        for packet in wanted:
            came = one.receive()
            assert came[14:] == packet and came[:12] == MASTER + MASTER
            verify(came[14:])
    assert it.settled(0, 3).outcomes == {"to_port": 3}
    assert it.counted(one.number).tx_frames == 3 * len(wanted)


@EVERY
def test_sums_are_completed(it: Lab, framing: str) -> None:
    one = Speaker(it, framing, 2)
    for protocol in (TCP, UDP):
        it.interfaces[0].outside.send(to_speaker(2, b"payload!", protocol=protocol))
        verify(one.receive()[14:])


def test_a_header_that_lies_is_dropped(it: Lab) -> None:
    one = Speaker(it, "stream", 2)
    good = to_speaker(2, bytes(3000), gso=TCPV4, size=1000)
    lies = [
        good[:8] + b"\xff\xff" + good[10:],  # csum_offset
        good[:6] + b"\xff\xff" + good[8:],  # csum_start
        good[:4] + b"\0\0" + good[6:],  # gso_size
        good[:2] + b"\xff\xff" + good[4:],  # hdr_len
        good[:1] + b"\x09" + good[2:],  # gso_type
    ]
    for lie in lies:
        it.interfaces[0].outside.send(lie)
    it.interfaces[0].send(between(0, 2))
    assert one.receive() == between(0, 2)
    assert it.settled(0, len(lies) + 1).outcomes == {"drop_bad_header": len(lies), "to_port": 1}
    beyond = 1  # the checksum that starts behind the TCP header: no encapsulation leads there, which is seen at once
    assert it.counted(one.number).tx_errors == len(lies) - beyond


# ------------------------------------------------------------------------------------------ no room


@EVERY
def test_a_speaker_that_does_not_read_loses_its_own_frames_alone(it: Lab, framing: str) -> None:
    one = Speaker(it, framing, 2, connect=False)
    one.connect(room=1 << 15)
    big = between(0, 2, bytes(1400))
    sent = 0
    while it.counted(0).outcomes.get("drop_full", 0) < 50:
        it.interfaces[0].send(big)
        sent += 1
        if sent % 50 == 0:
            it.interfaces[0].send(between(0, 1, sent.to_bytes(8, "big")))
            assert it.interfaces[1].receive() == between(0, 1, sent.to_bytes(8, "big"))
        assert sent < 5000
    counted = it.settled(0, sent + sent // 50).outcomes
    it.interfaces[0].send(between(0, 2))
    wanted = [*[big] * (counted["to_port"] - sent // 50), between(0, 2)]
    assert [one.receive() for _ in wanted] == wanted, "what was taken comes, whole and by itself"


@EVERY
def test_gso_frames_wait_whole_or_not_at_all(it: Lab, framing: str) -> None:
    one = Speaker(it, framing, 2, connect=False)
    one.connect(room=1 << 15)
    it.interfaces[0].room(1 << 20)
    payload = random.Random(3).randbytes(60000)
    whole = to_speaker(2, payload, gso=TCPV4, size=1400)
    count = len(segment.segment(segment.parse(whole)))
    sent = 0
    while it.counted(0).outcomes.get("drop_full", 0) < 3:
        it.interfaces[0].outside.send(whole)
        it.interfaces[0].send(between(0, 2, sent.to_bytes(8, "big")))
        sent += 1
        assert sent < 500
    it.settled(0, 2 * sent)
    came = [one.receive() for _ in range(it.counted(one.number).tx_frames)]
    supers = [each for each in came if len(each) > 100]
    assert len(supers) % count == 0 and len(supers) >= 2 * count
    for each in supers:
        verify(each[14:])
    it.interfaces[0].send(between(0, 2))
    assert one.receive() == between(0, 2), "nothing else came"


def test_several_senders_do_not_break_each_others_frames() -> None:
    """Two workers write to one stream that is read slowly."""
    with lab(4, workers=2) as it:
        one = Speaker(it, "stream", 4, connect=False)
        one.connect(room=1 << 14)
        stop = threading.Event()

        def flood(k: int) -> None:
            n = 0
            while not stop.is_set():
                it.interfaces[k].send(between(k, 4, bytes([k]) + n.to_bytes(8, "big") + bytes([k]) * (n % 1300)))
                n += 1

        threads = [threading.Thread(target=flood, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        last = [-1] * 4
        try:
            for _ in range(8000):
                payload = one.receive()[34:]
                k, n = payload[0], int.from_bytes(payload[1:9], "big")
                assert payload[9:] == bytes([k]) * (n % 1300) and n > last[k], "in order, and whole"
                last[k] = n
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert min(last) > 0


# ------------------------------------------------------------------------------------------ coming and going


@EVERY
def test_who_leaves_is_told_of_and_the_next_starts_anew(it: Lab, framing: str) -> None:
    one = Speaker(it, framing, 2, connect=False)
    it.interfaces[0].send(between(0, 2))
    assert it.settled(0, 1).outcomes == {"drop_port_down": 1}
    for turn in range(5):
        one.connect()
        it.interfaces[0].send(between(0, 2))
        assert one.receive() == between(0, 2)
        if framing == "stream":
            one.write(b"\0\0\5\0half of a frame")
        one.leave()
        if framing != "datagrams":  # which have no end
            assert select.select([it.datapath.notify_fd], [], [], LIMIT)[0]
            assert it.datapath.events() == [(one.number, EVENT_GONE)]
        it.interfaces[0].send(between(0, 2))
        it.settled(0, 3 + 2 * turn)
        one.disconnect()
    it.interfaces[0].send(between(0, 1))
    assert it.interfaces[1].receive() == between(0, 1)
    assert it.datapath.events() == []


@pytest.mark.parametrize("length", [0, MOST + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_length_that_is_none_ends_the_connection(it: Lab, length: int) -> None:
    one = Speaker(it, "stream", 2)
    one.send(between(2, 0))
    one.write(length.to_bytes(4, "big") + bytes(64))
    until(lambda: one.ended(), "the end")
    assert it.interfaces[0].receive() == between(2, 0)
    assert it.settled(one.number, 2).outcomes == {"to_port": 1, "drop_bad_header": 1}
    it.interfaces[0].send(between(0, 2))
    assert it.settled(0, 1).outcomes == {"drop_port_down": 1}
    one.disconnect()
    one.connect()
    it.interfaces[0].send(between(0, 2))
    assert one.receive() == between(0, 2)


@EVERY
def test_runts_and_giants_are_counted(it: Lab, framing: str) -> None:
    one = Speaker(it, framing, 2)
    giant = frame(MASTER, MASTER, ipv4(v4(2), v4(1), bytes(65000)))
    for length in (1, 13):
        one.send(bytes(length))
    one.inside.setsockopt(socket.SOL_SOCKET, 32, 1 << 20)  # type: ignore[union-attr]
    one.outside.setsockopt(socket.SOL_SOCKET, 32, 1 << 20)  # type: ignore[union-attr]
    one.send(giant)
    assert it.settled(one.number, 3).outcomes == {"drop_runt": 2, "drop_too_big": 1}
    if framing == "datagrams":
        one.send(b"")
        one.send(bytes(70000))
        assert it.settled(one.number, 5).outcomes == {"drop_runt": 3, "drop_too_big": 1, "drop_error": 1}
    one.send(between(2, 0))
    assert it.interfaces[0].receive() == between(2, 0)


def test_noise_harms_nobody(it: Lab) -> None:
    """Whatever comes by a stream: every frame ends in a counter, and the siblings go on."""
    rng = random.Random(5)
    one = Speaker(it, "stream", 2)
    for _ in range(150):
        if rng.random() < 0.5:
            data = rng.randbytes(rng.randrange(1, 3000))
        else:
            data = b"".join(
                rng.randrange(1, 90).to_bytes(4, "big") + rng.randbytes(rng.randrange(1, 90)) for _ in range(40)
            )
        try:
            one.write(data)
        except OSError:
            pass
        if one.ended():
            one.disconnect()
            one.connect()
        it.interfaces[0].send(between(0, 1))
        while it.interfaces[1].receive() != between(0, 1):
            pass
        it.interfaces[0].waiting()
        for interface in it.master:
            interface.waiting()
    one.disconnect()
    counted = it.settled(one.number, 101)
    assert counted.outcomes["drop_bad_header"] > 10


def test_a_port_leaves_while_frames_wait(it: Lab) -> None:
    for k in range(4):
        one = Speaker(it, "stream", 2, connect=False)
        one.connect(room=1 << 14)
        for _ in range(300):
            it.interfaces[0].send(between(0, 2, bytes(1400)))
        it.datapath.detach_port(one.number)
        it.datapath.commit()
        for end in (one.inside, one.outside):
            assert end is not None
            end.close()
        it.settled(0, 300 * (k + 1))


def test_the_control_thread_may_write_between(it: Lab) -> None:
    one = Speaker(it, "stream", 2)
    for n in range(50):
        it.interfaces[0].send(between(0, 2, n.to_bytes(8, "big")))
        it.datapath.write_port(one.number, bytes(10) + between(1, 2, n.to_bytes(8, "big")))
    came = [one.receive() for _ in range(100)]
    for k in (0, 1):
        assert [each for each in came if each[26:30] == v4(k)] == [
            between(k, 2, n.to_bytes(8, "big")) for n in range(50)
        ]


def test_bad_arguments(it: Lab) -> None:
    with pytest.raises(ValueError):
        it.datapath.attach_port(-1, 1500, framing=9)
    with pytest.raises(ValueError):
        it.datapath.attach_port(3, 1500, framing=FRAMINGS["stream"])
    with pytest.raises(ValueError):
        it.datapath.connect_port(0, 5)
    with pytest.raises(ValueError):
        it.datapath.write_port(0, bytes(24))
    one = Speaker(it, "stream", 2)
    with pytest.raises(ValueError):
        it.datapath.write_port(one.number, bytes(9))
    it.datapath.connect_port(one.number, 9999)
    with pytest.raises(OSError):
        it.datapath.commit()
    one.disconnect()
    one.connect()
    it.interfaces[0].send(between(0, 2))
    assert one.receive() == between(0, 2)
