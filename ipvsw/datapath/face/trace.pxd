"""What would become of a frame, and why: the stages of loop/forward.pxd, told one by one.

The rules are asked in the order in which a frame meets them, by the functions that the hot loop calls. What those write
(a guard's last source, a limit's bucket, the flows that `host_access` remembers, the MAC address that an endpoint was
seen to use) they write into copies. Nothing is sent, counted or punted. What only a write tells is not known here: that
a device's queue is full, or that it refuses the frame.

The control thread calls this. A worker's rules, table and routes change only by edits that the control thread waits
for, so that they stand still meanwhile.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from ipvsw.datapath.face.convert cimport address_of
from ipvsw.datapath.kernel.busypoll cimport clock_ns
from ipvsw.datapath.kernel.sys cimport VIRTIO_NET_HDR_GSO_NONE, load_i32, load_u64
from ipvsw.datapath.loop.flood cimport group_of_unicast
from ipvsw.datapath.loop.punt cimport (
    FOR_DHCP, MASTER_FOR_DHCP, answers_arp_probe, is_arp_probe, is_dhcp, may_be_control, sender_of,
)
from ipvsw.datapath.loop.state cimport FROM_HOST, FROM_MASTER, HEADER, ROOM, Waiting, Worker
from ipvsw.datapath.packet.headers cimport (
    ETH_P_ARP, ETH_P_IP, Address, Frame, frame_address, frame_destination, frame_header, frame_is_membership_report,
    frame_is_multicast, frame_parse, frame_received, frame_source,
)
from ipvsw.datapath.rules.decide cimport (
    L2, LEARNING, LIMITED, MAC_NAT, REPORTING, PortRule, Switch, Verdict, decide_from_host, decide_from_master,
    decide_from_port, host_hears_group, is_for_vlan_device, port_accepts, port_listens, switches_groups,
)
from ipvsw.datapath.rules.guard cimport UNKNOWN, claimed_address, guard_check, guard_host, is_on
from ipvsw.datapath.rules.hostaccess cimport FLOWS
from ipvsw.datapath.rules.macnat cimport macnat_restore, macnat_rewrite, put_mac
from ipvsw.datapath.rules.ndproxy cimport is_neighbour_query, neighbour_reply
from ipvsw.datapath.rules.outcome cimport (
    ANSWERED, DROP_ERROR, DROP_MULTICAST, DROP_NO_MASTER, DROP_NO_ROUTE, DROP_PORT_DOWN, DROP_RUNT, GUARD_HOST,
    LEFT_TO_HOST, LIMIT_BROADCAST, NO_OUTCOME, TO_HOST, TO_MASTER, TO_PORT, TO_PORTS, TO_ROUTE,
    TO_SLOWPATH, TO_STACK,
)
from ipvsw.datapath.rules.ratelimit cimport RX, TX, Limits, limit_check, limits_direction, may_fan_out
from ipvsw.datapath.rules.routecache cimport (
    BY_LOCAL_STACK, BY_NEXTHOP, UNREACHABLE, Route, route_find, route_rewrite, wire_length,
)
from ipvsw.datapath.rules.table cimport table_find

cdef enum:
    SLACK = 64  # bytes behind a frame: a neighbour advertisement is longer than the query that it takes the place of

cdef struct Trace:
    Worker *w
    Switch s  # the worker's, with rules and flows of its own
    int32_t source
    uint64_t own  # the MAC address that the source's endpoint uses, this frame counted
    uint64_t now
    uint8_t *buffer
    Frame f
    int outcome
    PyObject *steps  # of `traced`
    PyObject *receivers


cdef inline tuple traced(Worker *w, int32_t source, bytes header, bytes frame, tuple names):
    """As `Datapath.trace` gives it. `names` are those of the outcomes."""
    cdef Trace t
    cdef list steps = [], receivers = []
    memset(&t, 0, sizeof(t))
    t.w, t.source, t.now, t.outcome = w, source, clock_ns(), NO_OUTCOME
    t.steps, t.receivers = <PyObject *> steps, <PyObject *> receivers
    try:
        trace_copy(&t, header, frame)
        trace_frame(&t)
    finally:
        free(t.buffer)
        free(t.s.rules)
        free(t.s.flows)
    for _, facts in steps:
        facts["outcome"] = named(facts["outcome"], names)
    return names[t.outcome], steps, receivers


cdef inline object named(int outcome, tuple names):
    return None if outcome == NO_OUTCOME else "to_route" if outcome == TO_ROUTE else names[outcome]


cdef inline int trace_copy(Trace *t, bytes header, bytes frame) except -1:
    """The frame behind its virtio_net_hdr, and what the rules write to."""
    t.buffer = <uint8_t *> calloc(1, ROOM + HEADER + len(frame) + SLACK)
    t.s = t.w.switch_
    t.s.rules = <PortRule *> malloc((t.s.n_ports + 1) * sizeof(PortRule))
    t.s.flows = <uint64_t *> malloc(FLOWS * sizeof(uint64_t))
    if t.buffer == NULL or t.s.rules == NULL or t.s.flows == NULL:
        raise MemoryError
    memcpy(t.buffer + ROOM, PyBytes_AS_STRING(header), HEADER)
    memcpy(t.buffer + ROOM + HEADER, PyBytes_AS_STRING(frame), len(frame))
    memcpy(t.s.rules, t.w.switch_.rules, t.s.n_ports * sizeof(PortRule))
    memcpy(t.s.flows, t.w.switch_.flows, FLOWS * sizeof(uint64_t))
    if t.source >= 0:
        t.s.rules[t.source].source_at = 0  # the worker may be writing it
        if t.s.rules[t.source].own != NULL:
            t.own = load_u64(t.s.rules[t.source].own)
    t.f.data, t.f.length = t.buffer + ROOM + HEADER, <uint32_t> len(frame)
    return 0


cdef inline int trace_frame(Trace *t) except -1:
    if not frame_parse(&t.f, t.f.data, t.f.length):  # 1
        return tell(t, "parse", DROP_RUNT, {"length": t.f.length})
    tell(t, "parse", NO_OUTCOME, parsed(t))
    if t.source >= 0:
        return trace_from_port(t)
    if t.s.mode == L2:
        if is_dhcp(&t.f, True):  # 4
            tell_punt(t, "dhcp", load_i32(&t.w.credit) > 0)
        elif answers_arp_probe(&t.f, t.s.mac):
            tell_punt(t, "arp-probe-reply", load_i32(&t.w.credit) > MASTER_FOR_DHCP)
    return trace_verdict(  # 6
        t, decide_from_host(&t.s, &t.f) if t.source == FROM_HOST else decide_from_master(&t.s, &t.f))


cdef inline int tell(Trace *t, str stage, int outcome, dict facts) except -1:
    """`outcome` is NO_OUTCOME where the frame goes on."""
    t.outcome = outcome
    facts["outcome"] = outcome
    (<list> t.steps).append((stage, facts))
    return 0


cdef inline dict parsed(Trace *t):
    """With the addresses as the rules see them: of a frame that was received, behind one VLAN tag."""
    cdef Frame seen = t.f if t.source >= 0 else frame_received(&t.f)
    cdef Address source = frame_address(&seen, True)
    cdef Address destination = frame_address(&seen, False)
    return {
        "length": t.f.length,
        "mac_destination": mac_bytes(frame_destination(&t.f)),
        "mac_source": mac_bytes(frame_source(&t.f)),
        "ethertype": seen.ethertype,
        "source": address_or_none(&source),
        "destination": address_or_none(&destination),
    }


cdef inline bytes mac_bytes(uint64_t mac):
    return mac.to_bytes(6, "little")


cdef inline object address_or_none(const Address *a):
    return address_of(a) if a.family else None


# -------------------------------------------------------------------------------- a port's frame


cdef inline int trace_from_port(Trace *t) except -1:
    cdef PortRule *rule = &t.s.rules[t.source]
    if rule.extra_stages & MAC_NAT:  # 2
        trace_macnat(t)
    if t.outcome == NO_OUTCOME and rule.guards:  # 3
        trace_guard(t, rule)
    if t.outcome == NO_OUTCOME and rule.extra_stages & LIMITED:
        trace_limit(t, t.source, RX)
    if t.outcome != NO_OUTCOME:
        return 0
    trace_punt(t, rule)  # 4
    if t.s.mode != L2 and rule.own != NULL and is_neighbour_query(&t.f):  # 5
        return trace_query(t)
    return trace_verdict(t, decide_from_port(&t.s, &t.f, is_gso(t)))  # 6


cdef inline bint is_gso(const Trace *t) noexcept:
    return frame_header(&t.f).gso_type != VIRTIO_NET_HDR_GSO_NONE


cdef inline int trace_macnat(Trace *t) except -1:
    cdef int outcome = macnat_rewrite(&t.own, t.s.mac, frame_header(&t.f), &t.f)
    return tell(t, "macnat", outcome, {"own": mac_bytes(t.own), "master": mac_bytes(t.s.mac)})


cdef inline int trace_guard(Trace *t, const PortRule *rule) except -1:
    """One that waits is checked once more when Python has seen it; that is as the table is now."""
    cdef int outcome = guard_check(&t.s, t.source, &t.f)
    cdef Address claimed = claimed_address(&t.f)
    cdef bint waits = (outcome != NO_OUTCOME and outcome & UNKNOWN and rule.holds
                       and load_i32(&t.w.ports[t.source].credit) > FOR_DHCP)
    return tell(t, "guard", outcome & ~UNKNOWN if outcome != NO_OUTCOME else NO_OUTCOME, {
        "waits": bool(waits), "claimed": address_or_none(&claimed),
        "owner": table_find(&t.s.table, &claimed) if claimed.family else None,
    })


cdef inline int trace_limit(Trace *t, int32_t port, int direction) except -1:
    """As much as is left at this moment."""
    cdef Limits limits = t.w.ports[port].limits[0]
    cdef int outcome = limit_check(&limits, direction, t.f.data - HEADER, t.f.length + HEADER, t.now)
    return tell(t, "limit", outcome, {"port": port, "direction": "rx" if direction == RX else "tx"})


cdef inline int trace_punt(Trace *t, const PortRule *rule) except -1:
    cdef int32_t credit = load_i32(&t.w.ports[t.source].credit)
    cdef Address sender = sender_of(&t.f)
    if (rule.extra_stages & LEARNING and sender.family and (sender.hi or sender.lo)
            and table_find(&t.s.table, &sender) != t.source):
        return tell_punt(t, "new-address", credit > FOR_DHCP)
    if rule.extra_stages & REPORTING and switches_groups(&t.s) and frame_is_multicast(&t.f) and (
            frame_is_membership_report(&t.f)):
        return tell_punt(t, "report", credit > FOR_DHCP)
    if t.s.mode != L2 or not may_be_control(&t.f):
        return 0
    if is_dhcp(&t.f, False):
        return tell_punt(t, "dhcp", credit > 0)
    if t.f.ethertype == ETH_P_ARP and is_arp_probe(&t.f):
        return tell_punt(t, "arp-probe", credit > FOR_DHCP)
    if answers_arp_probe(&t.f, t.s.mac):
        return tell_punt(t, "arp-probe-reply", credit > FOR_DHCP)
    return 0


cdef inline int tell_punt(Trace *t, str why, bint waits) except -1:
    """`waits`: the interface has credit for it."""
    return tell(t, "punt", NO_OUTCOME, {"why": why, "waits": bool(waits)})


cdef inline int trace_query(Trace *t) except -1:
    cdef uint32_t length = neighbour_reply(&t.s, t.source, &t.f)
    if length == 0:
        return tell(t, "neighbour", DROP_MULTICAST, {})
    tell(t, "neighbour", ANSWERED, {})
    t.f.length = length
    macnat_restore(&t.own, t.s.mac, True, t.f.data, length)
    return receive(t, t.source)


# -------------------------------------------------------------------------------- dispatch


cdef inline int trace_verdict(Trace *t, Verdict v) except -1:
    tell(t, "decide", v.outcome, decided(t, v))
    if v.outcome == TO_PORT:
        return trace_to_port(t, v.port)
    if v.outcome == TO_PORTS:
        return trace_to_ports(t)
    if v.outcome == TO_MASTER:
        return trace_to_master(t)
    if v.outcome == TO_HOST:
        return trace_to_host(t)
    if v.outcome == TO_ROUTE:
        return trace_route(t)
    return receive(t, "host") if v.outcome == LEFT_TO_HOST else 0


cdef inline dict decided(Trace *t, Verdict v):
    """What the rules look at: whose the destination is, and which MAC addresses are the master's."""
    cdef Frame seen = t.f if t.source >= 0 else frame_received(&t.f)
    cdef Address a = frame_address(&seen, False)
    return {
        "port": v.port,
        "destination": address_or_none(&a),
        "owner": table_find(&t.s.table, &a) if a.family else None,
        "multicast": bool(frame_is_multicast(&t.f)),
        "to_master": frame_destination(&t.f) == t.s.mac,
        "from_master": frame_source(&t.f) == t.s.mac,
        "to_itself": frame_destination(&t.f) == frame_source(&t.f),
        "vlan_device": bool(is_for_vlan_device(&t.s, &t.f)),
    }


