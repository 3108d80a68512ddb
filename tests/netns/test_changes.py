"""What a running daemon is told to change: by its file, by a signal and by the API."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from ipvsw.client import ApiError
from ipvsw.linux.teardown import MIN_GROUP_DELETE
from tests.netns.daemons import MASTER, Make, Spaces, attributes, devices, ping, port, switch
from tests.support.patience import until
from tests.support.spaces import Namespace


def test_a_port_changes_in_place(netns: Spaces, daemon: Make) -> None:
    a = netns()
    first = port("a", a, "10.7.0.1/24", "fd07::1/64", gateway=["10.7.0.254"])
    running = daemon(switch(first)).start().until("up", "a")
    index = running.port("a")["index"]
    lines = running.reload(switch(port("a", a, "10.7.0.2/24", "fd07::1/64", gateway=["10.7.0.253"], mtu=1400)))
    assert lines == [
        "change port lan/a: address -10.7.0.1/24, address +10.7.0.2/24, "
        "gateway -10.7.0.254, gateway +10.7.0.253, mtu 1400"
    ]
    running.until_owned("a", "10.7.0.2", "fd07::1")
    until(lambda: attributes(a, "a")["mtu"] == 1400, "the MTU")
    routes = a.ip("route", "show", "default")
    assert "10.7.0.253" in routes and "10.7.0.254" not in routes
    assert (running.port("a")["index"], running.port("a")["reason"]) == (index, "")
    ping(a, "10.7.0.254")


def test_many_ports_of_a_namespace_leave_and_others_stay(netns: Spaces, daemon: Make) -> None:
    a, b = netns(), netns()
    names = [f"p{k}" for k in range(MIN_GROUP_DELETE)]
    few = port("a", a, "10.7.0.2/24"), port("b", b)
    running = daemon(switch(*few, *(port(name, a) for name in names))).start().until("up", "a", "b", *names)
    a.ip("link", "add", "theirs", "type", "bridge")
    assert len(running.reload(switch(*few))) == MIN_GROUP_DELETE
    assert (devices(a), devices(b)) == ({"lo", "a", "theirs"}, {"lo", "b"})
    ping(a, "10.7.0.254")
    running.reload(switch(*few, *(port(name, a) for name in names)))
    running.until("up", *names)
    assert running.stop() == 0 and (devices(a), devices(b)) == ({"lo", "theirs"}, {"lo"})


def test_a_hangup_reads_the_file_again(netns: Spaces, daemon: Make) -> None:
    a, b = netns(), netns()
    running = daemon(switch(port("a", a))).start().until("up", "a")
    running.write(switch(port("b", b), flag="private"))
    assert running.process
    running.process.send_signal(signal.SIGHUP)
    until(lambda: [one["name"] for one in running.switch()["ports"]] == ["b"], "b instead of a")
    running.until("up", "b")
    assert (running.switch()["flag"], devices(a)) == ("private", {"lo"})


def test_a_bad_file_changes_nothing(netns: Spaces, daemon: Make) -> None:
    a = netns()
    running = daemon(switch(port("a", a))).start().until("up", "a")
    before = running.client.switches()
    for text in ("nonsense", switch(master="nowhere"), switch(port("a", a), port("a", a))):
        with pytest.raises(ApiError):
            running.reload(text)
    assert running.client.switches() == before


def test_the_api_adds_and_the_file_does_not_take_away(home: Namespace, netns: Spaces, daemon: Make) -> None:
    a, b, c = netns(), netns(), netns()
    running = daemon(switch(port("a", a))).start().until("up", "a")
    added = running.client.add_port(master=MASTER, name="b", netns=b.name, addresses=["10.7.0.2/24"])
    assert (added["state"], running.switch()["flag"]) == ("up", "bridge")
    running.client.add_port(master=MASTER, name="c", netns=c.name, flag="vepa")
    assert running.switch()["flag"] == "vepa"
    assert running.reload(switch()) == [
        "remove port lan/a",
        "set switch lan: mode l2, flag bridge, l3_output fast, host_access none, multicast none, export none, "
        "guard by the port's kind, device tap, users none",
    ]
    assert [one["name"] for one in running.switch()["ports"]] == ["b", "c"]
    ping(b, "10.7.0.254")


def test_an_addition_does_not_wait_for_the_addresses_of_another(netns: Spaces, daemon: Make) -> None:
    a, b = netns(), netns()
    running = daemon(switch()).start()
    addresses = [f"10.{k >> 8}.{k & 255}.7/32" for k in range(256, 3_256)]
    words = {"master": MASTER, "name": "a", "netns": a.name, "addresses": addresses}
    many = threading.Thread(target=running.client.add_port, kwargs=words)
    many.start()
    until(lambda: running.switch()["ports"], "the first is being added")
    running.client.add_port(master=MASTER, name="b", netns=b.name, addresses=["10.7.0.2/24"])
    assert many.is_alive()
    ping(b, "10.7.0.254")
    running.client.delete_port("b")
    many.join()
    running.until("up", "a")


def test_a_port_that_is_removed_while_it_is_added(netns: Spaces, daemon: Make) -> None:
    a = netns()
    running = daemon(switch()).start()
    addresses = [f"10.{k >> 8}.{k & 255}.7/32" for k in range(256, 2_256)]
    refused: list[ApiError] = []

    def add() -> None:
        try:
            running.client.add_port(master=MASTER, name="a", netns=a.name, addresses=addresses)
        except ApiError as error:
            refused.append(error)

    adding = threading.Thread(target=add)
    adding.start()
    until(lambda: running.switch()["ports"], "it is being added")
    running.client.delete_port("a")
    adding.join()
    assert "was removed before it was there" in str(refused[0])
    assert (running.switch()["ports"], devices(a)) == ([], {"lo"})


def test_a_switch_of_the_api_lives_with_its_ports(home: Namespace, netns: Spaces, daemon: Make) -> None:
    a, b = netns(), netns()
    running = daemon("").start()
    assert running.client.add_port(master=MASTER, name="a", netns=a.name, flag="private")["state"] == "up"
    assert running.client.add_port(master=MASTER, name="b", netns="ivt-none")["state"] == "waiting"
    assert (running.switch(MASTER)["flag"], running.switch(MASTER)["mode"]) == ("private", "l2")
    assert running.client.set_mode("a", flag="bridge")["flag"] == "bridge"
    running.client.delete_port("a")
    running.client.delete_port(f"{MASTER}/b")
    assert running.client.switches() == []
    assert "clsact" not in home.run("tc", "qdisc", "show", "dev", MASTER)
    with pytest.raises(ApiError, match="there is no port"):
        running.client.delete_port("a")
    b.ip("link", "add", "name", "b", "type", "bridge")
    for more in ({"netns": b.name}, {"netns": b.name, "mtu": 9000}, {"netns": b.name, "master": "nowhere"}):
        with pytest.raises(ApiError):
            running.client.add_port(**({"master": MASTER, "name": "b"} | more))
        assert running.client.switches() == []


def test_nothing_is_left_open(home: Namespace, netns: Spaces, daemon: Make) -> None:
    a = netns()
    running = daemon(switch(port("a", a, "10.7.0.1/24"))).start().until("up", "a")
    assert running.process
    pid = running.process.pid

    def held() -> int:
        return len(os.listdir(f"/proc/{pid}/fd"))

    def cycle() -> None:
        a.ip("link", "del", "dev", "a")
        until(lambda: "a" in devices(a), "the device is there again")
        running.until("up", "a")
        home.ip("link", "set", MASTER, "down")
        home.ip("link", "set", MASTER, "up")
        running.reload(switch(port("a", a, "10.7.0.1/24"), port("b", a)))
        running.until("up", "b")
        running.reload(switch(port("a", a, "10.7.0.1/24")))

    files = 0
    for _ in range(8):  # until every helper thread has been started; a netlink handle is closed and opened now and then
        cycle()
        files = max(files, held())
    for _ in range(5):
        cycle()
    until(lambda: held() <= files, "no more files are open than before")
