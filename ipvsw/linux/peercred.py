"""Who is at the other end of a unix socket, and what a list of users and groups says of them."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import struct
from collections.abc import Iterable

from msgspec import Struct

SO_PEERGROUPS = 59
_CREDENTIALS = struct.Struct("iII")  # struct ucred: process, user, group


class Peer(Struct, frozen=True):
    """A process as it was when it connected. `uid` is None once it has gone."""

    uid: int | None
    groups: frozenset[int] = frozenset()
    pid: int | None = None

    @property
    def is_master(self) -> bool:
        """Root, or the daemon's own user."""
        return self.uid in (0, os.geteuid())

    def is_among(self, allowed: Iterable[str | int]) -> bool:
        """Whether a list of users and, with an "@", groups means it. Names that don't exist match no user."""
        return any(self._is(one) for one in allowed)

    def _is(self, one: str | int) -> bool:
        try:
            if isinstance(one, str) and one.startswith("@"):
                return group_number(one[1:]) in self.groups
            return self.uid is not None and user_number(one) == self.uid
        except OSError:
            return False


def peer_of(connection: socket.socket) -> Peer:
    """SO_PEERCRED and SO_PEERGROUPS, unix(7). Errors: OSError."""
    pid, uid, gid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    # 1024 bytes are the most that Python takes: a process with more than 256 groups is an OSError, ERANGE.
    packed = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
    return Peer(uid, frozenset({gid, *(number for (number,) in struct.iter_unpack("=I", packed))}), pid)


def user_number(user: str | int) -> int:
    """Errors: OSError if there is no such user."""
    if isinstance(user, int) or user.isdecimal():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise OSError(errno.ENOENT, f"there is no user {user}") from None


def group_number(group: str | int) -> int:
    """Errors: OSError if there is no such group."""
    if isinstance(group, int) or group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise OSError(errno.ENOENT, f"there is no group {group}") from None
