"""Frames to and from interfaces with the long virtio_net_hdr are recorded with the short one, which says the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ipvsw.capture.ring import RX, TX, WIRE
from tests.native.interfaces import FOREIGN, HEADER, LONGEST, MASTER, Lab, frame, lab, v4
from tests.native.mirror.test_capture import Reader, ends
from tests.native.tunnels.test_long_header import INNERS, LONG, VNET, VXLAN, Long, lengthened, wire_tap
from tests.reference.tunnels import ip, super_frame
from tests.support.wire.packets import B4, UDP

TOLD = super_frame(VXLAN, INNERS[0])
PARTIAL = bytes([1, 0, 0, 0, 0, 0, 34, 0, 6, 0])  # a checksum to be completed


@pytest.fixture
def made(io: str) -> Iterator[Lab]:
    with lab(1) as found:
        yield found


def test_a_tunnel_from_the_wire(made: Lab) -> None:
    port = Long()
    made.numbers.append(port.attach(made, B4))
    reader = Reader(made)
    made.master[0].outside.send(TOLD)
    assert port.outside.recv(LONGEST) == lengthened(TOLD, VXLAN, INNERS[0])
    found = reader.read(2)
    assert ends(found) == [(RX, WIRE, "to_port", 4), (TX, 4, "", WIRE)]
    assert [one.frame for one in found] == [TOLD[VNET:]] * 2
    assert [one.header for one in found] == [TOLD[:VNET]] * 2


def test_a_tunnel_to_the_wire(made: Lab) -> None:
    port, tap = Long(), wire_tap(made)
    made.numbers.append(port.attach(made))
    reader = Reader(made)
    told = lengthened(TOLD, VXLAN, INNERS[0])
    port.outside.send(told)
    assert tap.outside.recv(LONGEST) == told
    short = TOLD[:2] + told[2:4] + TOLD[4:VNET]  # with the length of the headers
    found = reader.read(2)
    assert [(one.direction, one.interface) for one in found] == [(RX, 4), (TX, WIRE)]
    assert ends(found)[0][2] == "to_master"
    assert [one.frame for one in found] == [TOLD[VNET:]] * 2
    assert [one.header for one in found] == [short] * 2


def test_other_frames_in_both_directions(made: Lab) -> None:
    """Many at once, so that with io_uring their writes are queued."""
    port = Long()
    made.numbers.append(port.attach(made, B4))
    reader = Reader(made)
    sent = [frame(MASTER, MASTER, ip(4, UDP, bytes([k]) * 20, 0, (v4(0), B4))) for k in range(20)]
    for one in sent:
        made.interfaces[0].send(one, PARTIAL)
    assert [port.outside.recv(LONGEST) for _ in sent] == [PARTIAL + bytes(LONG - VNET) + one for one in sent]
    found = reader.read(2 * len(sent))
    assert [one.frame for one in found if one.direction == TX] == sent
    assert {one.header for one in found} == {PARTIAL}
    port.send(frame(FOREIGN, MASTER, ip(4, UDP, bytes(20), 0, (B4, v4(9)))), bytes(LONG))
    assert {one.header for one in reader.read(2)} == {HEADER}
