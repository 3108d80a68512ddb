"""The data plane's Python face. It knows file descriptors, addresses and small integers only."""

from collections.abc import Collection, Sequence
from ipaddress import IPv4Address, IPv6Address
from threading import Thread
from typing import Any

OUTCOMES: tuple[str, ...]
"""Names of the outcome counters, in the order of `Datapath.traffic`'s `outcomes`."""

MODES: dict[str, int]
FLAGS: dict[str, int]
ACCESS: dict[str, int]
FRAMINGS: dict[str, int]
"""How frames are delimited on a socket: "stream" by the 4-byte big-endian length before each, "packets" as those of
a SOCK_SEQPACKET, "datagrams" as those of a SOCK_DGRAM, which has no end. "" is for devices."""

GUARDS: dict[str, int]
"""The bit of each guard, by the name that it has in the configuration; its outcome is `guard_` and that name."""

PACKET_RING: tuple[int, int]
SEND_RING: tuple[int, int]
"""Slots, and bytes of each: the rings that a master's sockets may have, one to receive in, one to send from."""

CAPTURE_RING: tuple[int, int, int]
"""Of a capture: the bytes before each worker's ring, those of the ring, and those of a record before its frame; see
datapath/mirror/ring.pxd."""

EVENT_GONE: int
"""The port's device is gone (its namespace was deleted), or the peer of its socket has disconnected: the worker no
longer polls it."""
EVENT_GROUPS: int
"""The port sent an IGMP or MLD report: its group list may have changed."""

EVENT_GUARD: int
"""A guard has dropped a frame of the port: `Datapath.offence` says which."""

def uring_error() -> int:
    """0 if the kernel grants an io_uring with all that the data plane needs of it, else an errno: ENOSYS or EPERM
    where it is switched off, EINVAL or EOPNOTSUPP before Linux 6.7."""

