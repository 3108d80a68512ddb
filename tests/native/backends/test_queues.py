"""A port with several queues: each has a worker that reads it, and all write."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.native.interfaces import Interface, Lab, between, frame, ipv4, lab, v4
from tests.support.patience import until

WORKERS, QUEUES = 3, 2
EACH = 3000  # frames of one flow

pytestmark = pytest.mark.usefixtures("io")


@pytest.fixture
def wide() -> Iterator[tuple[Lab, int, list[Interface]]]:
    """Ports 0 and 1 with one queue, and port 2 with the interfaces of its two; it begins with the third worker."""
    with lab(2, workers=WORKERS) as it:
        interfaces = [Interface() for _ in range(QUEUES)]
        number = it.datapath.attach_port(interfaces[0].inside.fileno(), 1500, extra_fds=[interfaces[1].inside.fileno()])
        it.datapath.set_port(number, up=True, mtu=1500)
        it.datapath.bind(v4(2), number)
        it.datapath.commit()
        try:
            yield it, number, interfaces
        finally:
            it.datapath.close()
            for interface in interfaces:
                interface.close()


def numbered(target: int, flow: int, number: int) -> bytes:
    return between(2, target) + bytes([flow]) + number.to_bytes(4, "big")


def test_each_queue_is_read_and_a_flow_stays_in_order(wide: tuple[Lab, int, list[Interface]]) -> None:
    it, number, interfaces = wide
    for interface in it.interfaces:
        interface.room(EACH * 4096)

    def send(queue: int) -> None:
        for k in range(EACH):
            interfaces[queue].send(numbered(queue, queue, k))

    senders = [threading.Thread(target=send, args=(queue,)) for queue in range(QUEUES)]
    for sender in senders:
        sender.start()
    for queue in range(QUEUES):
        for k in range(EACH):
            assert it.interfaces[queue].receive() == numbered(queue, queue, k)
    for sender in senders:
        sender.join()
    counted = it.settled(number, QUEUES * EACH)
    assert counted.rx_frames == QUEUES * EACH
    assert counted.outcomes == {"to_port": QUEUES * EACH}


def test_a_frame_for_the_port_comes_by_one_queue_alone(wide: tuple[Lab, int, list[Interface]]) -> None:
    """Each worker writes it: one with a queue of the port uses that, others the first."""
    it, number, interfaces = wide
    it.interfaces[0].send(between(0, 2))  # read by worker 0, who has the port's second queue
    assert interfaces[1].receive() == between(0, 2)
    it.interfaces[1].send(between(1, 2))  # read by worker 1, who has none
    assert interfaces[0].receive() == between(1, 2)
    until(lambda: it.counted(number).tx_frames >= 2, "both are counted")  # a moment after they have come
    assert it.counted(number).tx_frames == 2
    assert interfaces[0].waiting() == interfaces[1].waiting() == []


def test_what_it_sends_to_the_wire_leaves_by_each_reader(wide: tuple[Lab, int, list[Interface]]) -> None:
    it, _, interfaces = wide
    for queue, worker in ((0, 2), (1, 0)):
        out = frame(b"\2\0\0\0\0\xfe", b"\2\0\0\0\0\1", ipv4(v4(2), v4(99)))
        interfaces[queue].send(out)
        assert it.master[worker].receive() == out


def test_what_python_gives_back_and_announces_is_carried_out_once(wide: tuple[Lab, int, list[Interface]]) -> None:
    it, number, _ = wide
    punted = bytes(10) + between(2, 0)
    it.datapath.reinject(number, punted)
    it.datapath.announce(number, bytes(10) + frame(b"\xff" * 6, b"\2\0\0\0\0\1", ipv4(v4(2), v4(0))))
    it.datapath.commit()
    assert it.interfaces[0].receive() == between(2, 0)
    assert it.interfaces[0].receive()[:6] == b"\xff" * 6
    assert it.interfaces[1].receive()[:6] == b"\xff" * 6
    it.datapath.set_mode(0, 0)
    it.datapath.commit()  # every worker has made a round since
    assert it.interfaces[0].waiting() == it.interfaces[1].waiting() == []


def test_it_leaves_whole_and_its_number_may_be_had_again(wide: tuple[Lab, int, list[Interface]]) -> None:
    it, number, interfaces = wide
    it.datapath.unbind(v4(2))
    it.datapath.detach_port(number)
    it.datapath.commit()
    for interface in interfaces:
        interface.send(between(2, 0))
    assert it.datapath.attach_port(interfaces[1].inside.fileno(), 1500) == number
    it.datapath.commit()
    assert it.interfaces[0].receive() == between(2, 0)  # by the queue that is read again
    assert it.settled(number, 1).rx_frames == 1
    assert it.interfaces[0].waiting() == []


def test_a_queue_that_ends_is_told(wide: tuple[Lab, int, list[Interface]]) -> None:
    it, number, interfaces = wide
    interfaces[1].outside.close()
    until(lambda: any(port == number for port, _ in it.datapath.events()), "the end of a queue")


def test_there_are_no_more_queues_than_workers() -> None:
    with lab(1, workers=2) as it, pytest.raises(ValueError, match="3 queues need as many workers; there are 2"):
        it.datapath.attach_port(3, 1500, extra_fds=[4, 5])
