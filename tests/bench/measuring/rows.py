"""What is compared with what, and what is wanted of it. README.md explains the rows in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from tests.bench.places.places import CROWDS, FANS, LIMITED, TABLES

PACED = 100_000  # frames a second
HOST_PERCENT = 1.0  # of a CPU: what the daemon may use while the host alone talks


@dataclass(frozen=True)
class Sample:
    """One measurement: the figures that `measure` (see run.MEASURES) finds on `path` (its place is its first word)."""

    path: str
    measure: str
    args: tuple[float | str, ...] = ()
    once: bool = False  # not in every round: it takes long, or what it finds doesn't change
    last: bool = False  # after everything else of its stage: it leaves its place another


@dataclass(frozen=True)
class Wanted:
    """What must be, and what would be better."""

    sense: str  # ">=" or "<="
    least: float
    aim: float | None = None

    def met(self, value: float) -> bool:
        return value >= self.least if self.sense == ">=" else value <= self.least

    def __str__(self) -> str:
        return f"{self.sense} {self.least:g}" + (f", aim {self.aim:g}" if self.aim is not None else "")


@dataclass(frozen=True)
class Row:
    """The figure `figure` of one sample, divided by that of another taken in the same round; or by itself."""

    id: str
    what: str
    unit: str
    figure: str
    ours: Sample
    beside: str = ""  # what the other is, in words
    theirs: Sample | None = None
    wanted: Wanted | None = None
    stage: str = "pairs"  # what is alive at the same time


def at_least(least: float, aim: float | None = None) -> Wanted:
    return Wanted(">=", least, aim)


def at_most(least: float, aim: float | None = None) -> Wanted:
    return Wanted("<=", least, aim)


# ---------------------------------------------------------------------------- two ends


def streams() -> Iterator[Row]:
    def row(row_id: str, what: str, ours: str, beside: str, theirs: str, wanted: Wanted | None, mtu: int = 1500) -> Row:
        samples = (Sample(path, "tcp", (mtu,)) for path in (ours, theirs))
        return Row(row_id, f"TCP, {what}, MTU {mtu}", "Gbit/s", "gbit", next(samples), beside, next(samples), wanted)

    def between(row_id: str, beside: str, theirs: str, wanted: Wanted | None, mtu: int = 1500) -> Row:
        return row(row_id, "port to port", "ipvsw", beside, theirs, wanted, mtu)

    yield between("T1", "veth + bridge", "bridge", at_least(0.80, 0.95))
    yield between("T2", "macvlan bridge", "macvlan", at_least(0.72, 0.85))
    yield between("T3", "OVS netdev, TSO", "ovs-tso", at_least(1.0, 1.15))
    yield between("T4-ovs", "OVS netdev", "ovs", at_least(6, 8))
    yield between("T4-vde", "VDE", "vde", at_least(8))
    yield between("T-loop", "C read and write", "loop", None)
    yield between("T1-9000", "veth + bridge", "bridge", None, 9000)
    yield between("T2-9000", "macvlan bridge", "macvlan", None, 9000)
    yield between("T3-9000", "OVS netdev, TSO", "ovs-tso", None, 9000)
    for way, words in (("out", "port to wire"), ("in", "wire to port")):
        yield row(f"M1-{way}", words, f"ipvsw {way}", "port to port", "ipvsw", at_least(0.95))
        yield row(f"M5-{way}", words, f"ipvsw {way}", "macvlan", f"macvlan {way}", at_least(0.75))
        yield row(f"M5-{way}-9000", words, f"ipvsw {way}", "macvlan", f"macvlan {way}", None, 9000)
    yield row("R1", "port to wire, mode l3", "routed out", "macvlan", "macvlan out", at_least(0.60))
    yield row("R3", "port to wire, mode l3s", "l3s out", "wire to port", "l3s in", None)
    with_it, without = (Sample("captured", "tcp_beside", (PACED, how)) for how in ("yes", "no"))
    what = f"TCP, port to port, beside {PACED // 1000} kpps that are captured"
    yield Row("Y1", what, "Gbit/s", "gbit", with_it, "not captured", without, at_least(0.90))
    what = f"share of {PACED // 1000} kpps that a capture misses, beside TCP flat out"
    yield Row("Y1-lost", what, "", "lost_share", with_it)
    yield row("O1", "beside a port of kind stream", "beside-stream", "without that port", "ipvsw", at_least(0.97))
    yield row("O2", "two processes, each on a socket", "stream", "VDE, vde_plug2tap", "vde-plugs", at_least(3))
    yield row("O3", "port to a process on a socket", "stream to", "VDE, vde_plug2tap", "vde-plugs", None)
    for way, words in (("out", "host to wire"), ("in", "wire to host")):
        yield row(f"H1-{way}", words, f"host {way}", "no daemon", f"bare-host {way}", at_least(0.97))
        mine = Sample(f"host {way}", "tcp", (1500,))
        yield Row(
            f"H2-{way}", f"the daemon's CPU, TCP {words}", "%", "daemon_percent", mine, wanted=at_most(HOST_PERCENT)
        )


def tunnels() -> Iterator[Row]:
    for way, words in (("out", "port to wire"), ("in", "wire to port")):
        for row_id, device in (("X1", "tap"), ("X2", "veth")):
            mine, theirs = (Sample(f"vxlan {kind} {way}", "tcp", (1450,)) for kind in (device, "macvlan"))
            what = f"TCP through VXLAN, {words}, device {device}"
            yield Row(f"{row_id}-{way}", what, "Gbit/s", "gbit", mine, "macvlan bridge", theirs, at_least(0.80))


def datagrams() -> Iterator[Row]:
    gso = (Sample("ipvsw", "gso"), Sample("veth", "gso"))
    yield Row("T8", "UDP, 1448 bytes by GSO", "Gbit/s", "gbit", gso[0], "a veth pair", gso[1], at_least(0.60, 0.75))
    flat = {path: Sample(path, "frames") for path in ("ipvsw", "bridge", "macvlan", "ovs-tso", "vde", "loop")}
    for row_id, beside, path, wanted in (
        ("P1", "veth + bridge", "bridge", at_least(1.2, 1.4)),
        ("P2", "macvlan bridge", "macvlan", at_least(0.75, 0.95)),
        ("P3", "OVS netdev", "ovs-tso", at_least(1.6)),
        ("P4", "VDE", "vde", at_least(1.3, 1.5)),
        ("P-loop", "C read and write", "loop", None),
    ):
        yield Row(row_id, "60-byte frames, flat out", "kpps", "kpps", flat["ipvsw"], beside, flat[path], wanted)
    long = {path: Sample(path, "frames", (1442,)) for path in ("ipvsw", "bridge", "macvlan")}
    for row_id, beside, path in (("U1", "veth + bridge", "bridge"), ("U2", "macvlan bridge", "macvlan")):
        yield Row(row_id, "UDP, 1400 bytes, flat out", "kpps", "kpps", long["ipvsw"], beside, long[path])
    read = (Sample("ipvsw in", "flow"), Sample("macvlan in", "flow"))
    what = "UDP, 1400 bytes, wire to port, as an application gets it"
    yield Row("U3", what, "Gbit/s", "gbit", read[0], "macvlan bridge", read[1])
    cut = [Sample(path, "gso", (1400,)) for path in ("ipvsw in", "apart in", "macvlan in")]
    what = "UDP, 1400 bytes, cut by the wire's card, wire to port"
    yield Row("U4", what, "Gbit/s", "gbit", cut[0], "coalesce = false", cut[1], at_least(1.5))
    yield Row("U5", what, "Gbit/s", "gbit", cut[0], "macvlan bridge", cut[2])
    for row_id, words, path, wanted in (
        ("M2", "port to wire", "ipvsw out", at_least(0.90)),
        ("M3", "wire to port", "apart in", at_least(1.25)),
    ):
        mine = Sample(path, "frames")
        yield Row(row_id, f"60-byte frames, {words}", "kpps", "kpps", mine, "port to port", flat["ipvsw"], wanted)
    two, one = Sample("workers2", "together"), Sample("workers1", "together")
    yield Row("W1", "60-byte frames, two pairs at once, 2 workers", "kpps", "kpps", two, "1 worker", one, at_least(1.0))
    order = Sample("workers2", "ordered")
    yield Row("W2", "reordered frames of two flows, 2 workers", "frames", "reordered", order, wanted=at_most(0))
    wide = Sample("queues2", "together")
    yield Row("W3", "the same as W1, each port with 2 queues", "kpps", "kpps", wide, "1 worker", one)
    order = Sample("queues2", "ordered")
    yield Row("W4", "the same as W2, each port with 2 queues", "frames", "reordered", order, wanted=at_most(0))


def costs() -> Iterator[Row]:
    for name, size in (("60-byte frames", 60), ("UDP, 1400 bytes", 1442)):
        mine, loop, bridge, ovs = (
            Sample(path, "frames", (size, PACED)) for path in ("ipvsw", "loop", "bridge", "ovs-tso")
        )
        suffix = "" if size == 60 else "-1400"
        rate = f"{name}, {PACED // 1000} kpps"
        wanted = at_most(1.10, 0.95) if size == 60 else None
        what = f"CPU of the machine for each frame, {rate}"
        yield Row(f"C1{suffix}", what, "us", "system_us", mine, "veth + bridge", bridge, wanted)
        if size == 60:
            yield Row("C2", what, "us", "system_us", mine, "OVS netdev", ovs, at_most(0.70, 0.60))
        what = f"CPU of the daemon for each frame, {rate}"
        yield Row(f"C-loop{suffix}", what, "ns", "daemon_ns", mine, "C read and write", loop, at_most(1.25))
    stream = (Sample("ipvsw", "tcp", (1500,)), Sample("loop", "tcp", (1500,)))
    what = "CPU of the daemon for each GB of TCP, MTU 1500"
    yield Row("C3", what, "s", "daemon_s_per_gb", stream[0], "C read and write", stream[1])
    flat = (Sample("ipvsw", "frames"), Sample("loop", "frames"))
    what = "CPU of the daemon for each frame, 60 bytes, flat out"
    yield Row("C-flat", what, "ns", "daemon_ns", flat[0], "C read and write", flat[1], at_most(1.25))
    far, near = Sample("routed far", "frames", (60, PACED, 10_000)), Sample("routed far", "frames", (60, PACED))
    what = f"CPU of the daemon for each frame, mode l3, 10000 destinations, {PACED // 1000} kpps"
    yield Row("R2", what, "ns", "daemon_ns", far, "one destination", near, at_most(1.20))
    mine = Sample("ipvsw", "instructions", once=True)
    yield Row("C4", "instructions for each 64-byte unicast frame", "", "instructions", mine, wanted=at_most(250, 150))


def fast_path() -> Iterator[Row]:
    """Ports that are veths beside the kernel's own driver of the kind, and beside ports that are TAPs."""

    def beside(row_id: str, what: str, unit: str, figure: str, way: str, wanted: Wanted, *measure: Any) -> Row:
        mine, other = (Sample(path + way, measure[0], measure[1:]) for path in ("fast", "macvlan"))
        words = {"": "port to port", " out": "port to wire", " in": "wire to port"}[way]
        return Row(
            row_id + way.replace(" ", "-"), f"{what}, veths, {words}", unit, figure, mine, "macvlan", other, wanted
        )

    flat = {"": at_least(0.80, 0.88), " out": at_least(0.78, 0.83), " in": at_least(0.88, 0.93)}
    for way, wanted in flat.items():
        yield beside("K1", "TCP, MTU 1500", "Gbit/s", "gbit", way, at_least(0.92, 1.0), "tcp", 1500)
        what = "CPU of the machine for each GB of TCP"
        yield beside("K2", what, "s", "system_s_per_gb", way, at_most(1.12, 1.0), "tcp", 1500)
        what = "TCP request and response, all on one CPU, p50"
        yield beside("K3", what, "us", "p50_us", way, at_most(1.12, 1.06), "rr", "one")
        yield beside("K4", "60-byte frames, flat out", "kpps", "kpps", way, wanted, "frames")
    paced = [Sample(path, "frames", (60, PACED)) for path in ("fast", "ipvsw")]
    what = f"CPU of the machine for each frame, veths, {PACED // 1000} kpps"
    yield Row("K5", what, "us", "system_us", paced[0], "TAPs", paced[1], at_most(0.72, 0.65))
    stream = Sample("fast", "tcp", (1500,))
    what = "the daemon's CPU while the kernel forwards TCP between veths"
    yield Row("K6", what, "%", "daemon_percent", stream, wanted=at_most(0.5, 0.1))


