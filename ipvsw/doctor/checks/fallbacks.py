"""What this kernel lacks, and what is used in its place. Pure."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from ipvsw.doctor.checks.finding import Finding
from ipvsw.doctor.facts import Daemon, Host, Record
from ipvsw.status import NO_VETH


def _no_uring(host: Host, daemon: Daemon) -> Iterator[Finding]:
    """What counts is what the daemon was granted: a service may be refused what its administrator isn't."""
    if daemon.config.get("daemon", {}).get("io") == "epoll":
        return
    names = [switch["name"] for switch in daemon.switches if switch["io"] == "epoll"]
    if not daemon.switches and host.uring_error:
        names = ["host"]
    why = (
        f"the kernel grants no io_uring ({os.strerror(host.uring_error)})"
        if host.uring_error
        else "ipvswd was granted no io_uring though root is, or it failed later"
    )
    for name in names:
        yield Finding(
            code="no-uring",
            where=name,
            text=f"{why}: the data plane uses epoll, and needs more of the CPU for each frame",
            remedy="Linux 6.7 or newer, `sysctl kernel.io_uring_disabled=0`, and no seccomp filter in the way; or"
            ' `io = "epoll"` if that is what you want',
        )


def _no_jit(host: Host, daemon: Daemon) -> Iterator[Finding]:
    if not host.jit:
        yield Finding(
            code="no-jit",
            where="host",
            text="the kernel interprets BPF programs: those that look at every frame of a master take several times as"
            " long",
            remedy="`sysctl net.core.bpf_jit_enable=1`",
        )


def _no_group_events(host: Host, daemon: Daemon) -> Iterator[Finding]:
    if not host.announces_groups and any(True for _ in _in_namespaces(daemon)):
        yield Finding(
            code="no-group-events",
            where="host",
            text="the kernel doesn't tell when a namespace joins a multicast group: the daemon looks once a minute, and"
            " the first frames of a group may not arrive",
            remedy="Linux 6.14 or newer; or `ip link set IFNAME allmulticast on` in the namespace",
        )


def _no_veth(host: Host, daemon: Daemon) -> Iterator[Finding]:
    if any(port["path"] == NO_VETH for port in _in_namespaces(daemon)):
        yield Finding(
            code="no-veth",
            where="host",
            text="the kernel has no veth: ports in namespaces are TAPs, and the data plane forwards all that the kernel"
            " could forward by itself",
            remedy='CONFIG_VETH, or `modprobe veth`, then a restart of ipvswd; or `device = "tap"` if that is what you'
            " want",
        )


def _no_uso(host: Host, daemon: Daemon) -> Iterator[Finding]:
    if any(port["offloads"] and "uso4" not in port["offloads"] for port in _in_namespaces(daemon)):
        yield Finding(
            code="no-uso",
            where="host",
            text="the kernel's TAPs take no merged UDP datagrams (USO): QUIC and other UDP streams cross them datagram"
            " by datagram",
            remedy="Linux 6.2 or newer",
        )


def _no_macvtap(host: Host, daemon: Daemon) -> Iterator[Finding]:
    wanted = {
        f"{switch['name']}/{port['name']}"
        for switch in daemon.config.get("switch", ())
        for port in switch.get("port", ())
        if port.get("kind") == "macvtap"
    }
    for switch in daemon.switches:
        for port in switch["ports"]:
            where = f"{switch['name']}/{port['name']}"
            if where in wanted and port["kind"] == "tap":
                yield Finding(
                    code="no-macvtap",
                    where=where,
                    text="the kernel has no macvtap: the port is a TAP, and what opens /dev/tapN finds none",
                    remedy=f"CONFIG_MACVTAP, or `modprobe macvtap`, then a restart of ipvswd; or have the VMM open the"
                    f' TAP {port["ifname"]}, and write `kind = "tap"`',
                )


def _in_namespaces(daemon: Daemon) -> Iterator[Record]:
    return (port for switch in daemon.switches for port in switch["ports"] if port["kind"] == "netns")


CHECKS: tuple[Callable[[Host, Daemon], Iterator[Finding]], ...] = (
    _no_uring,
    _no_jit,
    _no_group_events,
    _no_veth,
    _no_uso,
    _no_macvtap,
)