cdef inline int receive(Trace *t, who) except -1:
    (<list> t.receivers).append((who, (<const char *> t.f.data)[:t.f.length]))
    return 0


cdef inline int trace_to_port(Trace *t, int32_t port) except -1:
    restore_own(t, port)
    if t.w.ports[port].limits != NULL and limits_direction(t.w.ports[port].limits, TX):
        trace_limit(t, port, TX)
        if t.outcome != NO_OUTCOME:
            return 0
    if t.w.ports[port].fd < 0:
        return tell(t, "deliver", DROP_PORT_DOWN, {"port": port})
    tell(t, "deliver", TO_PORT, {"port": port})
    return receive(t, port)


cdef inline int restore_own(Trace *t, int32_t port) except -1:
    cdef uint64_t own
    if t.s.rules[port].own == NULL:
        return 0
    own = t.own if port == t.source else load_u64(t.s.rules[port].own)
    macnat_restore(&own, t.s.mac, t.s.mode != L2, t.f.data, t.f.length)
    return tell(t, "restore", NO_OUTCOME, {"port": port, "own": mac_bytes(own)})


cdef inline int trace_to_ports(Trace *t) except -1:
    """To those that listen, and from a port also on the wire. A copy that is too long, or for a port that may get no
    more, is lost alone."""
    cdef Limits limits
    cdef Waiting entry = Waiting(t.f.data - HEADER, t.f.length + HEADER, t.source, 0)
    cdef uint64_t group = frame_destination(&t.f) if frame_is_multicast(&t.f) else group_of_unicast(&entry)
    cdef int32_t port
    if t.source >= 0 and t.w.ports[t.source].limits != NULL:
        limits = t.w.ports[t.source].limits[0]
        if not may_fan_out(&limits, t.f.data - HEADER, t.f.length + HEADER, t.now):
            return tell(t, "limit", LIMIT_BROADCAST, {"port": t.source, "direction": "rx"})
    for port in range(t.s.n_ports):
        if port != t.source and port_listens(&t.s.rules[port], group):
            trace_copy_to(t, port)
    if t.source == FROM_MASTER or (t.source >= 0 and host_hears_group(&t.s, &t.f) and t.w.inject_fd >= 0):
        receive(t, "host")
    if t.source >= 0 and t.w.master_fd >= 0:
        if t.s.mode != L2:
            put_mac(t.f.data + 6, t.s.mac)
        receive(t, "wire")
    return tell(t, "flood", TO_PORTS, {"group": mac_bytes(group)})


