"""Frames that a guard stops: held until Python has seen them, or dropped, and now and then one kept for the log.

A port's address may be in use a moment before the switch hears of it. A frame whose one fault is an address that nobody
owns waits like any other punted frame, as long as the port has credit, and is checked once more when it comes back. Of
the frames that are dropped the first is kept for the log, and Python is told; the next only after Python has asked for
one, so that a flood wakes nobody.
"""

from libc.stdint cimport int32_t

from ipvsw.datapath.kernel.sys cimport load_u32, store_u32
from ipvsw.datapath.loop.punt cimport FOR_DHCP, punt
from ipvsw.datapath.loop.state cimport EVENT_GUARD_BIT, OFFENCE_KEPT, OFFENCE_WANTED, Offence, Worker, raise_event
from ipvsw.datapath.packet.headers cimport Frame, frame_source
from ipvsw.datapath.rules.guard cimport UNKNOWN, claimed_address, guard_check
from ipvsw.datapath.rules.outcome cimport NO_OUTCOME


cdef inline bint stopped_by_guard(Worker *w, int32_t port, const Frame *f, bint seen) noexcept nogil:
    """Whether the frame of a port with guards is held or dropped. `seen`: by Python, so that it waits no more."""
    cdef int outcome = guard_check(&w.switch_, port, f)
    if outcome == NO_OUTCOME:
        return False
    if (not seen and outcome & UNKNOWN and w.switch_.rules[port].holds
            and punt(w, &w.ports[port].credit, FOR_DHCP, port, f)):
        return True
    outcome &= ~UNKNOWN
    w.ports[port].traffic.outcomes[outcome] += 1
    note_offence(w, port, outcome, f)
    return True


cdef inline void note_offence(Worker *w, int32_t port, int outcome, const Frame *f) noexcept nogil:
    cdef Offence *offence = &w.ports[port].offence
    if load_u32(&offence.state) != OFFENCE_WANTED:
        return
    offence.outcome = outcome
    offence.mac = frame_source(f)
    offence.address = claimed_address(f)
    store_u32(&offence.state, OFFENCE_KEPT)
    raise_event(w, port, EVENT_GUARD_BIT)
