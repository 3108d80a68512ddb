"""A request that is large: others don't wait for it."""

from __future__ import annotations

import subprocess
import threading

import pytest

from ipvsw.client import ApiError, Client
from tests.netns.daemons import MASTER, Make, Spaces, port, switch
from tests.support.patience import LIMIT, until
from tests.support.spaces import Namespace

ADDRESSES = 5000
MANY = 20_000


def made(count: int) -> list[str]:
    return [f"10.{128 + (i >> 16)}.{i >> 8 & 255}.{i & 255}/8" for i in range(1, count + 1)]


def test_others_do_not_wait_for_a_port_with_many_addresses(netns: Spaces, daemon: Make) -> None:
    small, large, other = netns(), netns(), netns()
    running = daemon(switch(port("p0", small, "10.7.0.1/24"))).start().until("up", "p0")
    slow, failed = Client(str(running.socket), timeout=5 * LIMIT), []

    def add() -> None:
        try:
            slow.add_port(master=MASTER, name="p1", netns=large.name, addresses=made(ADDRESSES))
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=add)
    thread.start()
    until(lambda: "p1" in [one["name"] for one in running.client.switches()[0]["ports"]], "it is under way")
    running.client.leases()
    assert thread.is_alive(), "that was answered before it"
    running.client.add_port(master=MASTER, name="p2", netns=other.name, addresses=["10.7.0.2/24"])
    thread.join()
    assert not failed
    assert len(running.port("p1")["addresses"]) >= ADDRESSES


def count(netns: Namespace) -> int | None:
    """How many addresses p1 has, None if it isn't there."""
    try:
        return netns.ip("-o", "-4", "addr", "show", "dev", "p1").count("inet")
    except subprocess.CalledProcessError:
        return None


def test_a_port_that_is_removed_does_not_wait_for_its_addresses(netns: Spaces, daemon: Make) -> None:
    space, refused = netns(), []
    running = daemon(switch()).start()
    client = Client(str(running.socket), timeout=5 * LIMIT)

    def add() -> None:
        with pytest.raises(ApiError, match="was removed before it was there") as error:
            client.add_port(master=MASTER, name="p1", netns=space.name, addresses=made(MANY))
        refused.append(error)

    adding, deleting = threading.Thread(target=add), threading.Thread(target=lambda: client.delete_port("p1"))
    adding.start()
    until(lambda: count(space), "some are there")
    deleting.start()
    while (found := count(space)) is not None:
        assert found < MANY, "it waits until all are there"
    deleting.join()
    adding.join()
    assert refused
    assert running.switch()["ports"] == []
