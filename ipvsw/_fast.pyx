"""The data plane's Python face, described in `_fast.pyi`. How it works is told in datapath/loop/loop.pxd."""

from cython cimport no_gc_clear
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.unistd cimport close

from ipvsw.datapath.backends.unixsock cimport (
    DATAGRAMS, NO_FRAMING, PACKETS, STREAM, Socket, socket_new, socket_send, socket_tx,
)
from ipvsw.datapath.face.captures cimport Captures, capture_layout, captures_committed, captures_end, captures_start
from ipvsw.datapath.face.convert cimport address_of, as_address, as_mac, check, packed_groups
from ipvsw.datapath.face.edits cimport EditList, edit, edits_add, edits_forget, edits_free
from ipvsw.datapath.face.limits cimport limits_new, macnat_new
from ipvsw.datapath.face.queries cimport (
    addresses_used, await_offences, frames_read, guards_of, offence_of, routes_used, traffic_total,
)
from ipvsw.datapath.face.trace cimport traced
from ipvsw.datapath.face.workers cimport (
    commit_batch, events_taken, frames_waiting, give_credit_to, have_rings, punted_taken, rings_open, slow_taken,
)
from ipvsw.datapath.kernel.packetring cimport SEND_SLOT, SEND_SLOTS, SLOT, SLOTS
from ipvsw.datapath.kernel.sys cimport EFD_CLOEXEC, EFD_NONBLOCK, eventfd, eventfd_read, load_u64
from ipvsw.datapath.kernel.uring cimport Ring, ring_close, ring_open
from ipvsw.datapath.loop.loop cimport worker_run
from ipvsw.datapath.loop.mailbox cimport (
    ANNOUNCE, ATTACH_HOST, ATTACH_MASTER, ATTACH_PORT, BIND, CAPTURE_INTERFACE, CLEAR_ROUTES, CONNECT_PORT, DETACH_HOST,
    DETACH_MASTER, DETACH_PORT, FORGET_ROUTE, REINJECT, SET_CAPTURE, SET_GROUPS, SET_GUARDS, SET_LEARNING, SET_LIMITS,
    SET_MASTER, SET_MODE, SET_PORT, SET_ROUTE, SET_VLANS, STOP, UNBIND, Batch, Edit,
)
from ipvsw.datapath.loop.state cimport (
    BUFFER, EVENT_GONE_BIT, EVENT_GROUPS_BIT, EVENT_GUARD_BIT, FROM_HOST, FROM_MASTER, HEADER,
    LONGEST, ROOM, UNIX_SOCKET, Offence, Worker, worker_free, worker_new,
)
from ipvsw.datapath.rules.decide cimport (
    BRIDGE, EVERY_GROUP, FORMER_PORT, HOST_GATEWAY, HOST_PORT, JOINED_IPV4, JOINED_IPV6, L2, L3, L3S, LEARN_ALL,
    LEARN_LINK_LOCAL, LEARN_NOTHING, PRIVATE, VEPA, VLANS,
)
from ipvsw.datapath.rules.guard cimport FIRST_GUARD, N_GUARDS
from ipvsw.datapath.rules.hostaccess cimport CLOSED, FLOWS, FROM_HOST_INITIATES, TO_HOST_INITIATES
from ipvsw.datapath.rules.routecache cimport BY_LOCAL_STACK, BY_NEXTHOP, BY_STACK, UNREACHABLE

cdef extern from *:
    const char *OUTCOME_NAMES "IPVSW_OUTCOMES"  # of rules/outcome.pxd, which setup.py reads

import os
import sys
import threading
from ipaddress import ip_address

OUTCOMES = tuple(OUTCOME_NAMES.decode().split())
MODES = {"l2": L2, "l3": L3, "l3s": L3S}
ACCESS = {"none": CLOSED, "to-host": TO_HOST_INITIATES, "from-host": FROM_HOST_INITIATES,
          "both": TO_HOST_INITIATES | FROM_HOST_INITIATES}
