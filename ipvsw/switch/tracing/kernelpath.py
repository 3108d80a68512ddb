"""What the kernel would do with a frame by itself, before the daemon sees it: its programs are asked."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from ipvsw.changes import Changes
from ipvsw.linux.bpf import Shim
from ipvsw.linux.fastports import THE_MASTER
from ipvsw.linux.runtime import Runtime
from ipvsw.linux.shim.traced import FastReason, FastVerdict

GSO_TYPE, GSO_SIZE = 1, slice(4, 6)  # in struct virtio_net_hdr
UNKNOWN = "can't be asked about such a frame: the daemon's rules, which are the same, answer in its place"
LEFT = {
    FastReason.UNDECIDED: "the rules of the switch are changing",
    FastReason.RESTRICTED: "something is set for the port that only the daemon does (PATH of `ipvsw show`)",
    FastReason.NOT_IP: "it has a VLAN tag, or is no IP packet",
    FastReason.MAYBE_DHCP: "it is DHCP, or may be",
    FastReason.TO_GROUP: "a multicast frame",
    FastReason.MAYBE_TO_HOST: "with `host_access` it may be for the host",
    FastReason.NO_MASTER: "there is no master to send on",
    FastReason.TOO_LONG: "it is longer than the MTU of the device that it would leave by",
    FastReason.KEPT_APART: "the flag lets no port reach another",
    FastReason.OTHER_MAC: "it is not to the master's MAC address",
    FastReason.NO_OWNER: "no port has the destination",
    FastReason.NO_RECEIVER: "the receiver is no veth, is down, or has something set that only the daemon does",
}


class Decided(Struct, frozen=True):
    """By the kernel's programs."""

    text: str
    outcome: str  # "": the daemon has the frame
    port: int | None = None  # the number of the one that gets it


class KernelPath:
    """One switch's."""

    def __init__(self, runtime: Runtime, changes: Changes, shim: Shim, open_place: Callable[[], int | None]) -> None:
        """`open_place` gives an fd of the master's namespace, None while there is none."""
        self._runtime = runtime
        self._changes = changes
        self._shim = shim
        self._open_place = open_place

    async def decide(self, source: int | None, frame: bytes, header: bytes) -> Decided | None:
        """`source` is a port's number, None: the wire; `header` the frame's virtio_net_hdr. None if the programs have
        nothing to say of the frame. Errors: OSError."""
        fast = self._changes.fast
        if not fast or (source is not None and source not in fast):
            return None
        index = self._changes.uplink if source is None else fast[source].end
        if not index:
            return None
        gso_size = int.from_bytes(header[GSO_SIZE], "little") if header[GSO_TYPE] else 0

        def ask(handle: object) -> tuple[FastVerdict | None]:
            return (self._shim.trace(frame, index, gso_size, from_master=source is None),)

        answer = await self._runtime.run_in_netns(self._open_place, ask)
        return None if answer is None else self._decided(source, answer[0])

    def _decided(self, source: int | None, verdict: FastVerdict | None) -> Decided | None:
        if verdict is None:
            return Decided(UNKNOWN, "")
        if verdict.reason is not FastReason.FORWARDED:
            if source is None and verdict.reason in (FastReason.TO_GROUP, FastReason.NO_OWNER):
                return None  # of no more frames than pass any host
            return Decided(f"left to the daemon: {LEFT[verdict.reason]}", "")
        if verdict.to == THE_MASTER:
            return Decided("forwarded on the wire, without the daemon", "to_master")
        numbers = {device.end: number for number, device in self._changes.fast.items()}
        return Decided("forwarded without the daemon", "to_port", numbers.get(verdict.to))
