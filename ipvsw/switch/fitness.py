"""Whether a device can be a switch's master."""

from __future__ import annotations

from ipvsw.linux.netlink import Handle, Link


class Absent(Exception):
    """There is no such device."""


class Unfit(Exception):
    """The device can't be a master; the text says why."""


class Taken(Unfit):
    """Another daemon serves it."""


def fit_master(handle: Handle, name: str) -> Link | None:
    """The device of that name, None if there is none. Errors: Unfit, OSError."""
    link = handle.link(name)
    if link is None:
        return None
    if not link.ethernet:
        raise Unfit(f"{name} is not an Ethernet device")
    if link.master and not _is_vrf(handle.link_at(link.master)):
        raise Unfit(f"{name} is part of another device, such as a bridge or a bond")
    return link


def _is_vrf(link: Link | None) -> bool:
    """A VRF takes no frames away from its members: it is a table for their routes."""
    return link is not None and link.kind == "vrf"
