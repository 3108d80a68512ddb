"""A port whose endpoint uses a MAC address of its own, over socket pairs."""

from __future__ import annotations

import contextlib

from doors import Door, lab, v4, v6

GUEST = bytes.fromhex("0200000000aa")


def test_own_mac_is_kept_as_long_as_the_port() -> None:
    with lab(ports=1) as it, contextlib.closing(Door()) as door:
        number = it.add(door, 1, own=GUEST)
        it.datapath.commit()
        assert it.datapath.own_mac(number) == GUEST
        assert it.datapath.own_mac(it.numbers[0]) is None
        it.datapath.unbind(v4(1))
        it.datapath.unbind(v6(1))
        it.datapath.detach_port(number)
        assert it.add(door, 1) == number
        it.datapath.commit()
        assert it.datapath.own_mac(number) is None