cdef inline int trace_copy_to(Trace *t, int32_t port) except -1:
    cdef Limits limits
    cdef Frame whole = t.f
    cdef bytes kept = (<const char *> t.f.data)[:t.f.length]
    cdef uint64_t own
    if t.source != FROM_MASTER and not port_accepts(&t.s.rules[port], t.f.length, is_gso(t)):
        return 0
    if t.w.ports[port].limits != NULL and limits_direction(t.w.ports[port].limits, TX):
        limits = t.w.ports[port].limits[0]
        if limit_check(&limits, TX, t.f.data - HEADER, t.f.length + HEADER, t.now) != NO_OUTCOME:
            return 0
    if t.s.rules[port].own != NULL:
        own = load_u64(t.s.rules[port].own)
        macnat_restore(&own, t.s.mac, t.s.mode != L2, t.f.data, t.f.length)
    receive(t, port)
    memcpy(whole.data, PyBytes_AS_STRING(kept), whole.length)
    return 0


cdef inline int trace_to_master(Trace *t) except -1:
    if t.w.master_fd < 0:
        return tell(t, "send", DROP_NO_MASTER, {})
    tell(t, "send", TO_MASTER, {})
    return receive(t, "wire")


cdef inline int trace_to_host(Trace *t) except -1:
    cdef bint by_host_port = t.s.mode != L2 and not frame_is_multicast(&t.f)
    if t.source >= 0 and t.s.rules[t.source].guards and guard_host(&t.s, t.source, &t.f):
        return tell(t, "guard", GUARD_HOST, {"waits": False, "claimed": None, "owner": None})
    if (t.w.host_fd if by_host_port else t.w.inject_fd) < 0:
        return tell(t, "send", DROP_NO_MASTER, {})
    tell(t, "send", TO_HOST, {})
    return receive(t, "host")


