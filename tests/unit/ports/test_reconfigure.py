"""Addresses and gateways from one configuration to another: in pieces, in an order that the kernel accepts."""

from __future__ import annotations

import errno
from ipaddress import ip_address, ip_interface
from typing import Any

from ipvsw.model import PortConfig
from ipvsw.ports.backends.reconfigure import PIECE, Reconfiguration

INDEX = 7


class Kernel:
    """A device with addresses and gateways; refuses what is in `refused`."""

    def __init__(self) -> None:
        self.addresses: list[Any] = []
        self.gateways: list[Any] = []
        self.refused: set[Any] = set()
        self.works: list[int] = []  # how many addresses each step was about

    def add_addresses(self, index: int, wanted: list[Any]) -> list[OSError]:
        assert index == INDEX
        self.works[-1] += len(wanted)
        self.addresses += [one for one in wanted if one not in self.refused]
        return [OSError(errno.EINVAL, f"{one}: refused") for one in wanted if one in self.refused]

    def delete_addresses(self, index: int, unwanted: list[Any]) -> list[OSError]:
        self.works[-1] += len(unwanted)
        for one in unwanted:
            self.addresses.remove(one)
        return []

    def add_default_route(self, index: int, gateway: Any, metric: int | None = None) -> None:
        if not any(gateway in one.network for one in self.addresses):
            raise OSError(errno.ENETUNREACH, f"{gateway}: not covered")
        self.gateways.append(gateway)

    def delete_default_route(self, index: int, gateway: Any) -> None:
        assert any(gateway in one.network for one in self.addresses)
        self.gateways.remove(gateway)

    def run(self, change: Reconfiguration) -> None:
        while not change.done:
            self.works.append(0)
            change.step(self, INDEX)  # type: ignore[arg-type]
            assert len(self.works) < 1000


def config(addresses: list[str], gateway: list[str] | None = None) -> PortConfig:
    return PortConfig(
        name="a",
        ifname="a",
        netns="a",
        addresses=tuple(map(ip_interface, addresses)),
        gateway=tuple(map(ip_address, gateway or [])),
    )


def many(first: int, count: int) -> list[str]:
    return [f"10.{k >> 16}.{k >> 8 & 255}.{k & 255}/8" for k in range(first, first + count)]


def test_few_addresses_are_one_step() -> None:
    kernel = Kernel()
    kernel.run(Reconfiguration(config(["10.0.0.1/8", "fd00::1/64"], ["10.0.0.254", "fd00::ff"]), None))
    assert kernel.works == [2]
    assert [*map(str, kernel.gateways)] == ["10.0.0.254", "fd00::ff"]


def test_no_step_is_about_more_than_two_pieces() -> None:
    kernel, old, new = Kernel(), config(many(1, 1000), ["10.0.0.254"]), config(many(501, 1000), ["10.9.9.9"])
    kernel.run(Reconfiguration(old, None))
    assert kernel.addresses == list(old.addresses) and max(kernel.works) <= PIECE
    kernel.works = []
    change = Reconfiguration(new, old)
    kernel.run(change)
    assert set(kernel.addresses) == set(new.addresses)
    assert kernel.gateways == list(new.gateway)
    assert max(kernel.works) <= 2 * PIECE and sum(kernel.works) == 1000 and not change.problems


def test_what_is_refused_is_a_problem_and_the_rest_is_done() -> None:
    kernel = Kernel()
    kernel.refused.add(ip_interface("10.0.0.7/8"))
    change = Reconfiguration(config(many(1, 300), ["192.0.2.1", "10.0.0.254"]), None)
    kernel.run(change)
    assert change.problems == ["10.0.0.7/8: refused", "192.0.2.1: not covered"]
    assert len(kernel.addresses) == 299 and [*map(str, kernel.gateways)] == ["10.0.0.254"]
