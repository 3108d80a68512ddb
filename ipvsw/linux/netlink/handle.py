"""What is done: rtnetlink requests inside one namespace."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv6Address, ip_network
from typing import Any

from ipvsw.linux.netlink import addresses, clsact, rules
from ipvsw.linux.netlink.device import RTPROT_STATIC, DeviceReader, read_groups
from ipvsw.linux.netlink.dump import dump_links
from ipvsw.linux.netlink.links import add_veth, delete_links, read_sysctl, write_sysctl
from ipvsw.linux.netlink.messages import (
    AF_INET,
    AF_INET6,
    IFF_ALLMULTI,
    IFF_NOARP,
    IFF_UP,
    IFINFOMSG,
    IFLA_IFNAME,
    RTM_NEWLINK,
    Link,
    attributes,
    pack_attribute,
)
from ipvsw.linux.netlink.rules import Rule
from ipvsw.model import Address, Interface, Network, Route

# linux/rtnetlink.h
RT_TABLE_MAIN = 254
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
RTNH_F_ONLINK = 4
RTM_NEWNSID, RTM_GETNSID = 88, 90
IFLA_ADDRESS, IFLA_MTU, IFLA_TXQLEN, IFLA_IFALIAS = 1, 4, 13, 20  # linux/if_link.h
IFLA_NET_NS_FD, IFLA_NEW_IFINDEX = 28, 49
NETNSA_NSID, NETNSA_FD, NETNSA_NSID_NOT_ASSIGNED = 1, 3, -1  # linux/net_namespace.h
_RTGENMSG = bytes(4)  # struct rtgenmsg, padded
_INT = struct.Struct("=i")

# What the kernel answers to a gateway that no prefix of the device covers: fib_check_nh and
# ip6_route_check_nh.
GATEWAY_NOT_COVERED = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL)


class Handle:
    """rtnetlink inside one namespace; valid only during `Netlink.run`, on its thread. Errors: OSError.

    What a daemon asks for that goes on with ports is written by hand: loading pyroute2 takes longer than all of it.
    """

    @classmethod
    @contextlib.contextmanager
    def opened(cls) -> Iterator[Handle]:
        """A handle of the namespace that the calling thread is in."""
        handle = cls()
        try:
            yield handle
        finally:
            for each in (handle.__dict__.get("_route"), handle.__dict__.get("_kernel")):
                if each is not None:
                    each.close()

    @functools.cached_property
    def _route(self) -> Any:
        """pyroute2's, of which making one takes 2 ms, and loading it 120."""
        from pyroute2 import IPRoute

        return IPRoute(ext_ack=True)

    @property
    def has_used_pyroute2(self) -> bool:
        return "_route" in self.__dict__

    @functools.cached_property
    def _kernel(self) -> DeviceReader:
        """For what is asked often."""
        return DeviceReader()

    # ------------------------------------------------------------------------ links

    def link(self, name: str) -> Link | None:
        return self._kernel.link(name=name)

    def link_at(self, index: int) -> Link | None:
        return self._kernel.link(index)

    def index(self, name: str) -> int:
        """Of the device with that name. Errors: OSError, ENODEV if there is none."""
        try:
            return socket.if_nametoindex(name)
        except OSError:
            raise OSError(errno.ENODEV, f"{name} is gone") from None

    def links(self) -> list[Link]:
        """All in this namespace."""
        return list(dump_links())

    def kmod_links(self) -> list[Link]:
        """The devices of kind "ipvsw" in this namespace."""
        return [link for link in dump_links() if link.served is not None]

    def set_link(
        self,
        index: int,
        *,
        up: bool | None = None,
        mac: bytes | None = None,
        mtu: int | None = None,
        queue: int | None = None,
        name: str | None = None,
        netns_fd: int | None = None,
        new_index: int | None = None,
        alias: str | None = None,
        noarp: bool | None = None,
        allmulti: bool | None = None,
    ) -> None:
        """Change what is not None, in one request; with `netns_fd` the device moves there first.

        The kernel sets a device down when it moves it, and gives it `new_index`, or another index if its own is
        taken there. `queue` is in frames; of a device that is up its change loses some.
        """
        given = [
            (IFLA_ADDRESS, mac),
            (IFLA_MTU, None if mtu is None else _INT.pack(mtu)),
            (IFLA_TXQLEN, None if queue is None else _INT.pack(queue)),
            (IFLA_IFNAME, None if name is None else os.fsencode(name) + b"\0"),
            (IFLA_NET_NS_FD, None if netns_fd is None else _INT.pack(netns_fd)),
            (IFLA_NEW_IFINDEX, None if new_index is None else _INT.pack(new_index)),
            (IFLA_IFALIAS, None if alias is None else os.fsencode(alias)),
        ]
        parts = b"".join(pack_attribute(kind, value) for kind, value in given if value is not None)
        flags = change = 0
        for on, flag in ((up, IFF_UP), (noarp, IFF_NOARP), (allmulti, IFF_ALLMULTI)):
            if on is not None:
                flags |= flag if on else 0
                change |= flag
        if parts or change:
            with _readable(name or f"link {index}"):
                self._kernel.change_one(RTM_NEWLINK, 0, IFINFOMSG.pack(0, 0, index, flags, change) + parts)

    def add_macvtap(self, name: str, lower: int, index: int) -> None:
        """One in passthru mode on the device `lower`, with this index. It takes the other's MAC address."""
        with _readable(name):
            self._route.link("add", ifname=name, index=index, kind="macvtap", link=lower, macvtap_mode="passthru")

    def add_veth(self, name: str, peer: str, netns_fd: int, mac: bytes, mtu: tuple[int, int]) -> None:
        """A pair with the same MAC address, `name` here and `peer` there, `mtu` in the same order."""
        with _readable(peer):
            add_veth(self._kernel, name, peer, netns_fd, mac, mtu)

    def alias(self, index: int) -> str:
        """The device's IFLA_IFALIAS, "" if it has none."""
        with _readable(f"link {index}"):
            return str(self._route.link("get", index=index)[0].get("ifalias") or "")

    def delete_link(self, index: int) -> None:
        with _readable(f"link {index}"):
            self._route.link("del", index=index)

    def delete_links(self, indices: Sequence[int]) -> None:
        """Batcher; those that are gone already are no error."""
        delete_links(indices)

    # ------------------------------------------------------------------------ addresses and routes

    def addresses(self, index: int) -> list[tuple[Address, int]]:
        """The addresses of a device with their prefix lengths, as `AddressEvent` has them."""
        return self._kernel.addresses(index)

    def add_addresses(self, index: int, wanted: Iterable[Interface]) -> list[OSError]:
        """What the kernel has refused. One that is there is replaced; of duplicate address detection the device
        decides."""
        return addresses.add_addresses(self._kernel, index, wanted)

    def delete_addresses(self, index: int, unwanted: Iterable[Interface]) -> list[OSError]:
        """What the kernel has refused. One that is not there is no error."""
        refused = addresses.delete_addresses(self._kernel, index, unwanted)
        return [error for error in refused if error.errno != errno.EADDRNOTAVAIL]

    def add_default_route(self, index: int, gateway: Address, metric: int | None = None) -> None:
        """The default route through `gateway` on this device, instead of another that we set there.

        Default routes by way of other devices stay, and the kernel prefers those that are older. A
        gateway outside every prefix of the device is taken to be on its link.
        """
        route = _default_route(index, gateway)
        with _readable(f"default route via {gateway}"):
            for old, protocol in self.default_gateways(index).items():
                if protocol == RTPROT_STATIC and old.version == gateway.version and old != gateway:
                    self._route.route("del", gateway=str(old), **route)
        if metric is not None:
            route["priority"] = metric
        self._append_by(route, gateway)

    def delete_default_route(self, index: int, gateway: Address) -> None:
        """One that is not there, or that others have set, is no error."""
        route = _default_route(index, gateway)
        with _readable(f"default route via {gateway}"):
            if self.default_gateways(index).get(gateway) == RTPROT_STATIC:
                self._route.route("del", gateway=str(gateway), **route)

    def default_gateways(self, index: int) -> dict[Address, int]:
        """Those of the device in the main table, with the protocol (RTPROT_*) of each."""
        return self._kernel.default_gateways(index)

    def add_route(self, index: int, route: Route) -> None:
        """On the device, in the main table. One that is there is no error. A gateway is taken as by
        `add_default_route`."""
        words = _static_route(index, route)
        if route.gateway is not None:
            self._append_by(words, route.gateway)
            return
        with contextlib.suppress(FileExistsError), _readable(f"route {route}"):
            self._route.route("append", **words)

    def delete_route(self, index: int, route: Route) -> None:
        """One that is not there, or that others have set, is no error."""
        gateway = {} if route.gateway is None else {"gateway": str(route.gateway)}
        with contextlib.suppress(ProcessLookupError), _readable(f"route {route}"):
            self._route.route("del", **_static_route(index, route), **gateway)

    def routes(self, index: int) -> set[tuple[Network, Address | None, int]]:
        """As `DeviceReader.routes`."""
        return self._kernel.routes(index)

    def _append_by(self, route: dict[str, Any], gateway: Address) -> None:
        try:
            self._append_route(route, gateway, 0)
        except OSError as error:
            if error.errno not in GATEWAY_NOT_COVERED:
                raise
            self._append_route(route, gateway, RTNH_F_ONLINK)

    def _append_route(self, route: dict[str, Any], gateway: Address, flags: int) -> None:
        try:
            with _readable(f"route via {gateway}"):
                self._route.route("append", gateway=str(gateway), flags=flags, **route)
        except FileExistsError:
            pass  # this very route is there

    def add_host_route(self, index: int, table: int, address: Address, source: Address | None) -> None:
        """A route to one address on the device's link, instead of another one in that table."""
        with _readable(f"route to {address}"):
            preferred = {} if source is None else {"prefsrc": str(source)}
            self._route.route("replace", **_host_route(index, table, address), **preferred)

    def delete_host_route(self, index: int, table: int, address: Address) -> None:
        with _readable(f"route to {address}"):
            self._route.route("del", **_host_route(index, table, address))

    def host_routes(self, index: int) -> frozenset[tuple[Address, int]]:
        """All that `add_host_route` has added for the device, with their tables."""
        return self._kernel.host_routes(index)

    def rules(self) -> set[Rule]:
        """Our policy rules in this namespace."""
        return rules.ours(self._kernel)

    def set_rules(self, wanted: set[Rule], master: str, table: int) -> None:
        """All our policy rules for this master and its routing table."""
        had = {rule for rule in self.rules() if master in (rule.iif, rule.oif) or rule.table == table}
        with _readable("policy rules"):
            rules.replace(self._kernel, had, wanted)

    def add_rule(self, rule: Rule) -> None:
        with _readable(str(rule)):
            rules.add(self._kernel, rule)

    # ------------------------------------------------------------------------ groups and secrets

    def groups(self, name: str) -> tuple[bytes, ...]:
        """The device's list of group MACs, exactly."""
        return read_groups(name)

    def set_stable_secret(self, name: str, secret: bytes) -> None:
        """16 bytes from which the kernel makes IPv6 interface identifiers (RFC 7217).

        Nothing happens where the device has no IPv6.
        """
        write_sysctl(f"net/ipv6/conf/{name}/stable_secret", str(IPv6Address(secret)))

    def disable_ipv6(self, name: str) -> None:
        """On the device. Nothing happens where it has none."""
        write_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1")

    def set_sysctl(self, path: str, value: str) -> str | None:
        """Write /proc/sys/`path`; what it was before, None if this kernel doesn't have it."""
        before = read_sysctl(path)
        if before is not None:
            write_sysctl(path, value)
        return before

    def sysctl(self, path: str) -> str | None:
        """What /proc/sys/`path` says, None if this kernel doesn't have it."""
        return read_sysctl(path)

    # ------------------------------------------------------------------------ namespaces

    def nsid(self, netns_fd: int) -> int | None:
        """This namespace's id for another one, given one if it had none; None if it is the same."""
        if os.path.samestat(os.fstat(netns_fd), os.stat("/proc/thread-self/ns/net")):
            return None
        with _readable("namespace id"):
            found = self._known_nsid(netns_fd)
            if found is None:
                wanted = pack_attribute(NETNSA_NSID, _INT.pack(NETNSA_NSID_NOT_ASSIGNED))
                wanted += pack_attribute(NETNSA_FD, _INT.pack(netns_fd))
                with contextlib.suppress(FileExistsError):
                    self._kernel.change_one(RTM_NEWNSID, 0, _RTGENMSG + wanted)
                found = self._known_nsid(netns_fd)
        return found

    def _known_nsid(self, netns_fd: int) -> int | None:
        answer = self._kernel.ask(RTM_GETNSID, 0, _RTGENMSG + pack_attribute(NETNSA_FD, _INT.pack(netns_fd)))[0]
        nsid: int = _INT.unpack(attributes(answer, len(_RTGENMSG))[NETNSA_NSID])[0]
        return None if nsid == NETNSA_NSID_NOT_ASSIGNED else nsid

    def set_noqueue(self, index: int) -> None:
        """Frames go to a device at once. By default one with several queues has a queueing discipline for each that it
        could have, which for a TAP are 256, and 6 MB. The device must be down."""
        with _readable(f"queueing discipline of link {index}"):
            clsact.set_noqueue(self._kernel, index)

    # ------------------------------------------------------------------------ the shim's filters

    def attach_clsact(self, index: int, ingress_fd: int, egress_fd: int) -> None:
        """Two BPF programs, direct-action, replacing what an earlier run of ours left."""
        with _readable(f"tc filters on link {index}"):
            clsact.attach(self._kernel, index, ingress_fd, egress_fd)

    def clsact_programs(self, index: int, *, where: Sequence[int] = (clsact.INGRESS, clsact.EGRESS)) -> dict[int, int]:
        """Where (`clsact.INGRESS`, `EGRESS`) -> the id of our program."""
        return clsact.programs(self._kernel, index, where)

    def mute(self, index: int, drop_fd: int) -> None:
        """Have a BPF program keep what a device receives from this namespace's stack."""
        with _readable(f"tc filter on link {index}"):
            clsact.mute(self._kernel, index, drop_fd)

    def detach_clsact(self, index: int) -> None:
        """Remove them, and the clsact qdisc if no other filter is on it. Nothing happens if they
        or the device are gone."""
        with _readable(f"tc filters on link {index}"):
            clsact.detach(self._kernel, index)