def guards() -> Iterator[Row]:
    """Two ports with all guards beside two without; a pair of ports beside one that sends twice what it may."""
    for row_id, what, unit, figure, measure, args in (
        ("G1", "TCP, port to port, all guards, MTU 1500", "Gbit/s", "gbit", "tcp", (1500,)),
        ("G2", "60-byte frames, flat out, all guards", "kpps", "kpps", "frames", ()),
    ):
        mine, other = Sample("guarded", measure, args), Sample("ipvsw", measure, args)
        yield Row(row_id, what, unit, figure, mine, "no guard", other, at_least(0.95))
    mine = Sample("ipvsw", "instructions", once=True)
    yield Row("G3", "the same as C4: more with all guards", "", "guards", mine, wanted=at_most(60))
    calm = Sample("limited", "rr", ("one",))
    for row_id, burst, wanted in (("G-p99", 1, at_most(1.5)), ("G-p99-bursts", 32, None)):
        words = "one by one" if burst == 1 else f"in bursts of {burst}"
        what = f"TCP request and response, p99, beside a port at its limit, {2 * LIMITED // 1000} kpps {words}"
        busy = Sample("limited", "rr_beside", (burst, 2 * LIMITED))
        yield Row(row_id, what, "us", "p99_us", busy, "an idle one", calm, wanted)


