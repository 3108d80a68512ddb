"""What of the host and of the daemon's process bites. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ipvsw.doctor.checks.finding import Finding
from ipvsw.doctor.facts import Host

CAPABILITIES = {"net_admin": 12, "net_raw": 13, "sys_admin": 21}  # linux/capability.h
NEARLY = 0.8  # of the descriptors and of the memory that the daemon may have


def _manager(host: Host) -> Iterator[Finding]:
    for name in host.managers:
        yield Finding(
            code="network-manager",
            where="host",
            text=f"{name} runs, and no file of its configuration leaves devices named ipvsw-* alone: it may take away"
            " their addresses and routes, or set them down",
            remedy="install contrib/60-ipvsw-unmanaged.conf or .network, as docs/howto/install.md says",
        )


def _capabilities(host: Host) -> Iterator[Finding]:
    if host.process is None:
        return
    missing = [name for name, bit in CAPABILITIES.items() if not host.process.capabilities >> bit & 1]
    if missing:
        yield Finding(
            code="capabilities",
            where="host",
            text=f"ipvswd runs without {', '.join(f'CAP_{name.upper()}' for name in missing)}: it can't make"
            " ports, open the master, or enter namespaces",
            remedy="run it as root, or with the capabilities of contrib/ipvswd.service",
        )


def _few_fds(host: Host) -> Iterator[Finding]:
    process = host.process
    if process is not None and process.fds >= NEARLY * process.fds_max:
        yield Finding(
            code="few-fds",
            where="host",
            text=f"ipvswd has {process.fds} of {process.fds_max} descriptors open: the next ports or clients are"
            " refused",
            remedy="a higher LimitNOFILE= in the unit, or `prlimit --nofile`",
        )


def _little_memory(host: Host) -> Iterator[Finding]:
    process = host.process
    if process is not None and process.memory_max and process.memory >= NEARLY * process.memory_max:
        yield Finding(
            code="little-memory",
            where="host",
            text=f"ipvswd's control group uses {process.memory >> 20} of {process.memory_max >> 20} MB: at the limit"
            " the kernel kills the daemon",
            remedy="a higher MemoryMax= in the unit, or in a slice above it",
        )


CHECKS: tuple[Callable[[Host], Iterator[Finding]], ...] = (
    _manager,
    _capabilities,
    _few_fds,
    _little_memory,
)
