"""The event socket and the thread that enters namespaces, against the real kernel."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest

from ipvsw.linux.bpf import Shim
from ipvsw.linux.netlink import (
    AddressEvent,
    GroupsEvent,
    Handle,
    LinkEvent,
    NamespaceGone,
    Netlink,
    Overrun,
    thread,
)
from ipvsw.linux.netlink.messages import RTM_DELQDISC, RTM_DELTFILTER
from ipvsw.linux.netlink.thread import GC_INTERVAL
from tests.netns.handles import Make, Pair, run
from tests.support.effort import calls
from tests.support.patience import LIMIT, until
from tests.support.spaces import Namespace, ip, unique

OF_FILTERS = frozenset([*range(36, 48), *range(100, 104)])  # RTM_NEWQDISC to RTM_GETTFILTER, and those of chains


def hear(netlink: Netlink, wanted: Callable[[Any], bool]) -> Any:
    """The first event that is `wanted`; what came before it is lost."""
    return until(lambda: next(filter(wanted, netlink.events()), None), "event")


def known(netlink: Netlink, namespace: Namespace) -> int:
    with namespace.opened() as fd:
        nsid = asyncio.run(netlink.run(None, lambda handle: handle.nsid(fd)))
    assert nsid is not None
    return nsid


# ---------------------------------------------------------------------------- events


def test_link_events_tell_the_namespace_and_what_the_link_is(netlink: Netlink, netns: Make, veth: Pair) -> None:
    there = netns()
    nsid = known(netlink, there)
    near, far = veth(None, there)
    event = hear(netlink, lambda e: isinstance(e, LinkEvent) and e.link.name == far and e.nsid == nsid and e.link.up)
    assert (event.gone, event.link.kind, event.link.mtu, event.link.ethernet) == (False, "veth", 1500, True)
    assert event.link == run(netlink, there, lambda handle: handle.link_at(event.link.index)) or not event.link.carrier
    assert hear(netlink, lambda e: isinstance(e, LinkEvent) and e.link.name == far and e.link.carrier).nsid == nsid

    ip("link", "set", near, "promisc", "on")
    assert (
        hear(netlink, lambda e: isinstance(e, LinkEvent) and e.link.name == near and e.link.all_multicast).nsid is None
    )
    there.ip("link", "del", far)
    gone = hear(netlink, lambda e: isinstance(e, LinkEvent) and e.nsid == nsid and e.gone)
    assert gone.link.name == far


@pytest.mark.parametrize("address", ["10.77.0.1/24", "fd77::1/64"])
def test_an_address_in_another_namespace_is_heard(netlink: Netlink, netns: Make, veth: Pair, address: str) -> None:
    there = netns()
    nsid = known(netlink, there)
    _, far = veth(None, there)
    index = run(netlink, there, lambda handle: handle.link(far)).index  # type: ignore[union-attr]
    list(netlink.events())
    wanted = ip_interface(address)
    for verb, gone in (("add", False), ("del", True)):
        there.ip("addr", verb, address, "dev", far)
        event = hear(netlink, lambda e: isinstance(e, AddressEvent) and e.address == wanted.ip)
        assert event == AddressEvent(nsid, index, wanted.ip, wanted.network.prefixlen, gone)


def test_an_address_with_a_peer_is_the_one_that_the_kernels_driver_owns(
    netlink: Netlink, netns: Make, veth: Pair
) -> None:
    there = netns()
    known(netlink, there)
    _, far = veth(None, there)
    there.ip("addr", "add", "10.77.0.1", "peer", "10.77.0.9/32", "dev", far)
    there.ip("addr", "add", "fd77::1", "peer", "fd77::9/128", "dev", far)
    for owned in ("10.77.0.9", "fd77::1"):
        hear(netlink, lambda e, owned=owned: isinstance(e, AddressEvent) and e.address == ip_address(owned))
    index = run(netlink, there, lambda handle: handle.link(far)).index  # type: ignore[union-attr]
    listed = [str(address) for address, _ in run(netlink, there, lambda handle: handle.addresses(index))]
    assert listed.count("10.77.0.9") == listed.count("fd77::1") == 1
    assert "10.77.0.1" not in listed and "fd77::9" not in listed


def test_a_group_that_is_joined_in_another_namespace_is_heard(netlink: Netlink, netns: Make, veth: Pair) -> None:
    there = netns()
    nsid = known(netlink, there)
    _, far = veth(None, there)
    index = run(netlink, there, lambda handle: handle.link(far)).index  # type: ignore[union-attr]
    list(netlink.events())

    def join() -> socket.socket:
        member = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        # struct ip_mreqn: group, local address, interface
        request = struct.pack("=4s4si", socket.inet_aton("239.1.2.3"), bytes(4), index)
        member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        return member

    with there.inside(join):
        if _tells_groups():
            hear(netlink, lambda e: e == GroupsEvent(nsid, index))
        assert bytes.fromhex("01005e010203") in run(netlink, there, lambda handle: handle.groups(far))
    until(lambda: bytes.fromhex("01005e010203") not in run(netlink, there, lambda handle: handle.groups(far)))


def _tells_groups() -> bool:
    release = os.uname().release.split(".")
    return (int(release[0]), int(release[1])) >= (6, 14)


def test_a_namespace_that_dies_is_told_by_its_id(netlink: Netlink, netns: Make) -> None:
    there = netns()
    nsid = known(netlink, there)
    assert known(netlink, there) == nsid
    there.delete()
    hear(netlink, lambda e: e == NamespaceGone(nsid))


def test_a_port_that_leaves_a_bridge_is_not_a_link_that_is_gone(netlink: Netlink, netns: Make) -> None:
    name, tap = unique("ivr"), unique("ivp")
    try:
        ip("link", "add", name, "type", "bridge")
    except subprocess.CalledProcessError:
        pytest.skip("this kernel has no bridges")
    try:
        ip("tuntap", "add", tap, "mode", "tap")
        try:
            ip("link", "set", tap, "master", name)
            ip("link", "set", tap, "nomaster")
            hear(netlink, lambda e: isinstance(e, LinkEvent) and e.link.name == tap)
            assert not [e for e in netlink.events() if isinstance(e, LinkEvent) and e.gone]
        finally:
            ip("link", "del", tap)
    finally:
        ip("link", "del", name)


def test_lost_events_are_told_and_later_ones_are_heard(netlink: Netlink, netns: Make, veth: Pair) -> None:
    netlink._events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    near, _ = veth()
    for mtu in range(1400, 1420):
        ip("link", "set", near, "mtu", str(mtu))
    assert next(netlink.events()) == Overrun()
    assert not select.select([netlink], [], [], 0)[0], "what was in the socket is old, and keeps news from coming"
    ip("link", "set", near, "mtu", "1300")
    hear(netlink, lambda e: isinstance(e, LinkEvent) and e.link.mtu == 1300)


def test_thousands_of_events_are_read_with_little_effort(netlink: Netlink, netns: Make, veth: Pair) -> None:
    near, _ = veth()
    toggles = [f"link set {near} mtu {1300 + n % 2}\n" for n in range(2000)]
    list(netlink.events())
    subprocess.run(["ip", "-batch", "-"], input="".join(toggles), text=True, check=True)
    events: list[object] = []
    effort = calls(lambda: events.extend(netlink.events()))
    assert Overrun() not in events
    assert len([e for e in events if isinstance(e, LinkEvent) and e.link.name == near]) >= 2000
    assert effort / len(events) < 400  # calls


def test_of_filters_only_that_they_are_gone_is_told(netlink: Netlink, veth: Pair) -> None:
    """And nothing of chains, which come and go with them: ports have thousands of filters."""
    near, _ = veth()
    index = socket.if_nametoindex(near)
    list(netlink.events())
    kinds: list[int] = []

    def is_told() -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                kinds.append(struct.unpack_from("=IH", messages.recv(1 << 16))[1])
        return RTM_DELQDISC in kinds

    with contextlib.closing(Shim()) as shim, socket.socket(fileno=os.dup(netlink.fileno())) as messages:
        run(netlink, None, lambda handle: handle.mute(index, shim.mute_fd))
        run(netlink, None, lambda handle: handle.detach_clsact(index))
        until(is_told, "the end of both")
    # Of links, addresses and groups IPv6 tells at any time.
    assert [kind for kind in kinds if kind in OF_FILTERS] == [RTM_DELTFILTER, RTM_DELQDISC]


# ---------------------------------------------------------------------------- what works leave


@pytest.mark.parametrize("count, uses_pyroute2", [(3 * GC_INTERVAL, False), (GC_INTERVAL, True)])
def test_garbage_is_collected_where_works_leave_it(
    netlink: Netlink, netns: Make, monkeypatch: pytest.MonkeyPatch, count: int, uses_pyroute2: bool
) -> None:
    collected = []
    monkeypatch.setattr(thread.gc, "collect", lambda: collected.append(True))
    there = netns()
    for _ in range(count):
        run(netlink, there, lambda handle: handle.link("lo"))
        if uses_pyroute2:
            run(netlink, there, lambda handle: handle.alias(1))
    assert collected == [True] * uses_pyroute2


# ---------------------------------------------------------------------------- namespaces are not kept


def test_neither_the_events_nor_the_thread_keep_a_namespace_alive(netlink: Netlink, netns: Make, veth: Pair) -> None:
    there = netns()
    known(netlink, there)
    near, far = veth(None, there)
    assert run(netlink, there, lambda handle: handle.link(far))
    there.delete()
    # The end here goes with the one there, and that goes when nobody holds the namespace.
    until(lambda: not Path(f"/sys/class/net/{near}").exists(), "death of the namespace")


def test_run_leaves_no_file_open(netlink: Netlink, netns: Make) -> None:
    there = netns()
    run(netlink, there, lambda handle: None)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        run(netlink, there, lambda handle: handle.link("lo"))
        with pytest.raises(ZeroDivisionError):
            run(netlink, there, lambda handle: 1 / 0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_thread_returns_home_after_a_failure(netlink: Netlink, netns: Make) -> None:
    there = netns()

    def where(handle: Handle) -> int:
        return os.stat("/proc/thread-self/ns/net").st_ino

    def fail(handle: Handle) -> None:
        assert where(handle) == inside
        raise LookupError

    inside = run(netlink, there, where)
    home = run(netlink, None, where)
    assert home == os.stat("/proc/self/ns/net").st_ino != inside
    with pytest.raises(LookupError):
        run(netlink, there, fail)
    assert run(netlink, None, where) == home


def test_what_is_no_namespace_is_refused_and_nothing_runs(netlink: Netlink) -> None:
    ran: list[Handle] = []
    with open("/dev/null") as null, pytest.raises(OSError) as refusal:
        asyncio.run(netlink.run(null.fileno(), ran.append))
    assert refusal.value.errno == errno.EINVAL and not ran


def test_work_that_is_cancelled_in_the_queue_never_runs_and_leaks_nothing(netlink: Netlink, netns: Make) -> None:
    there = netns()
    ran = []

    async def cancel() -> int:
        begun, cancelled = threading.Event(), threading.Event()
        with there.opened() as fd:
            first = asyncio.create_task(netlink.run(fd, lambda handle: (begun.set(), cancelled.wait(LIMIT))))
            second = asyncio.create_task(netlink.run(fd, lambda handle: ran.append(1)))
            await asyncio.to_thread(begun.wait, LIMIT)
            second.cancel()
            await asyncio.sleep(0)
            cancelled.set()
            await asyncio.gather(first, second, return_exceptions=True)
            await netlink.run(None, lambda handle: None)
            return len(os.listdir("/proc/self/fd"))

    before = asyncio.run(cancel())
    assert asyncio.run(cancel()) == before
    assert not ran


def test_an_error_names_its_place_and_has_the_kernels_number(netlink: Netlink) -> None:
    with pytest.raises(OSError) as refusal:
        run(netlink, None, lambda handle: handle.set_link(999999, up=True))
    assert refusal.value.errno == errno.ENODEV
    assert refusal.value.strerror == "link 999999: No such device"