def backends() -> Iterator[Row]:
    """An io_uring, where the kernel grants one, beside epoll. (Where it doesn't, both are the same.)"""
    for row_id, what, unit, figure, measure, args in (
        ("I-tcp", "TCP, port to port, MTU 1500", "Gbit/s", "gbit", "tcp", (1500,)),
        ("I-flat", "60-byte frames, flat out", "kpps", "kpps", "frames", ()),
        ("I-cpu", "CPU of the daemon for each frame, 100 kpps", "ns", "daemon_ns", "frames", (60, PACED)),
        ("I-rr", "TCP request and response, all on one CPU, p50", "us", "p50_us", "rr", ("one",)),
    ):
        mine, other = Sample("ipvsw", measure, args), Sample("epoll", measure, args)
        yield Row(row_id, what, unit, figure, mine, "io = epoll", other)


def round_trips() -> Iterator[Row]:
    def row(row_id: str, where: str, ours: str, beside: str, theirs: str, wanted: Wanted | None) -> Row:
        what = {"one": "all on one CPU", "apart": "on two CPUs"}[where]
        samples = (Sample(path, "rr", (where,)) for path in (ours, theirs))
        figure = "p99_us" if row_id == "L2" else "p50_us"
        what = f"TCP request and response, {what}, {figure[:3]}"
        return Row(row_id, what, "us", figure, next(samples), beside, next(samples), wanted)

    yield row("L1", "one", "ipvsw", "veth + bridge", "bridge", at_most(1.55, 1.40))
    yield row("L2", "one", "ipvsw", "veth + bridge", "bridge", at_most(2.0, 1.6))
    yield row("L-loop", "one", "ipvsw", "C read and write", "loop", None)
    yield row("L3", "apart", "ipvsw", "veth + bridge", "bridge", at_most(0.75, 0.65))
    yield row("M4", "one", "ipvsw out", "port to port", "ipvsw", at_most(1.10, 1.05))
    echo = (Sample("ipvsw", "ping"), Sample("bridge", "ping"))
    yield Row("L-ping", "ping, all on one CPU, p50", "us", "p50_us", echo[0], "veth + bridge", echo[1])


