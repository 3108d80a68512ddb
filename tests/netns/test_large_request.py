"""A request that is large: others don't wait for it."""

from __future__ import annotations

import threading

from ipvsw.client import Client
from tests.netns.daemons import MASTER, Make, Spaces, port, switch
from tests.support.patience import LIMIT, until

ADDRESSES = 5000


def test_others_do_not_wait_for_a_port_with_many_addresses(netns: Spaces, daemon: Make) -> None:
    small, large, other = netns(), netns(), netns()
    running = daemon(switch(port("p0", small, "10.7.0.1/24"))).start().until("up", "p0")
    addresses = [f"10.{128 + (i >> 16)}.{i >> 8 & 255}.{i & 255}/8" for i in range(1, ADDRESSES + 1)]
    slow, failed = Client(str(running.socket), timeout=5 * LIMIT), []

    def add() -> None:
        try:
            slow.add_port(master=MASTER, name="p1", netns=large.name, addresses=addresses)
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
