"""Groups that the host joins on a device in the ports' stead: its kernel reports them to the LAN's switches and routers
and answers their queries (IGMP: RFC 3376, MLD: RFC 3810), as a proxy does (RFC 4605).

For modes in which the ports' own reports don't leave. Call inside the device's namespace."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Set

# linux/in.h, linux/in6.h
IP_ADD_MEMBERSHIP, IP_DROP_MEMBERSHIP = 35, 36
IPV6_JOIN_GROUP, IPV6_LEAVE_GROUP = 20, 21


class Membership:
    """Joins end with this object, or with the process."""

    def __init__(self, index: int) -> None:
        """Errors: OSError."""
        self.joined: Set[bytes] = frozenset()
        self._index = index
        with contextlib.ExitStack() as undo:
            # Unbound, so that nothing is ever received.
            self._ipv4 = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self._ipv6: socket.socket | None = None
            with contextlib.suppress(OSError):  # the kernel has no IPv6
                self._ipv6 = undo.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            undo.pop_all()

    def set(self, groups: Set[bytes]) -> None:
        """Be a member of these groups (4 or 16 bytes) and of no others. What the device can't be of, as it has no IPv6
        or is gone, is left out. Errors: OSError."""
        for group in self.joined - groups:
            self._change(group, IP_DROP_MEMBERSHIP, IPV6_LEAVE_GROUP)
        for group in groups - self.joined:
            self._change(group, IP_ADD_MEMBERSHIP, IPV6_JOIN_GROUP)
        self.joined = frozenset(groups)

    def _change(self, group: bytes, option4: int, option6: int) -> None:
        try:
            if len(group) == 4:
                mreqn = struct.pack("=4s4si", group, bytes(4), self._index)
                self._ipv4.setsockopt(socket.IPPROTO_IP, option4, mreqn)
            elif self._ipv6 is not None:
                mreq = struct.pack("=16si", group, self._index)
                self._ipv6.setsockopt(socket.IPPROTO_IPV6, option6, mreq)
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.EADDRNOTAVAIL, errno.EINVAL):
                raise

    def close(self) -> None:
        self._ipv4.close()
        if self._ipv6 is not None:
            self._ipv6.close()