class Datapath:
    """One switch's frames, on `workers` threads that never take the GIL.

    Changes are collected by the calls below and take effect together at `commit`, between two
    bursts, in every worker; `commit` returns when all have them, so that what was detached may be
    closed. More than 256 of them take effect in their order, so many between two bursts.
    File descriptors stay the caller's: the datapath never closes them.
    Not thread-safe: one control thread calls it.
    """

    def __init__(self, workers: int = 1, io: str = "auto", *, busy_poll: int = 50, coalesce: bool = True) -> None:
        """`io`: "epoll", "uring" (Errors: OSError if the kernel grants none), or "auto": the latter where it can be
        had. `busy_poll`: microseconds that a worker may stay awake with nothing to do, where that pays. `coalesce`:
        UDP datagrams of one flow that arrive together from the master become one for a port that `accepts_uso`."""

    n_workers: int
    threads: list[Thread]
    """Those of the workers, in their order; none before the start and after the end."""

    @property
    def io(self) -> str:
        """ "epoll" or "uring": what the first worker uses. A ring that the kernel fails is replaced by the epoll."""
    @property
    def notify_fd(self) -> int:
        """An eventfd, readable when `events` has something to say."""

    def start(self) -> None:
        """Start the workers, once. Errors: RuntimeError."""

    def halt(self) -> None:
        """Stop the workers for good, when what they have read has left. Counters can still be read. Idempotent."""

    def close(self) -> None:
        """Stop the workers and free everything. Idempotent."""

    def set_mode(self, mode: int, flag: int, access: int = 0, groups: Sequence[bytes] = ()) -> None:
        """`groups` are the addresses (4 or 16 bytes, at most 16) of those whose packets l3 and l3s switch."""

    def attach_master(
        self,
        fds: Sequence[int],
        inject_fd: int,
        mac: bytes,
        *,
        send_fds: Sequence[int] = (),
        starts: Sequence[int] = (),
        index: int = 0,
        stack_fds: tuple[int, int] = (-1, -1),
        tunnel_fd: int = -1,
    ) -> None:
        """AF_PACKET sockets with PACKET_VNET_HDR (10 bytes), PACKET_AUXDATA and, where it could be had, a
        PACKET_RX_RING of the size PACKET_RING, one for each worker; the marked socket whose frames the shim redirects
        to ingress; in `send_fds`, if they could be had, as many sockets to send from with PACKET_VNET_HDR and a
        PACKET_TX_RING of the size SEND_RING (one with a ring is attached only once); in `starts` the slot that is
        taken first of each receive ring, if they are not new; and for l3 the master's interface index and the raw
        sockets, IPv4 and IPv6, into the host's IP output. What is written to `tunnel_fd`, a TAP with the 24-byte
        header, leaves on the wire; -1: there is none."""

    def set_master(self, mac: bytes) -> None:
        """The master's MAC address changed (6 bytes)."""

    def detach_master(self) -> None: ...
    def attach_port(
        self,
        fd: int,
        mtu: int,
        *,
        extra_fds: Sequence[int] = (),
        macnat: bytes | None = None,
        framing: int = 0,
        accepts_uso: bool = False,
        long_header: bool = False,
    ) -> int:
        """A TAP with a 10-byte virtio_net_hdr, non-blocking. Returns the port's number, which stays
        its own until `detach_port` is committed. The port starts down. `extra_fds`: of its other queues, each of which
        another worker reads, so that there can't be more than workers. `macnat`: MAC NAT for an
        endpoint with this MAC address, until its frames have another source. With a `framing`, and -1 for `fd`, the
        port is a unix socket: its frames have no virtio_net_hdr, what it receives is completed and
        segmented, and no peer is connected yet. `accepts_uso`: the TAP's reader takes UDP GSO frames. `long_header`:
        it has the 24-byte header, which tells a UDP tunnel's GSO frames."""

    def connect_port(self, port: int, fd: int) -> None:
        """A peer has connected: `fd` is its socket, non-blocking; -1: it has disconnected. What is buffered for an
        earlier peer is discarded; after the commit its descriptor may be closed."""

    def write_port(self, port: int, frame: bytes) -> None:
        """At once: a virtio_net_hdr and a frame to the peer of a port that is a socket. The frame is dropped if the
        socket is full."""

    def set_port(self, port: int, *, up: bool, mtu: int) -> None:
        """A port that is down receives nothing; `mtu` bounds what siblings may send it (bytes, without
        the Ethernet header)."""

    def set_vlans(self, vlans: Collection[int]) -> None:
        """The VLANs that have a device of their own on the master, whose frames are the host's: their identifiers,
        with 4096 added for 802.1ad."""

    def set_groups(
        self, port: int, groups: Sequence[bytes], *, all_multicast: bool = False, joined: Collection[int] = ()
    ) -> None:
        """The group MACs that the port's device listens to, besides broadcast; `all_multicast` for a promiscuous or
        all-multicast device, and for a virtual machine, which is to have all but, of the IP versions `joined`, those
        that it would have reported."""

    def announce(self, port: int, frame: bytes) -> None:
        """A multicast frame behind its virtio_net_hdr goes where the port's own would: to the siblings that listen, to
        the host if it receives them, and on the wire. It is none of the port's rx, and is lost if too many wait."""

    def detach_port(self, port: int) -> None:
        """Its addresses must have been unbound before or in the same commit."""

    def bind(self, address: bytes, port: int) -> None:
        """`address` (4 or 16 bytes) belongs to `port`; replaces an earlier owner."""

    def bind_all(self, addresses: Sequence[bytes], port: int) -> None:
        """`bind` for each."""

    def bind_host(self, address: bytes) -> None:
        """`address` (4 or 16 bytes) is the master's own; matters where the host may talk to ports."""

    def bind_gateway(self, address: bytes) -> None:
        """`address` (4 or 16 bytes) is one that the host's routes use as a gateway: for the guards that is another's,
        for all other rules nobody's."""

    def bind_former(self, address: bytes, port: int) -> None:
        """`address` (4 or 16 bytes) was the port's until just now: for its guards it is so yet, for all others and all
        other rules nobody's. It must be unbound or bound to another before the port is detached."""

    def unbind(self, address: bytes) -> None: ...
    def attach_host(self, fd: int) -> None:
        """A TAP through which the host's stack talks to the ports, with a 10-byte virtio_net_hdr, non-blocking."""

    def detach_host(self) -> None: ...
    def set_route(
        self, address: bytes, *, mac: bytes = ..., stack: bool = False, local: bool = False, mtu: int = 65535
    ) -> None:
        """l3: packets for `address` (4 or 16 bytes) leave on the master to the neighbour `mac`, or with
        `stack` through the host's IP output (`local`: to the host itself, from which guards may keep a port); with
        neither there is no way there. `mtu` is the path's."""

    def forget_route(self, address: bytes) -> None:
        """The next frame for `address` (4 or 16 bytes) goes to `slow` again. One that isn't set is no error."""

    def clear_routes(self) -> None: ...
    def used_routes(self) -> set[IPv4Address | IPv6Address]:
        """The destinations of `set_route` that frames went to since the last call."""

    def slow(self) -> list[tuple[int, bytes]]:
        """(port, virtio_net_hdr and frame) of l3 frames whose destination has no route here, or that do
        not fit its path. A port may have as many waiting as are left free of 256 frames and 2 MB for each worker;
        `notify_fd` is readable when there are some."""

    def set_learning(self, port: int, learning: bool, *, link_local: bool = False) -> None:
        """Whether frames of the port with an address that it isn't bound to are punted. `link_local`: those with an
        IPv6 link-local one, at least."""

    def set_guards(self, port: int, guards: int, *, holds: bool = False) -> None:
        """`guards`: bits of GUARDS; a port starts with none. `holds`: a frame whose one fault is an address that nobody
        owns yet is punted, as long as the port has credit, and checked once more when it is reinjected. Errors:
        ValueError."""

    def set_limits(
        self, port: int, *, rate: tuple[int, int] = (0, 0), packets: tuple[int, int] = (0, 0), broadcast: int = 0
    ) -> None:
        """What may pass in a second, 0 for any number: bits from the port and to it, packets from it and to it, and
        multicast frames from it that are copied to all. A port starts without limits; new ones start with a burst."""

    def guards(self, port: int) -> tuple[str, ...]:
        """Names of GUARDS that are on since the last commit; none if there is no such port."""

    def offence(self, port: int) -> tuple[str, bytes, IPv4Address | IPv6Address | None] | None:
        """The first frame that a guard dropped of the port since `await_offence`: its outcome, its source MAC address
        and the address that it claims, None where it has none."""

    def await_offence(self, port: int) -> None:
        """Have EVENT_GUARD tell of the next; until then it doesn't. At once."""

    def punted(self) -> list[tuple[int, bytes]]:
        """Punted frames, (source, virtio_net_hdr and frame): DHCP, ARP probes and the replies to them, membership
        reports of ports with `all_multicast`, and frames of learning ports with new addresses;
        the source is a port, or a negative number that `reinject` takes. `notify_fd` is readable when there are some.
        Each is held until it is reinjected; those of ports that were detached since are left out.
        Each costs its source a credit; a source without credits has its frames forwarded and not punted."""

    def give_credit(self, source: int) -> None:
        """For further frames, at once: 8 for a port, whatever is missing to 128 for the others. A port has 32 at
        most, and starts with as many."""

    def reinject(self, source: int, frame: bytes, to: int = -1, *, copy: bool = False) -> None:
        """Forward a punted frame by the rules, or to the port `to` alone, from another port as the flag allows; it
        counts for its source, unless it is a `copy` for one more port. It may have been changed."""

    def used(self, port: int, addresses: Sequence[bytes]) -> list[bytes]:
        """Those of `addresses` that a port which learns, and is bound to them, has sent from since the last call;
        now and then one more."""

    def open_capture(self) -> int:
        """From the commit on, workers copy frames for readers, by default none: to the memfd whose descriptor this
        is. It stays the datapath's. Errors: OSError, RuntimeError if there is one already."""

    def close_capture(self) -> None:
        """From the commit on they don't; the descriptor is closed then."""

    def capture(self, port: int | str | None, on: bool, tag: int = 0) -> None:
        """Whether what a port, for None the master or for "host" the host's stack sends and gets is copied. `tag` is
        what records call a port, a number from 3 on."""

    def commit(self, beat: bool = False) -> None:
        """With `beat` also if there are no changes: it returns when every worker has made a round.
        Errors: OSError (no memory, or a descriptor that can't be polled): the other changes were made."""
    def events(self) -> list[tuple[int, int]]:
        """(port, EVENT_* bits) since the last call; clears `notify_fd`."""

    def own_mac(self, port: int) -> bytes | None:
        """The MAC address that a port's endpoint uses, None if it is the master's."""

    def trace(
        self, port: int | str | None, frame: bytes, header: bytes = ...
    ) -> tuple[str, list[tuple[str, dict[str, Any]]], list[tuple[int | str, bytes]]]:
        """What would become of a frame with that virtio_net_hdr, by default one that asks for nothing, from a port,
        from the master for None, or from the host's own interface for "host"; nothing is sent, counted or changed.
        Its outcome; the stages that it passes, each with what was found there and its `outcome`, None where the frame
        goes on; and who receives which bytes: a port, "wire", "host", or "stack" for the host's IP output. Which
        stages there are, and their facts, stands in datapath/face/trace.pxd. Errors: ValueError."""

    def traffic(self, port: int | str | None) -> tuple[int, int, int, int, int, int, tuple[int, ...]]:
        """The fields of `status.Traffic`, in its order, of a port, of the master for None, or of the host's own
        interface for "host". Bytes include the Ethernet header."""
    def ring_starts(self) -> list[int]:
        """Once the workers are halted: of each worker's receive ring the slot that comes next."""

    def waiting(self) -> list[tuple[int, int, int]]:
        """Frames in the queues of each worker at this moment: multicast frames to be copied, those for `slow`, those
        for `punted`."""

    def frames_read(self) -> int:
        """On all interfaces: another number when a frame has come since."""
