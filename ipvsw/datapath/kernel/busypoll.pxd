"""Adaptive busy polling: an idle worker polls for a moment before it sleeps, if short waits have been frequent.

Waking a thread on another CPU takes tens of microseconds, most of a round trip. A worker that was woken a few times in
a row soon after it went to sleep polls instead, for at most the budget. It stops as soon as waits get longer, so that
an idle or evenly paced switch costs nothing. It yields the CPU at every turn, and if another thread took it, polls no
more for a while. With one CPU, polling only keeps the sender from running: there the budget is 0.
"""

from libc.stdint cimport uint32_t, uint64_t

from ipvsw.datapath.kernel.sys cimport CLOCK_MONOTONIC, clock_gettime, sched_yield, timespec

cdef enum:
    SOON = 100_000  # ns: a wait short enough for polling to pay, the wake-up included
    EARNED = 4  # such waits in a row
    DISTURBED = 20_000  # ns between two readings of the clock: another thread ran
    REST = 16  # times as long the worker does not poll after that

cdef struct BusyPoll:
    uint64_t budget  # ns; 0: never
    uint32_t earned
    uint64_t rest_until


cdef inline uint64_t clock_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t> t.tv_sec * 1_000_000_000 + <uint64_t> t.tv_nsec


cdef inline bint busypoll_pays(const BusyPoll *s, uint64_t now) noexcept nogil:
    return s.earned >= EARNED and now >= s.rest_until


cdef inline bint busypoll_on(BusyPoll *s, uint64_t start, uint64_t *now) noexcept nogil:
    """Yield the CPU, then whether to poll again. `now`: when the worker polled last; set to the current time."""
    cdef uint64_t before = now[0]
    sched_yield()
    now[0] = clock_ns()
    if now[0] - before > DISTURBED:
        s.rest_until = now[0] + REST * (now[0] - before)
        return False
    return now[0] - start < s.budget


cdef inline void busypoll_learn(BusyPoll *s, uint64_t waited) noexcept nogil:
    s.earned = min(s.earned + 1, 2 * EARNED) if waited < SOON else 0
