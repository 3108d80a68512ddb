"""What is asked of the kernel by rtnetlink in any namespace: links, addresses, routes, filters."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface
from typing import Any

import pytest

from ipvsw.linux.netlink import Handle, Netlink
from tests.netns.handles import Make, Pair, index_of, run
from tests.support.spaces import Namespace


def test_a_link_is_changed_and_moved_with_a_new_name(netlink: Netlink, netns: Make, veth: Pair) -> None:
    there = netns()
    near, _ = veth()
    index = run(netlink, None, lambda handle: handle.link(near)).index  # type: ignore[union-attr]
    mac = bytes.fromhex("020000000007")

    def change(handle: Handle) -> None:
        handle.set_link(index, up=False, mac=mac, mtu=1400, alias="ipvsw:test", noarp=True)
        with there.opened() as fd:
            handle.set_link(index, netns_fd=fd, name="port0")

    run(netlink, None, change)
    assert run(netlink, None, lambda handle: handle.link(near)) is None
    link = run(netlink, there, lambda handle: handle.link("port0"))
    assert link is not None
    assert (link.mac, link.mtu, link.up, link.kind) == (mac, 1400, False, "veth")
    shown = there.ip("link", "show", "port0")
    assert "NOARP" in shown and "ipvsw:test" in shown
    run(netlink, there, lambda handle: handle.set_link(link.index, up=True, noarp=False))
    shown = there.ip("link", "show", "port0")
    assert "NOARP" not in shown and ",UP" in shown
    run(netlink, there, lambda handle: handle.delete_link(link.index))
    assert run(netlink, there, lambda handle: handle.link_at(link.index)) is None


def test_links_are_deleted_together_and_others_stay(netlink: Netlink, netns: Make) -> None:
    there = netns()
    for name in ("one", "two", "three", "four"):
        there.ip("link", "add", name, "type", "bridge")
    there.ip("link", "set", "four", "group", "7")
    found = {name: run(netlink, there, lambda h, name=name: h.link(name)) for name in ("one", "two", "three")}
    one, two, three = (link.index for link in found.values() if link is not None)
    there.ip("link", "del", "two")
    for _ in range(2):  # the second time all are gone
        run(netlink, there, lambda handle: handle.delete_links([one, two, three]))
        for name, stays in (("one", False), ("two", False), ("three", False), ("four", True)):
            assert (run(netlink, there, lambda h, name=name: h.link(name)) is not None) == stays


def test_a_name_that_is_taken_where_a_link_is_moved_is_an_error(netlink: Netlink, netns: Make, veth: Pair) -> None:
    there = netns()
    near, _ = veth()
    _, taken = veth(None, there)

    def move(handle: Handle) -> None:
        link = handle.link(near)
        assert link
        with there.opened() as fd:
            handle.set_link(link.index, netns_fd=fd, name=taken)

    with pytest.raises(FileExistsError):
        run(netlink, None, move)


def test_addresses_and_default_routes(netlink: Netlink, netns: Make, veth: Pair) -> None:
    there = netns()
    _, far = veth(None, there)

    def configure(handle: Handle) -> list[tuple[Any, int]]:
        link = handle.link(far)
        assert link
        for _ in range(2):
            for address in ("10.77.0.2/24", "fd77::2/64"):
                assert not handle.add_addresses(link.index, [ip_interface(address)])
        for gateway in ("10.77.0.1", "10.77.0.254", "10.77.0.254", "fd77::1", "fe80::1", "fe80::1"):
            handle.add_default_route(link.index, ip_address(gateway))
        return handle.addresses(link.index)

    addresses = run(netlink, there, configure)
    assert (ip_address("10.77.0.2"), 24) in addresses and (ip_address("fd77::2"), 64) in addresses
    assert there.ip("-4", "route", "show", "default").split()[:5] == ["default", "via", "10.77.0.254", "dev", far]
    assert len(there.ip("-4", "route", "show", "default").splitlines()) == 1
    assert there.ip("-6", "route", "show", "default").split()[:5] == ["default", "via", "fe80::1", "dev", far]
    assert len(there.ip("-6", "route", "show", "default").splitlines()) == 1


@pytest.mark.parametrize("gateway", ["192.0.2.1", "2001:db8::1"])
def test_a_gateway_outside_every_prefix_is_on_the_link(netlink: Netlink, netns: Make, veth: Pair, gateway: str) -> None:
    there = netns()
    _, far = veth(None, there)

    def configure(handle: Handle) -> None:
        link = handle.link(far)
        assert link
        for address in ("10.77.0.2/32", "fd77::2/128"):
            assert not handle.add_addresses(link.index, [ip_interface(address)])
        handle.add_default_route(link.index, ip_address(gateway))

    run(netlink, there, configure)
    shown = there.ip("-6" if ":" in gateway else "-4", "route", "show", "default")
    assert f"via {gateway} dev {far}" in shown and "onlink" in shown


def test_thousands_of_addresses_at_once(netlink: Netlink, netns: Make, veth: Pair) -> None:
    """More than are sent together, of both families; what the kernel refuses is told by itself and stops nothing."""
    there = netns()
    _, far = veth(None, there)
    wanted = [ip_interface(f"10.{k >> 8}.{k & 255}.1/24") for k in range(1000)]
    wanted += [ip_interface(f"fd77::{k:x}/64") for k in range(1, 1000)]
    bad = ip_interface("ff02::1/64")

    def configure(handle: Handle) -> tuple[list[OSError], list[Any], list[OSError], list[Any], list[OSError]]:
        link = handle.link(far)
        assert link
        refused = handle.add_addresses(link.index, [*wanted[:500], bad, *wanted[500:]])
        there = handle.addresses(link.index)
        stayed = handle.delete_addresses(link.index, [*wanted[1:], ip_interface("10.250.0.1/24")])
        return refused, there, stayed, handle.addresses(link.index), handle.add_addresses(99999, wanted[:1])

    refused, addresses, stayed, left, elsewhere = run(netlink, there, configure)
    assert [str(error.strerror).startswith(f"{bad}: ") for error in refused] == [True]
    assert {(one.ip, one.network.prefixlen) for one in wanted} <= set(addresses)
    assert stayed == []
    assert [one for one, _ in left if not one.is_link_local] == [wanted[0].ip]
    assert [error.errno for error in elsewhere] == [errno.ENODEV]


def test_a_default_route_of_another_device_stays(netlink: Netlink, netns: Make, veth: Pair) -> None:
    there = netns()
    _, first = veth(None, there)
    _, second = veth(None, there)
    there.ip("addr", "add", "10.78.0.2/24", "dev", first)
    there.ip("route", "add", "default", "via", "10.78.0.1")

    def configure(handle: Handle) -> None:
        link = handle.link(second)
        assert link
        assert not handle.add_addresses(link.index, [ip_interface("10.77.0.2/24")])
        handle.add_default_route(link.index, ip_address("10.77.0.1"))

    run(netlink, there, configure)
    assert [line.split()[2] for line in there.ip("route", "show", "default").splitlines()] == ["10.78.0.1", "10.77.0.1"]


def test_the_stable_secret_is_the_threads_namespaces(netlink: Netlink, netns: Make, veth: Pair) -> None:
    there = netns()
    _, far = veth(None, there)
    index = run(netlink, there, lambda handle: handle.link(far)).index  # type: ignore[union-attr]
    eui64 = run(netlink, there, lambda handle: handle.addresses(index))
    there.ip("link", "set", far, "down")
    run(netlink, there, lambda handle: handle.set_stable_secret(far, bytes(range(16))))
    there.ip("link", "set", far, "up")
    stable = run(netlink, there, lambda handle: handle.addresses(index))
    assert len(stable) == 1 and stable != eui64
    assert there.run("cat", f"/proc/sys/net/ipv6/conf/{far}/stable_secret").strip() == (
        "0001:0203:0405:0607:0809:0a0b:0c0d:0e0f"
    )


def test_a_stable_secret_where_there_is_no_ipv6_does_nothing(netlink: Netlink, netns: Make, veth: Pair) -> None:
    there = netns()
    _, far = veth(None, there)
    there.ip("link", "set", far, "mtu", "1000")  # too small for IPv6: the device has none
    run(netlink, there, lambda handle: handle.set_stable_secret(far, bytes(16)))
    assert bytes.fromhex("01005e000001") in run(netlink, there, lambda handle: handle.groups(far))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """fds of two BPF programs: one lets everything pass, one drops everything."""
    directory = tmp_path_factory.mktemp("bpf")
    source, compiled = directory / "two.c", directory / "two.o"
    source.write_text(
        '__attribute__((section("tc"))) int pass(void *frame) { return 0; }\n'
        '__attribute__((section("tc"))) int drop(void *frame) { return 2; }\n'
        'char _license[] __attribute__((section("license"))) = "GPL";\n'
    )
    subprocess.run(["clang", "-O2", "-g", "-target", "bpf", "-c", str(source), "-o", str(compiled)], check=True)
    libbpf = ctypes.CDLL("libbpf.so.1")
    for function in ("bpf_object__open_file", "bpf_object__find_program_by_name"):
        getattr(libbpf, function).restype = ctypes.c_void_p
    loaded = ctypes.c_void_p(libbpf.bpf_object__open_file(os.fsencode(compiled), None))
    assert libbpf.bpf_object__load(loaded) == 0
    found = (ctypes.c_void_p(libbpf.bpf_object__find_program_by_name(loaded, name)) for name in (b"pass", b"drop"))
    yield tuple(libbpf.bpf_program__fd(program) for program in found)  # type: ignore[misc]
    libbpf.bpf_object__close(loaded)


def filters(there: Namespace, device: str) -> str:
    return "".join(there.run("tc", "filter", "show", "dev", device, side) for side in ("ingress", "egress"))


def test_two_programs_are_attached_replaced_and_removed(
    netlink: Netlink, netns: Make, veth: Pair, programs: tuple[int, int]
) -> None:
    letting, dropping = programs
    here, there = netns(), netns()
    near, far = veth(here, there)
    here.ip("addr", "add", "10.77.0.1/24", "dev", near)
    there.ip("addr", "add", "10.77.0.2/24", "dev", far)
    index = index_of(netlink, here, near)

    def pings() -> bool:
        try:
            here.run("ping", "-c1", "-W0.3", "10.77.0.2")
        except subprocess.CalledProcessError:
            return False
        return True

    assert pings()
    for ingress, egress, passes in ((letting, letting, True), (dropping, letting, False), (letting, dropping, False)):
        run(netlink, here, lambda handle, i=ingress, e=egress: handle.attach_clsact(index, i, e))
        shown = filters(here, near)
        assert shown.count("direct-action") == shown.count("handle 0x69707677 ipvsw") == 2
        assert pings() is passes
    run(netlink, here, lambda handle: handle.detach_clsact(index))
    assert pings()
    assert filters(here, near) == "" and "clsact" not in here.run("tc", "qdisc", "show", "dev", near)
    run(netlink, here, lambda handle: handle.detach_clsact(index))


def test_filters_of_others_stay_and_so_does_their_qdisc(
    netlink: Netlink, netns: Make, veth: Pair, programs: tuple[int, int]
) -> None:
    here = netns()
    near, _ = veth(here, here)
    index = index_of(netlink, here, near)
    here.run("tc", "qdisc", "add", "dev", near, "clsact")

    def other(handle: Handle) -> None:
        handle._route.tc(
            "add-filter",
            "bpf",
            index,
            handle=1,
            fd=programs[0],
            name="other",
            parent=0xFFFFFFF3,
            prio=118,
            protocol=3,
            direct_action=True,
        )

    run(netlink, here, other)
    run(netlink, here, lambda handle: handle.attach_clsact(index, *programs))
    assert filters(here, near).count("ipvsw") == 2
    run(netlink, here, lambda handle: handle.detach_clsact(index))
    shown = filters(here, near)
    assert "other" in shown and "ipvsw" not in shown
    assert "clsact" in here.run("tc", "qdisc", "show", "dev", near)


def test_an_ingress_qdisc_in_the_way_is_named(
    netlink: Netlink, netns: Make, veth: Pair, programs: tuple[int, int]
) -> None:
    here = netns()
    near, _ = veth(here, here)
    index = index_of(netlink, here, near)
    here.run("tc", "qdisc", "add", "dev", near, "ingress")
    with pytest.raises(FileExistsError, match="a qdisc of kind ingress is in the way"):
        run(netlink, here, lambda handle: handle.attach_clsact(index, *programs))
    assert "ingress" in here.run("tc", "qdisc", "show", "dev", near)


def test_a_program_that_is_refused_leaves_nothing(
    netlink: Netlink, netns: Make, veth: Pair, programs: tuple[int, int]
) -> None:
    here = netns()
    near, _ = veth(here, here)
    index = index_of(netlink, here, near)
    with open("/dev/null") as null, pytest.raises(OSError, match=f"tc filters on link {index}: "):
        run(netlink, here, lambda handle: handle.attach_clsact(index, programs[0], null.fileno()))
    assert filters(here, near) == "" and "clsact" not in here.run("tc", "qdisc", "show", "dev", near)


def test_detaching_from_a_device_that_is_gone_does_nothing(netlink: Netlink) -> None:
    run(netlink, None, lambda handle: handle.detach_clsact(999999))
