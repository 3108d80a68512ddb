"""What a daemon sets on the host, and traffic during which others change it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support import leftovers
from tests.support.topology import Lab, inside, port4, port6, run

HOST_DEVICE = "ipvsw-m0"
MODES = ("l2", "l3", "l3s")


def settings(lab: Lab) -> dict[str, str]:
    """Sysctls of the master and the host's interface, where there is one."""
    found = {}
    with inside(lab.host):
        for device in ("m0", HOST_DEVICE):
            for name in ("ipv4/conf/{}/forwarding", "ipv6/conf/{}/force_forwarding", "ipv6/conf/{}/addr_gen_mode"):
                with contextlib.suppress(FileNotFoundError):
                    found[name.format(device)] = Path("/proc/sys/net", name.format(device)).read_text()
    return found


def host_state(lab: Lab) -> dict[str, object]:
    """Everything that the daemon sets there. The kernel numbers a device that is made again anew."""
    ip = {
        f"{family} {words}": sorted(run("ip", family, "-n", lab.host, *words.split()).splitlines())
        for family in ("-4", "-6")
        for words in ("rule", "route show table all proto 118")
    }
    device = lab.link(lab.host, HOST_DEVICE)
    groups = {tuple(line.split()[1:]) for line in lab.read(lab.host, "dev_mcast").splitlines()}
    return {
        **ip,
        "programs": leftovers.tc_programs(lab.host, "m0"),
        "device": device and (device["flags"], device["address"], device["mtu"]),
        "sysctls": settings(lab),
        "groups": {(name, group) for name, *_, group in groups if name == "m0"},
    }


@contextlib.contextmanager
def under_traffic(lab: Lab) -> Iterator[None]:
    """From the wire, between ports, and from the host."""
    pings = [
        subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{netns}", "ping", "-n", "-q", "-i", "0.01", address],
            stdout=subprocess.DEVNULL,
        )
        for netns, address in ((lab.wire, port4(1)), (lab.ports[0], port6(2)), (lab.host, port4(2)))
    ]
    try:
        yield
    finally:
        for ping in pings:
            ping.kill()
            ping.wait()