def _host_route(index: int, table: int, address: Address) -> dict[str, Any]:
    six = address.version == 6
    return {
        "family": AF_INET6 if six else AF_INET,
        "dst": f"{address}/{address.max_prefixlen}",
        "oif": index,
        "proto": rules.OURS,
        "table": table,
        "scope": RT_SCOPE_UNIVERSE if six else RT_SCOPE_LINK,
    }


def _default_route(index: int, gateway: Address) -> dict[str, Any]:
    everything = ip_network("::/0" if gateway.version == 6 else "0.0.0.0/0")
    return _static_route(index, Route(destination=everything, gateway=gateway))


def _static_route(index: int, route: Route) -> dict[str, Any]:
    """All but its gateway."""
    six = route.destination.version == 6
    return {
        "family": AF_INET6 if six else AF_INET,
        "dst": str(route.destination),
        "oif": index,
        "proto": RTPROT_STATIC,
        "table": RT_TABLE_MAIN,
        **({} if six or route.gateway is not None else {"scope": RT_SCOPE_LINK}),
        **({} if route.metric is None else {"priority": route.metric}),
    }


@contextlib.contextmanager
def _readable(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{place}: {error.strerror}") from error
    except Exception as error:
        from pyroute2.netlink.exceptions import NetlinkError

        if not isinstance(error, NetlinkError):
            raise
        raise OSError(error.code, f"{place}: {error.args[1]}") from error
