"""Devices of kind "ipvsw", which the optional kernel module makes: the character device behind each of them.

What is read there the device's namespace has sent, what is written there it receives; the descriptor says nothing
when the device goes (reads find nothing, writes vanish), of which netlink tells.
"""

from __future__ import annotations

import errno
import os

from ipvsw.linux.devices.tap import prepare

DEVICE = "/dev/ipvsw{}"


class LinkTap:
    """The character device, open with a 10-byte virtio_net_hdr and every offload that the kernel grants.

    `fd` is non-blocking; `offloads` are those of "csum", "tso4", "tso6" that frames may come with on the fd.
    """

    fd: int
    offloads: tuple[str, ...]

    def __init__(self, minor: int) -> None:
        """`minor` is the device's number. Errors: OSError, ENODEV if the device is gone."""
        path = DEVICE.format(minor)
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if os.minor(os.fstat(self.fd).st_rdev) != minor:
                raise OSError(errno.ENODEV, f"{path} is another device")
            self.offloads = prepare(self.fd)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """The device stays. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