FRAMINGS = {"": NO_FRAMING, "stream": STREAM, "packets": PACKETS, "datagrams": DATAGRAMS}
GUARDS = {name.removeprefix("guard_").replace("_", "-"): 1 << bit
          for bit, name in enumerate(OUTCOMES[FIRST_GUARD:FIRST_GUARD + N_GUARDS])}
FLAGS = {"bridge": BRIDGE, "private": PRIVATE, "vepa": VEPA}
PACKET_RING, SEND_RING, CAPTURE_RING = (SLOTS, SLOT), (SEND_SLOTS, SEND_SLOT), capture_layout()

EVENT_GONE, EVENT_GROUPS, EVENT_GUARD = EVENT_GONE_BIT, EVENT_GROUPS_BIT, EVENT_GUARD_BIT


def uring_error():
    cdef Ring ring
    cdef int error = ring_open(&ring, BUFFER, ROOM)
    ring_close(&ring)
    return error


@no_gc_clear  # its end needs what it has: the collector would set that to None first, where it is in a cycle
cdef class Datapath:
    """See `_fast.pyi`."""

    cdef Worker **workers
    cdef readonly int n_workers, notify_fd
    cdef int done_fd
    cdef uint64_t *flows
    cdef readonly list threads
    cdef EditList edits  # for the next commit
    cdef list keep  # what the edits point to
    cdef dict macnat  # port number -> address of the MAC that its endpoint uses
    cdef dict limits  # port number -> address of its limits
    cdef list left  # such addresses that nothing needs after the next commit
    cdef set numbers  # of the ports that are attached
    cdef set sockets  # those of them that are sockets
    cdef int32_t next_number
    cdef Captures captures

    def __cinit__(self, int workers=1, io="auto", *, uint32_t busy_poll=50, bint coalesce=True):
        cdef uint64_t key = int.from_bytes(os.urandom(8), "little")
        cdef int error = 0
        if workers < 1:
            raise ValueError(f"at least one worker, not {workers}")
        if io not in ("auto", "epoll", "uring"):
            raise ValueError(f"there is no way to read and write called {io}")
        self.notify_fd = self.done_fd = -1
        self.threads, self.keep, self.numbers, self.sockets = [], [], set(), set()
        self.macnat, self.limits, self.left = {}, {}, []
        self.workers = <Worker **> calloc(workers, sizeof(Worker *))
        self.flows = <uint64_t *> calloc(FLOWS, sizeof(uint64_t))
        if self.workers == NULL or self.flows == NULL:
            raise MemoryError
        self.notify_fd = check(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))
        self.done_fd = check(eventfd(0, EFD_CLOEXEC))
        while self.n_workers < workers:
            self.workers[self.n_workers] = worker_new(self.n_workers, workers, self.notify_fd, key, &error)
            if error:
                raise OSError(error, os.strerror(error))
            self.workers[self.n_workers].switch_.flows = self.flows
            self.workers[self.n_workers].coalesce = coalesce
            self.workers[self.n_workers].busypoll.budget = <uint64_t> 1000 * (busy_poll if os.cpu_count() > 1 else 0)
            self.n_workers += 1
        if io != "epoll":
            self.open_rings(io == "uring")

    cdef void open_rings(self, bint needed) except *:
        """A ring for every worker, or, where one can't be had and none is needed, for none."""
        cdef int error = rings_open(self.workers, self.n_workers)
        if error and needed:
            raise OSError(error, f"io_uring: {os.strerror(error)}")

    @property
    def io(self):
        return "uring" if self.workers != NULL and have_rings(self.workers, self.n_workers) else "epoll"

    def __dealloc__(self):
        self.release()

    def start(self):
        if self.threads or self.workers == NULL:
            raise RuntimeError("a datapath starts once")
        for i in range(self.n_workers):
            thread = threading.Thread(target=self.run, args=(i,), name=f"ipvsw-{i}", daemon=True)
            thread.start()
            self.threads.append(thread)

    def run(self, int number):
        cdef Worker *w = self.workers[number]
        with nogil:
            worker_run(w)

    def halt(self):
        cdef Edit e = edit(STOP)
        if self.threads:
            self.forget_edits()
            edits_add(&self.edits, &e)
            self.commit()
            for thread in self.threads:
                thread.join()
            self.threads = []

    def close(self):
        self.halt()
        self.release()

    cdef void release(self):
        cdef int i
        if self.workers == NULL:
            return  # closed, or never made: there the descriptors are not ours
        for i in range(self.n_workers):
            worker_free(self.workers[i])
        self.left += [*self.macnat.values(), *self.limits.values()]
        self.macnat, self.limits = {}, {}
        self.free_left()
        captures_end(&self.captures)
        free(self.workers)
        free(self.flows)
        edits_free(&self.edits)
        self.workers, self.flows, self.n_workers = NULL, NULL, 0
        for fd in (self.notify_fd, self.done_fd):
            if fd >= 0:
                close(fd)
        self.notify_fd = self.done_fd = -1

    # -------------------------------------------------------------------------------- changes

    def set_mode(self, int mode, int flag, int access=CLOSED, groups=()):
        cdef Edit e = edit(SET_MODE)
        if mode not in MODES.values() or flag not in FLAGS.values() or access not in ACCESS.values():
            raise ValueError(f"there is no mode {mode} with flag {flag} and access {access}")
        e.mode, e.flag, e.access, e.n_groups = mode, flag, access, len(groups)
        e.switched = self.lend(packed_groups(groups))
        edits_add(&self.edits, &e)

    def attach_master(self, fds, int inject_fd, bytes mac, *, send_fds=(), starts=(), int index=0, stack_fds=(-1, -1),
                      int tunnel_fd=-1):
        cdef Edit e = edit(ATTACH_MASTER)
        for each in (fds, *filter(None, (send_fds, starts))):
            if len(each) != self.n_workers:
                raise ValueError(f"{self.n_workers} workers need as many sockets, not {len(each)}")
        e.inject_fd, e.tunnel_fd, e.mac, e.master_index = inject_fd, tunnel_fd, as_mac(mac), index
        e.stack_fds[0], e.stack_fds[1] = stack_fds
        e.fds = self.lend_fds(fds)
        if send_fds:
            e.send_fds = self.lend_fds(send_fds)
        if starts:
            e.starts = <uint32_t *> self.lend_fds(starts)
        edits_add(&self.edits, &e)

    def set_master(self, bytes mac):
        cdef Edit e = edit(SET_MASTER)
        e.mac = as_mac(mac)
        edits_add(&self.edits, &e)

    def detach_master(self):
        cdef Edit e = edit(DETACH_MASTER)
        edits_add(&self.edits, &e)

    def attach_port(self, int fd, uint32_t mtu, *, extra_fds=(), bytes macnat=None, int framing=NO_FRAMING,
                    bint accepts_uso=False, bint long_header=False):
        cdef Edit e = edit(ATTACH_PORT)
        if framing not in FRAMINGS.values() or (framing != NO_FRAMING and fd >= 0):
            raise ValueError(f"there is no framing {framing}, or it is not for a descriptor")
        e.port, e.mtu, e.accepts_uso, e.long_header = self.free_number(), mtu, accepts_uso, long_header
        e.queues = 1 + len(extra_fds)
        if e.queues > self.n_workers:
            raise ValueError(f"{e.queues} queues need as many workers; there are {self.n_workers}")
        e.fds = self.lend_fds((fd, *extra_fds))
        if macnat is not None:
            e.macnat = macnat_new(as_mac(macnat))
            self.macnat[e.port] = <size_t> e.macnat
        if framing != NO_FRAMING:
            e.backend, e.socket = UNIX_SOCKET, socket_new(framing, self.n_workers)
            if e.socket == NULL:
                raise MemoryError
            self.sockets.add(e.port)
        edits_add(&self.edits, &e)
        self.numbers.add(e.port)
        return e.port

    def connect_port(self, int32_t port, int fd):
        cdef Edit e = edit(CONNECT_PORT)
        if self.known(port) not in self.sockets:
            raise ValueError(f"port {port} is no socket")
        e.port, e.fd = port, fd
        edits_add(&self.edits, &e)

    def write_port(self, int32_t port, bytes frame):
        cdef Socket *s
        cdef uint32_t frames
        cdef uint64_t total
        if self.known(port) not in self.sockets or len(frame) < HEADER:
            raise ValueError(f"port {port} is no socket, or there is no virtio_net_hdr")
        if port < self.workers[0].switch_.n_ports and self.workers[0].ports[port].backend == UNIX_SOCKET:
            s = self.workers[0].ports[port].socket
            socket_tx(s, <const uint8_t *> PyBytes_AS_STRING(frame), len(frame), &frames, &total)
            socket_send(s)

    def set_port(self, int32_t port, *, bint up, uint32_t mtu):
        cdef Edit e = edit(SET_PORT)
        e.port, e.up, e.mtu = self.known(port), up, mtu
        edits_add(&self.edits, &e)

    def set_vlans(self, vlans):
        cdef Edit e = edit(SET_VLANS)
        e.vlans = <uint64_t *> self.lend(sum(1 << vlan for vlan in set(vlans)).to_bytes(VLANS // 4, sys.byteorder))
        edits_add(&self.edits, &e)

    def set_groups(self, int32_t port, groups, *, bint all_multicast=False, joined=()):
        cdef Edit e = edit(SET_GROUPS)
        e.port, e.n_groups = self.known(port), len(groups)
        if all_multicast:
            e.all_multicast = (EVERY_GROUP | (JOINED_IPV4 if 4 in joined else 0) | (JOINED_IPV6 if 6 in joined else 0))
        e.groups = <uint64_t *> self.lend(b"".join(as_mac(g).to_bytes(8, sys.byteorder) for g in groups))
        edits_add(&self.edits, &e)

    def set_learning(self, int32_t port, bint learning, *, bint link_local=False):
        cdef Edit e = edit(SET_LEARNING, self.known(port))
        e.learn = LEARN_ALL if learning else LEARN_LINK_LOCAL if link_local else LEARN_NOTHING
        edits_add(&self.edits, &e)

    def set_guards(self, int32_t port, uint32_t guards, *, bint holds=False):
        cdef Edit e = edit(SET_GUARDS, self.known(port))
        if guards >> N_GUARDS:
            raise ValueError(f"there are no guards {guards:#x}")
        e.guards, e.up = guards, holds
        edits_add(&self.edits, &e)

    def set_limits(self, int32_t port, *, rate=(0, 0), packets=(0, 0), uint64_t broadcast=0):
        cdef Edit e = edit(SET_LIMITS, self.known(port))
        e.limits = limits_new(rate, packets, broadcast)
        if port in self.limits:
            self.left.append(self.limits.pop(port))
        if e.limits != NULL:
            self.limits[port] = <size_t> e.limits
        edits_add(&self.edits, &e)

    def reinject(self, int32_t source, bytes frame, int32_t to=-1, *, bint copy=False):
        cdef Edit e = edit(REINJECT)
        if not HEADER <= len(frame) <= HEADER + LONGEST:
            raise ValueError(f"a frame with its header has not {len(frame)} bytes")
        if source < 0 and source not in (FROM_MASTER, FROM_HOST):
            raise ValueError(f"there is no interface {source}")
        e.port, e.length = source if source < 0 else self.known(source), len(frame)
        e.to, e.up = self.known(to) if to >= 0 else -1, copy
        e.frame = <uint8_t *> self.lend(frame)
        edits_add(&self.edits, &e)

    def announce(self, int32_t port, bytes frame):
        cdef Edit e = edit(ANNOUNCE)
        if not HEADER < len(frame) <= HEADER + LONGEST:
            raise ValueError(f"a frame with its header has not {len(frame)} bytes")
        e.port, e.length = self.known(port), len(frame)
        e.frame = <uint8_t *> self.lend(frame)
        edits_add(&self.edits, &e)

    def detach_port(self, int32_t port):
        cdef Edit e = edit(DETACH_PORT, self.known(port))
        edits_add(&self.edits, &e)
        self.numbers.discard(port)
        self.sockets.discard(port)
        self.left += [owned.pop(port) for owned in (self.macnat, self.limits) if port in owned]

    def bind_host(self, bytes address):
        self.bind_to(address, HOST_PORT)

    def bind_gateway(self, bytes address):
        self.bind_to(address, HOST_GATEWAY)

    def bind_former(self, bytes address, int32_t port):
        self.bind_to(address, FORMER_PORT - self.known(port))

    def bind(self, bytes address, int32_t port):
        self.bind_to(address, self.known(port))

    cdef void bind_to(self, bytes address, int32_t owner) except *:
        cdef Edit e = edit(BIND, owner)
        e.address = as_address(address)
        edits_add(&self.edits, &e)

    def bind_all(self, addresses, int32_t port):
        cdef Edit e = edit(BIND, self.known(port))
        cdef bytes address
        for address in addresses:
            e.address = as_address(address)
            edits_add(&self.edits, &e)

    def unbind(self, bytes address):
        cdef Edit e = edit(UNBIND)
        e.address = as_address(address)
        edits_add(&self.edits, &e)

    def attach_host(self, int fd):
        cdef Edit e = edit(ATTACH_HOST)
        e.fd = fd
        edits_add(&self.edits, &e)

    def detach_host(self):
        cdef Edit e = edit(DETACH_HOST)
        edits_add(&self.edits, &e)

    def set_route(self, bytes address, *, bytes mac=bytes(6), bint stack=False, bint local=False, uint32_t mtu=65535):
        cdef Edit e = edit(SET_ROUTE)
        e.address, e.route.mtu = as_address(address), mtu
        if stack:
            e.route.kind = BY_LOCAL_STACK if local else BY_STACK
        else:
            e.route.kind = BY_NEXTHOP if any(mac) else UNREACHABLE
        as_mac(mac)
        memcpy(e.route.mac, PyBytes_AS_STRING(mac), 6)
        edits_add(&self.edits, &e)

    def forget_route(self, bytes address):
        cdef Edit e = edit(FORGET_ROUTE)
        e.address = as_address(address)
        edits_add(&self.edits, &e)

    def clear_routes(self):
        cdef Edit e = edit(CLEAR_ROUTES)
        edits_add(&self.edits, &e)

    def open_capture(self):
        cdef Edit e = edit(SET_CAPTURE)
        e.captures = captures_start(&self.captures, self.n_workers)
        edits_add(&self.edits, &e)
        return self.captures.fd

    def close_capture(self):
        cdef Edit e = edit(SET_CAPTURE)
        edits_add(&self.edits, &e)
        self.captures.closing = True

    def capture(self, port, bint on, uint32_t tag=0):
        cdef Edit e = edit(CAPTURE_INTERFACE, self.source_of(port))
        e.tag, e.up = tag, on
        edits_add(&self.edits, &e)

    def commit(self, bint beat=False):
        cdef Batch batch
        if not (self.edits.length or beat):
            return
        batch.edits = self.edits.edits
        batch.length = self.edits.length
        commit_batch(self.workers, self.n_workers, self.done_fd, &batch, bool(self.threads))
        self.forget_edits()
        self.free_left()
        captures_committed(&self.captures)
        if batch.failures:
            raise OSError(batch.error, f"{os.strerror(batch.error)}: {batch.failures} changes were not made")

    cdef void forget_edits(self):
        """Nor is what they point to needed any more."""
        edits_forget(&self.edits)
        self.keep = []

    cdef void free_left(self):
        cdef size_t place
        for place in self.left:
            free(<void *> place)
        self.left = []

    cdef int *lend_fds(self, fds) except NULL:
        return <int *> self.lend(b"".join(int(fd).to_bytes(sizeof(int), sys.byteorder, signed=True) for fd in fds))

    cdef void *lend(self, bytes raw):
        """Memory that lives until the commit."""
        self.keep.append(raw)
        return <void *> PyBytes_AS_STRING(raw)

    cdef int32_t free_number(self):
        """The lowest unused one, so that arrays stay short."""
        cdef int32_t number = 0 if len(self.numbers) < self.next_number else self.next_number
        while number in self.numbers:
            number += 1
        self.next_number = max(self.next_number, number + 1)
        return number

    cdef int32_t known(self, int32_t port) except -1:
        if port not in self.numbers:
            raise ValueError(f"there is no port {port}")
        return port

    # -------------------------------------------------------------------------------- reports

    def events(self):
        cdef uint64_t value
        eventfd_read(self.notify_fd, &value)
        found = events_taken(self.workers, self.n_workers, self.next_number)
        return [(port, bits) for port, bits in found if port in self.numbers]

    def slow(self):
        return slow_taken(self.workers, self.n_workers)

    def punted(self):
        return punted_taken(self.workers, self.n_workers)

    def give_credit(self, int32_t source):
        give_credit_to(self.workers, self.n_workers, source if source < 0 else self.known(source))

    def used(self, int32_t port, addresses):
        return addresses_used(self.workers, self.n_workers, self.known(port), addresses)

    def used_routes(self):
        return {ip_address(packed) for packed in routes_used(self.workers, self.n_workers)}

    def guards(self, int32_t port):
        bits = guards_of(self.workers, port) if port in self.numbers else 0
        return tuple([name for name, bit in GUARDS.items() if bits & bit])

    def offence(self, int32_t port):
        cdef Offence *offence = offence_of(self.workers, self.n_workers, self.known(port))
        if offence == NULL:
            return None
        address = ip_address(address_of(&offence.address)) if offence.address.family else None
        return OUTCOMES[offence.outcome], offence.mac.to_bytes(6, "little"), address

    def await_offence(self, int32_t port):
        await_offences(self.workers, self.n_workers, self.known(port))

    def own_mac(self, int32_t port):
        cdef size_t place = self.macnat.get(self.known(port), 0)
        return load_u64(<uint64_t *> place).to_bytes(6, "little") if place else None

    def trace(self, port, bytes frame, bytes header=bytes(HEADER)):
        if self.workers == NULL:
            raise ValueError("the datapath is closed")
        if len(frame) > LONGEST or len(header) != HEADER:
            raise ValueError(f"a frame has {LONGEST} bytes at most, not {len(frame)}, and a header {HEADER}")
        if isinstance(port, int) and self.known(port) >= self.workers[0].switch_.n_ports:
            raise ValueError(f"port {port} is not committed yet")
        return traced(self.workers[0], self.source_of(port), header, frame, OUTCOMES)

    def traffic(self, port):
        return traffic_total(self.workers, self.n_workers, self.source_of(port))

    cdef int32_t source_of(self, port) except? -1:
        return FROM_MASTER if port is None else FROM_HOST if port == "host" else self.known(port)

    def ring_starts(self):
        return [self.workers[i].packets.next & (SLOTS - 1) for i in range(self.n_workers)]

    def frames_read(self):
        return frames_read(self.workers, self.n_workers)

    def waiting(self):
        return frames_waiting(self.workers, self.n_workers)
