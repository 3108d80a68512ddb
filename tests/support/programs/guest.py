"""A virtual machine without a hypervisor: a namespace whose device is connected to a port's descriptor."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import threading
from collections.abc import Iterator

from ipvsw.client import Client
from tests.support.patience import until
from tests.support.running import Daemon
from tests.support.topology import Lab, inside

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 2, 0x1000, 0x4000
BUFFER = 1 << 17


@contextlib.contextmanager
def guest(lab: Lab, daemon: Daemon, port: str, netns: str, device: str = "eth0") -> Iterator[None]:
    """The port's machine runs until the end of the body, with the namespace's own stack and a MAC of its own."""
    about, fds = Client(str(daemon.socket)).hand_over(port)
    end = card(netns, device)
    wake = os.eventfd(0, os.EFD_CLOEXEC)
    cable = threading.Thread(target=_connect, args=(fds[0], end, wake), daemon=True)
    try:
        lab.ip(netns, "link", "set", device, "address", str(about["mac"]), "mtu", str(about["mtu"]), "up")
        cable.start()
        until(lambda: daemon.port(port)["state"] == "up", f"{port} is up")
        yield
    finally:
        os.eventfd_write(wake, 1)
        if cable.is_alive():
            cable.join()
        for fd in (*fds, end, wake):
            os.close(fd)


def card(netns: str, device: str, *, header: bool = True) -> int:
    """A TAP in the namespace, without offloads, whose frames have a virtio_net_hdr or not. The caller closes it."""
    flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if header else 0)
    with inside(netns):
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", device.encode(), flags))
    return fd


def _connect(port: int, card: int, wake: int) -> None:
    """Every frame with its virtio_net_hdr, in both directions, until `wake`."""
    os.set_blocking(port, False)
    poll = select.poll()
    for fd in (port, card, wake):
        poll.register(fd, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if wake in ready:
            return
        for source, target in ((port, card), (card, port)):
            with contextlib.suppress(OSError):  # one has no room, or is not up
                if source in ready:
                    os.write(target, os.read(source, BUFFER))