# ---------------------------------------------------------------------------- many


def fans() -> Iterator[Row]:
    """The same number of copies a second, whatever the number of ports."""
    for n in FANS:
        mine, other = (Sample(f"{place}{n}", "frames", (60, PACED / n)) for place in ("fan", "bridge-fan"))
        what = f"CPU of the machine for each copy of a broadcast to {n} port{'s' * (n > 1)}"
        yield Row(f"F{n}", what, "us", "system_us", mine, "veth + bridge", other, stage="fans")


def crowds() -> Iterator[Row]:
    for n, wanted in zip(CROWDS, (at_least(0.98), at_least(0.95)), strict=True):
        stage, place = f"crowd{n}", f"crowd{n}"
        pair = (Sample(place, "frames"), Sample("ipvsw", "frames"))
        what = f"60-byte frames, flat out, {n} idle ports"
        yield Row(f"S1-{n}", what, "kpps", "kpps", pair[0], "2 ports", pair[1], wanted, stage)
        what = f"CPU of the daemon for each of these frames, {n} idle ports"
        yield Row(f"S1-{n}-cpu", what, "ns", "daemon_ns", pair[0], "2 ports", pair[1], stage=stage)
        facts, removed = Sample(place, "facts", once=True), Sample(place, "remove_all", once=True, last=True)
        yield Row(f"S3-{n}", f"adding {n} ports, for each", "ms", "add_ms", facts, stage=stage)
        gone = at_most(10, 2) if n == 4096 else None
        yield Row(f"S4-{n}", f"removing {n} ports", "s", "seconds", removed, wanted=gone, stage=stage)
        memory = at_most(16, 4)
        yield Row(f"S5-{n}", f"memory for each of {n} idle ports", "KiB", "port_kb", facts, wanted=memory, stage=stage)
        quiet = Sample(place, "idle", once=True)
        idle = at_most(0.1)
        yield Row(
            f"L5-{n}", f"CPU of the idle daemon, {n} ports", "%", "daemon_percent", quiet, wanted=idle, stage=stage
        )
    place = f"crowd{CROWDS[0]}"
    storm, calm = Sample(place, "rr_under_broadcast"), Sample(place, "rr", ("one",))
    what = f"TCP request and response, p99, 100 broadcasts a second to {CROWDS[0]} ports"
    yield Row("S8", what, "us", "p99_us", storm, "no broadcast", calm, at_most(1.5), place)
    yield Row("S8-999", what.replace("p99", "p99.9"), "us", "p999_us", storm, "no broadcast", calm, stage=place)
    single = Sample("ipvsw", "add_and_delete", once=True)
    yield Row("S3", "adding a port, until it is up", "ms", "add_ms", single, wanted=at_most(2, 0.5))
    yield Row("S3-delete", "deleting a port, until its device is gone", "ms", "delete_ms", single)
    address = Sample("ipvsw", "learn_address", once=True)
    what = "an address added in a namespace, until the switch has it, the longest of ten"
    yield Row("A1", what, "ms", "known_ms", address, wanted=at_most(100))


