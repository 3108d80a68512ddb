"""Where the host would send a packet: questions to rtnetlink on a socket of their own.

The socket belongs to the namespace that it was opened in, so that nobody enters a namespace to ask, and what ports
have the switch ask doesn't stand in the way of what `Netlink.run` does. Written and read by hand and not by pyroute2,
which takes a millisecond for an answer: a port can have thousands of destinations looked up.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from ipaddress import IPv4Address, IPv6Address

from ipvsw.linux.netlink import rules
from ipvsw.linux.netlink.messages import AF_INET, AF_INET6, IFINFOMSG, attributes, pack_attribute
from ipvsw.linux.netlink.questions import NLM_F_ACK, NLM_F_DUMP, NLM_F_REPLACE, Questions
from ipvsw.linux.netlink.routes import NTF_USE, RouteAnswer, read_neighbour
from ipvsw.linux.netlink.rules import RTMSG
from ipvsw.model import Address

# linux/rtnetlink.h
RTM_GETLINK, RTM_GETROUTE, RTM_NEWNEIGH, RTM_GETNEIGH, RTM_GETRULE = 18, 26, 28, 30, 34
RTN_UNICAST, RTN_LOCAL, RTN_MULTICAST = 1, 2, 5
_RTA_DST, _RTA_SRC, RTA_OIF, _RTA_GATEWAY, _RTA_METRICS, _RTA_VIA = 1, 2, 4, 5, 8, 18
_RTAX_MTU = 2
_IFLA_MTU = 4
_NDA_DST = 1

# linux/fib_rules.h: what a rule may ask besides the destination, so that a destination alone has no answer. What is
# the same for everything that the host sends by one device decides nothing: mark 0, and lo as input device. Newer
# attributes (FRA_DSCP, FRA_FLOWLABEL, ...) are taken to decide.
_FRA_SRC, _FRA_UID_RANGE, _FRA_PROTOCOL, _FRA_IP_PROTO = 2, 20, 21, 22

_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.EAGAIN)

_NDMSG = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_RULE_HEADER = struct.Struct("=BBBB8x")  # struct fib_rule_hdr: family, lengths of destination and source, tos
_INT = struct.Struct("=i")


class RouteLookup(Questions):
    """Questions about routes and neighbours."""

    # ------------------------------------------------------------------------ questions

    def route_to(self, destination: Address, source: Address, index: int) -> RouteAnswer | None:
        """What the kernel's own ipvlan asks when it routes for a port: output device `index`, and for IPv6 the
        packet's source. None if there is no way (IPv4 assumes the link then). Errors: OSError.

        Source: ipvlan_process_v4_outbound, ipvlan_process_v6_outbound. IPv4 is asked without a source, since
        RTM_GETROUTE refuses one that is not the host's own; `destination_decides` tells whether that makes a
        difference.
        """
        try:
            kind, found = self._route(destination, source, index)
        except OSError as error:
            if error.errno in _UNREACHABLE:
                return None
            raise
        leaves_by = _INT.unpack(found[RTA_OIF])[0] if RTA_OIF in found else 0
        if kind == RTN_MULTICAST and isinstance(destination, IPv6Address):
            return RouteAnswer(False, leaves_by, destination, b"\x33\x33" + destination.packed[12:], True, 0)
        if kind == RTN_LOCAL:
            return RouteAnswer(True, leaves_by, destination, None, True, 0)
        if kind != RTN_UNICAST:
            return None
        via = gateway_of(found) or destination
        mac, permanent = self._neighbour(leaves_by, via)
        metrics = attributes(found.get(_RTA_METRICS, b""), 0)
        mtu = _INT.unpack(metrics[_RTAX_MTU])[0] if _RTAX_MTU in metrics else 0
        if not mtu and leaves_by != index:
            mtu = self._mtu(leaves_by)
        return RouteAnswer(False, leaves_by, via, mac, permanent, mtu)

    def destination_decides(self, version: int) -> bool:
        """Whether every policy rule of this IP version looks at nothing of a packet but its destination."""
        family = AF_INET6 if version == 6 else AF_INET
        for body in self.ask(RTM_GETRULE, NLM_F_DUMP, _RULE_HEADER.pack(family, 0, 0, 0)):
            _, _, source_length, tos = _RULE_HEADER.unpack_from(body)
            found = attributes(body, _RULE_HEADER.size)
            if found.get(_FRA_PROTOCOL) == bytes([rules.OURS]):
                continue
            if source_length or tos or any(_is_selective(kind) for kind in found):
                return False
        return True

    def use_neighbour(self, index: int, address: Address) -> None:
        """Tell the kernel that a next hop is in use, so that it confirms it in time (NTF_USE). One that it doesn't
        know any more is no error. An entry that was set by hand needs no confirmation, and NTF_USE would make the
        kernel forget its hardware address (__neigh_update)."""
        _, permanent = self._neighbour(index, address)
        if permanent:
            return
        with contextlib.suppress(FileNotFoundError):
            self.ask(RTM_NEWNEIGH, NLM_F_REPLACE | NLM_F_ACK, _neighbour(index, address, NTF_USE))

    # ------------------------------------------------------------------------ messages

    def _route(self, destination: Address, source: Address, index: int) -> tuple[int, dict[int, bytes]]:
        """Type (RTN_*) and attributes of the route."""
        six = destination.version == 6
        lengths = (128, 128) if six else (32, 0)
        body = RTMSG.pack(AF_INET6 if six else AF_INET, *lengths, 0, 0, 0, 0, 0, 0)
        body += pack_attribute(_RTA_DST, destination.packed) + pack_attribute(RTA_OIF, _INT.pack(index))
        if six:
            body += pack_attribute(_RTA_SRC, source.packed)
        answer = self.ask(RTM_GETROUTE, 0, body)[0]
        return answer[7], attributes(answer, RTMSG.size)

    def _neighbour(self, index: int, address: Address) -> tuple[bytes | None, bool]:
        """The hardware address, None if it isn't known, and whether it was set by hand."""
        try:
            found = read_neighbour(self.ask(RTM_GETNEIGH, 0, _neighbour(index, address, 0))[0], gone=False)
        except OSError:
            return None, False
        return (found.mac, found.permanent) if found is not None else (None, False)

    def _mtu(self, index: int) -> int:
        """A device's, 0 if there is no such device any more."""
        try:
            body = self.ask(RTM_GETLINK, 0, IFINFOMSG.pack(0, 0, index, 0, 0))[0]
        except OSError:
            return 0
        found = attributes(body, IFINFOMSG.size)
        return int(_INT.unpack(found[_IFLA_MTU])[0]) if _IFLA_MTU in found else 0


def _is_selective(kind: int) -> bool:
    return kind in (_FRA_SRC, _FRA_UID_RANGE) or kind >= _FRA_IP_PROTO


def _neighbour(index: int, address: Address, flags: int) -> bytes:
    family = AF_INET6 if address.version == 6 else AF_INET
    return _NDMSG.pack(family, index, 0, flags, 0) + pack_attribute(_NDA_DST, address.packed)


def gateway_of(found: dict[int, bytes]) -> Address | None:
    """The next hop's address, which may be of the other IP version (RTA_VIA)."""
    raw = found.get(_RTA_GATEWAY) or found.get(_RTA_VIA, b"")[2:]
    if not raw:
        return None
    return IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)
