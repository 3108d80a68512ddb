"""The hot loop's part between a read and a write, run over a recorded batch, for the tests and the benchmark alone.

The ports' descriptors are of the null device: what is written is gone at once, so that what remains is our own code.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free

from ipvsw._rx cimport port_frame
from ipvsw._state cimport Worker, reserve_ports
from ipvsw._sys cimport mac48
from ipvsw._table cimport table_free, table_init, table_put
from ipvsw._wire cimport IPV4, Address

import os

cdef enum:
    KEY = 0x5B5C31F2A97D4E63u  # as good as the random ones of a datapath


cdef class Batch:
    """A worker without a thread. `addresses` are IPv4, as numbers; address k belongs to port k modulo `ports`."""

    cdef Worker *w
    cdef object null

    def __cinit__(self, int mode, int flag, bytes mac, int32_t ports, addresses):
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
        """Carry out `frames`, each `length` bytes with its header, all of them `times` times, from port 0. Returns
        how many went to a port."""
        cdef uint32_t count = <uint32_t> (len(frames) // length), i, _n
        cdef uint8_t *batch = <uint8_t *> PyByteArray_AS_STRING(frames)
        for _n in range(times):
            for i in range(count):
                port_frame(self.w, 0, batch + i * length, length)
        return self.w.ports[0].traffic.outcomes[0]
