"""The hot loop's part between a read and a write, run over a recorded batch, for the tests and the benchmark alone.

The ports' descriptors are of the null device: what is written is gone at once, so that what remains is our own code.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from ipvsw.datapath.loop.mailbox cimport BIND, UNBIND, Batch as Mail, Edit, reserve_ports, take_mail
from ipvsw.datapath.loop.forward cimport forward_from_port
from ipvsw.datapath.loop.state cimport Worker
from ipvsw.datapath.kernel.sys cimport clock_gettime, mac48, store_ptr, timespec
from ipvsw.datapath.rules.decide cimport note_stages
from ipvsw.datapath.rules.table cimport table_free, table_init, table_put
from ipvsw.datapath.packet.headers cimport IPV4, Address

import os
from array import array

cdef extern from "time.h" nogil:
    enum: CLOCK_THREAD_CPUTIME_ID

cdef enum:
    KEY = 0x5B5C31F2A97D4E63u  # as good as the random ones of a datapath


cdef class Batch:
    """A worker without a thread. `addresses` are IPv4, as numbers; address k belongs to port k modulo `ports`.
    `guards` are port 0's."""

    cdef Worker *w
    cdef object null

    def __cinit__(self, int mode, int flag, bytes mac, int32_t ports, addresses, uint32_t guards=0):
        cdef Address a
        cdef int32_t k
        self.w = <Worker *> calloc(1, sizeof(Worker))
        self.null = open(os.devnull, "wb", buffering=0)
        if self.w == NULL or not table_init(&self.w.switch_.table, KEY) or not reserve_ports(self.w, ports):
            raise MemoryError
        self.w.workers = 1
        self.w.master_fd = self.w.inject_fd = self.w.host_fd = -1
        self.w.switch_.mode, self.w.switch_.flag = mode, flag
        self.w.switch_.mac = mac48(<const uint8_t *> PyBytes_AS_STRING(mac))
        for k in range(ports):
            self.w.ports[k].fd = self.null.fileno()
            self.w.switch_.rules[k].up = True
            self.w.switch_.rules[k].mtu = 1500
        self.w.switch_.rules[0].guards = guards
        note_stages(&self.w.switch_.rules[0])
        for k, address in enumerate(addresses):
            a = Address(0, address, IPV4)
            if not table_put(&self.w.switch_.table, &a, k % ports):
                raise MemoryError

    def __dealloc__(self):
        if self.w != NULL:
            free(self.w.ports)
            free(self.w.switch_.rules)
            table_free(&self.w.switch_.table)
            free(self.w)

    def carry(self, bytearray frames, uint32_t length, uint32_t times):
        """Forward `frames`, each `length` bytes with its header, all of them `times` times, from port 0. Returns
        how many went to a port."""
        cdef uint32_t count = <uint32_t> (len(frames) // length), i, _n
        cdef uint8_t *batch = <uint8_t *> PyByteArray_AS_STRING(frames)
        for _n in range(times):
            for i in range(count):
                forward_from_port(self.w, 0, batch + i * length, length)
        return self.w.ports[0].traffic.outcomes[0]

    def edit(self, const uint32_t[::1] addresses, size_t together, bint bound):
        """Bind the addresses to port 1, or unbind them, so many in one commit, as a worker does in its rounds. Returns
        for how many ns of CPU time each round's edits held it up."""
        cdef Edit *edits = <Edit *> calloc(together, sizeof(Edit))
        cdef Mail mail
        cdef size_t start = 0, i
        cdef uint64_t before
        if edits == NULL:
            raise MemoryError
        took = array("Q")
        mail.edits = edits
        mail.failures = 0
        mail.done_fd = self.null.fileno()
        while start < <size_t> len(addresses):
            mail.length = min(together, <size_t> len(addresses) - start)
            mail.workers_left = 1
            for i in range(mail.length):
                edits[i].kind = BIND if bound else UNBIND
                edits[i].port = 1
                edits[i].address = Address(0, addresses[start + i], IPV4)
            store_ptr(&self.w.mailbox, &mail)
            while self.w.mailbox != NULL:
                before = cpu_ns()
                take_mail(self.w)
                took.append(cpu_ns() - before)
            start += mail.length
        free(edits)
        assert mail.failures == 0
        return took


cdef uint64_t cpu_ns() noexcept nogil:
    """Of the calling thread."""
    cdef timespec t
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t)
    return <uint64_t> t.tv_sec * 1_000_000_000 + <uint64_t> t.tv_nsec