def tables() -> Iterator[Row]:
    few = Sample(f"table{TABLES[0]}", "scattered", (2,))
    limits = {100_000: at_least(0.95, 0.98), 1_000_000: at_least(0.90, 0.95)}
    for n in TABLES:
        mine = Sample(f"table{n}", "scattered", (n,))
        what = f"60-byte frames, flat out, to {n} addresses by turns"
        yield Row(f"S2-{n}", what, "kpps", "kpps", mine, "2 addresses", few, limits.get(n), "tables")
        what = f"CPU of the datapath for each of these frames, {n} addresses"
        yield Row(f"S2-{n}-cpu", what, "ns", "daemon_ns", mine, "2 addresses", few, stage="tables")
    most = TABLES[-1]
    for family, place in (("IPv4", f"table{most}"), ("IPv6", f"table6-{most}")):
        facts = Sample(place, "facts", once=True)
        suffix = "" if family == "IPv4" else "-v6"
        memory, load = at_most(128, 64), at_most(1.5)
        yield Row(
            f"S6{suffix}", f"memory for each of {most} {family} addresses", "bytes", "address_bytes", facts,
            wanted=memory, stage="tables",
        )  # fmt: skip
        yield Row(
            f"S7{suffix}", f"loading {most} {family} addresses into the table", "s", "load_s", facts, wanted=load,
            stage="tables",
        )  # fmt: skip
    change = Sample(f"table{most}", "edits", (most,))
    under = f"beside {PACED // 1000} kpps, {most} addresses"
    for row_id, what, unit, figure, wanted in (
        ("S7-edit", f"one address added or deleted {under}", "ms", "edit_ms", at_most(1)),
        ("S7-longest", f"the longest of 200 such changes {under}", "ms", "longest_ms", None),
        ("S7-lost", f"frames lost meanwhile {under}", "frames", "lost", at_most(0)),
    ):
        yield Row(row_id, what, unit, figure, change, wanted=wanted, stage="tables")
    pause = Sample(f"table{TABLES[0]}", "pauses", (most,), once=True)
    for row_id, what, figure in (
        ("S7-pause", f"a worker's longest pause while one of {most} addresses is added or deleted", "single_us"),
        ("S7-pause-load", f"a worker's longest pause while {most} addresses are loaded", "load_us"),
    ):
        yield Row(row_id, what, "us", figure, pause, wanted=at_most(100), stage="tables")


ROWS: tuple[Row, ...] = (
    *streams(), *tunnels(), *datagrams(), *costs(), *guards(), *fast_path(), *backends(), *round_trips(), *fans(),
    *crowds(), *tables(),
)  # fmt: skip
STAGES = tuple(dict.fromkeys(row.stage for row in ROWS))


def chosen(words: list[str]) -> list[Row]:
    """Rows by id ("T1"), by the beginning of one before a hyphen ("M5"), or by a pattern ("T*"); all without words.
    Errors: ValueError names the word that means nothing."""
    found: list[Row] = []
    for word in words:
        matching = [row for row in ROWS if fnmatchcase(row.id, word) or row.id.startswith(f"{word}-")]
        if not matching:
            raise ValueError(f"no row {word}")
        found += matching
    return [row for row in ROWS if not words or row in found]