cdef inline int trace_route(Trace *t) except -1:
    """What the cache doesn't have is the router's to ask: TO_SLOWPATH."""
    cdef Route *route = route_find(&t.w.routes, &t.f)
    if route == NULL:
        return tell(t, "route", TO_SLOWPATH, {"cached": False})
    facts = {"cached": True, "mtu": route.mtu, "mac": (<const char *> route.mac)[:6], "local": False}
    if route.kind == UNREACHABLE:
        return tell(t, "route", DROP_NO_ROUTE, facts)
    if wire_length(&t.f, frame_header(&t.f)) > route.mtu:
        return tell(t, "route", TO_SLOWPATH, facts)
    if route.kind == BY_NEXTHOP:
        route_rewrite(&t.f, route, t.s.mac)
        tell(t, "route", NO_OUTCOME, facts)
        return trace_to_master(t)
    facts["local"] = route.kind == BY_LOCAL_STACK
    if route.kind == BY_LOCAL_STACK and is_on(t.s.rules[t.source].guards, GUARD_HOST):
        return tell(t, "route", GUARD_HOST, facts)
    if t.w.stack_fds[0 if t.f.ethertype == ETH_P_IP else 1] < 0:
        return tell(t, "route", DROP_ERROR, facts)
    tell(t, "route", TO_STACK, facts)
    return receive(t, "stack")
