"""What can be measured on a path. Every function returns figures by name, and a figure's name ends with its unit.

Figures that several measures share:
    daemon_ns    CPU time of the processes that carry the frames, for each frame that arrived (`schedstat`, so with the
                 part of the kernel's delivery that runs inside `write`)
    system_us    CPU time of the whole machine, generator included, for each frame that arrived
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

from tests.bench.measuring import quiet
from tests.bench.places.ground import FIRST, SECOND, Ground, Path, confined, pinned
from tests.support.patience import LIMIT, until
from tests.support.running import Daemon, cpu_ns, tool_at
from tests.support.topology import exec_in, inside, run

Figures = dict[str, float]
ENOUGH = 100  # frames: with fewer the way is broken, and no figure means anything
PINGS = 500
BURST = 32  # frames that are sent at once
IDLE = 5.0  # seconds


def cpu(path: Path) -> int:
    return sum(cpu_ns(pid) for pid in path.pids)


def set_mtu(ground: Ground, path: Path, mtu: int) -> None:
    """Of both ends, but for the wire's: its is always the larger, and the smaller counts."""
    for end in (path.source, path.sink):
        if end.device not in ("w0", "m0"):
            ground.lab.ip(end.netns, "link", "set", end.device, "mtu", str(mtu))
            if path.daemon is not None:
                until(partial(has_mtu, path.daemon, end.device, mtu), f"the daemon knows the MTU of {end.device}")


def has_mtu(daemon: Daemon, name: str, mtu: int) -> bool:
    """Whether the daemon knows that of its port `name`, if it has one."""
    return all(port["mtu"] == mtu for switch in daemon.show() for port in switch["ports"] if port["name"] == name)


# ---------------------------------------------------------------------------- streams


def tcp(ground: Ground, path: Path, mtu: int = 1500) -> Figures:
    """One iperf3 stream, nothing pinned. daemon_percent: of one CPU, while it ran."""
    set_mtu(ground, path, mtu)
    ground.iperf(path.sink.netns)
    before, start = cpu(path), time.monotonic()
    words = ("iperf3", "-c", path.sink.address, "-t", str(max(1, round(ground.seconds))), "-J")
    first = quiet.look()
    end = json.loads(run(*exec_in(path.source.netns, *words), timeout=LIMIT))["end"]
    last = quiet.look()
    used, took = cpu(path) - before, time.monotonic() - start
    received = end["sum_received"]
    return {
        "gbit": received["bits_per_second"] / 1e9,
        "daemon_s_per_gb": used / max(received["bytes"], 1),
        "system_s_per_gb": quiet.busy(first, last) / max(received["bytes"], 1) * 1e9,
        "daemon_percent": used / took / 1e7,
        "retransmits": end["sum_sent"].get("retransmits", 0),
    }


def gso(ground: Ground, path: Path, size: int = 1448) -> Figures:
    """UDP datagrams, handed to the kernel 64 KB at a time with UDP_SEGMENT and read with UDP_GRO."""
    with listening(ground, path) as said:
        send = (ground.tool("datagrams"), "send", path.sink.address, str(size), f"{ground.seconds:g}")
        run(*exec_in(path.source.netns, *send), timeout=LIMIT)
    return said()


# ---------------------------------------------------------------------------- frames


def frames(ground: Ground, path: Path, size: int = 60, rate: float = 0, destinations: int = 1) -> Figures:
    """Frames to a device whose socket is never read: what the device received is counted. The generator on one CPU, who
    carries the frames on another."""
    with unread(path), confined(path.pids, SECOND):
        before, used, start = received(path), cpu(path), quiet.look()
        sent = int(run(*generate(ground, path, size, rate, destinations), timeout=LIMIT))
        settle(lambda: received(path))
        arrived, used, end = received(path) - before, cpu(path) - used, quiet.look()
    assert arrived > ENOUGH, f"only {arrived} of {sent} frames arrived"
    return {
        "kpps": arrived / ground.seconds / 1000,
        "daemon_ns": used / arrived,
        "system_us": quiet.busy(start, end) / arrived * 1e6,
        "arrived_share": arrived / max(sent, 1),
    }


def flow(ground: Ground, path: Path, size: int = 1400, rate: float = 0) -> Figures:
    """The same to a socket that is read, with UDP_GRO as an application would: what it got, in which order."""
    with listening(ground, path) as said, confined(path.pids, SECOND):
        run(*generate(ground, path, size, rate), timeout=LIMIT)
    return said()


def together(ground: Ground, path: Path, rate: float = 0) -> Figures:
    """60-byte frames on two paths at once, nothing pinned: the sum of what the devices received."""
    assert path.beside is not None
    paths = (path, path.beside)
    with contextlib.ExitStack() as stack:
        for one in paths:
            stack.enter_context(unread(one))
        before = [received(one) for one in paths]
        senders = [
            subprocess.Popen(exec_in(one.source.netns, *generator(ground, one, 60, rate, 1)), stdout=subprocess.DEVNULL)
            for one in paths
        ]
        for sender in senders:
            assert sender.wait(LIMIT) == 0
        arrived = sum(received(one) - was for one, was in zip(paths, before, strict=True))
    assert arrived > ENOUGH, f"only {arrived} frames arrived"
    return {"kpps": arrived / ground.seconds / 1000}


def ordered(ground: Ground, path: Path, rate: float = 20_000) -> Figures:
    """Numbered frames on two paths at once to sockets that are read: how many came after a later one."""
    assert path.beside is not None
    with listening(ground, path) as first, listening(ground, path.beside) as second:
        senders = [
            subprocess.Popen(exec_in(one.source.netns, *generator(ground, one, 60, rate, 1)), stdout=subprocess.DEVNULL)
            for one in (path, path.beside)
        ]
        for sender in senders:
            assert sender.wait(LIMIT) == 0
    return {"reordered": first()["reordered"] + second()["reordered"]}


# ---------------------------------------------------------------------------- round trips


def rr(ground: Ground, path: Path, where: str = "one") -> Figures:
    """One byte there and back over TCP. `where`: "one": client, server and who carries the frames on one CPU. "apart":
    client and server on one, who carries the frames on another; where the kernel does, client and server apart."""
    server_on = FIRST if where == "one" or path.pids else SECOND
    tool = ground.tool("pingpong")
    with confined(path.pids, FIRST if where == "one" else SECOND):
        server = subprocess.Popen(
            exec_in(path.sink.netns, *pinned(server_on, tool, "serve")), stderr=subprocess.PIPE, text=True
        )
        try:
            words = pinned(FIRST, tool, path.sink.address, f"{ground.seconds / 2:g}")
            said = run(*exec_in(path.source.netns, *words), timeout=LIMIT).split()
        finally:
            server.terminate()
            server.communicate()
    names = ("p50_us", "p99_us", "p999_us", "longest_us")
    return dict(zip(names, (int(word) / 1000 for word in said), strict=False)) | {"count": int(said[4])}


def ping(ground: Ground, path: Path) -> Figures:
    """ICMP echo, the next as soon as the last came back; everything on one CPU."""
    words = pinned(FIRST, "ping", "-n", "-A", "-c", str(PINGS), "-W", "1", path.sink.address)
    with confined(path.pids, FIRST):
        out = run(*exec_in(path.source.netns, *words), timeout=LIMIT)
    times = [float(ms) * 1000 for ms in re.findall(r"time=([\d.]+) ms", out)]
    assert len(times) > PINGS // 2, f"only {len(times)} of {PINGS} echoes"
    return {"p50_us": median(times)}


def rr_under_broadcast(ground: Ground, path: Path, rate: float = 100) -> Figures:
    """`rr` on one CPU while another port, on the other CPU, sends so many broadcast frames a second."""
    assert path.beside is not None
    words = generator(ground, path.beside, 60, rate, 1)
    with subprocess.Popen(exec_in(path.beside.source.netns, *words), stdout=subprocess.DEVNULL) as sender:
        found = rr(ground, path)
        assert sender.wait(LIMIT) == 0
    return found


def rr_beside(ground: Ground, path: Path, burst: int, rate: float) -> Figures:
    """`rr` on one CPU while another port, on the other CPU, sends so many frames a second to a fourth."""
    assert path.beside is not None
    words = pinned(SECOND, *generator(ground, path.beside, 60, rate, 1, burst))
    with (
        unread(path.beside),
        subprocess.Popen(exec_in(path.beside.source.netns, *words), stdout=subprocess.DEVNULL) as sender,
    ):
        found = rr(ground, path)
        assert sender.wait(LIMIT) == 0
    return found


def tcp_beside(ground: Ground, path: Path, rate: float, captured: str) -> Figures:
    """`tcp` while another pair of ports exchanges so many 60-byte frames a second; `captured`: "yes" if these are
    written to a file that keeps nothing. lost_share: of the frames, what the capture has missed."""
    assert path.beside is not None and path.daemon is not None
    lost_share = 0.0
    command = [*tool_at(path.daemon.socket), "capture", path.beside.source.device, "-w", "/dev/null"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(unread(path.beside))
        if captured == "yes":
            reader = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
            assert reader.stderr is not None and reader.stderr.readline().startswith("ipvsw: capturing")
        sending = exec_in(path.beside.source.netns, *generator(ground, path.beside, 60, rate, 1))
        sender = stack.enter_context(subprocess.Popen(sending, stdout=subprocess.DEVNULL))
        found = tcp(ground, path)
        assert sender.wait(LIMIT) == 0
        if captured == "yes":
            reader.send_signal(signal.SIGINT)
            said = re.findall(r"(\d+) frames captured, (\d+) lost", reader.communicate(timeout=LIMIT)[1])
            kept, lost = map(int, said[0])
            lost_share = lost / max(1, kept + lost)
    return found | {"lost_share": lost_share}


# ---------------------------------------------------------------------------- what is there when nothing happens


def idle(ground: Ground, path: Path) -> Figures:
    """What the daemon does while nothing happens, once the last thing that did has been dealt with."""
    seconds = IDLE * min(1.0, ground.seconds)
    time.sleep(seconds / 2)
    before, start = cpu(path), time.monotonic()
    time.sleep(seconds)
    return {"daemon_percent": (cpu(path) - before) / (time.monotonic() - start) / 1e7}


def facts(_: Ground, path: Path) -> Figures:
    """What was found while the path was built."""
    return dict(path.facts)


# ---------------------------------------------------------------------------- helpers


def generator(ground: Ground, path: Path, size: int, rate: float, destinations: int, burst: int = BURST) -> list[str]:
    source, sink = path.source, path.sink
    options = (f"-s{size}", f"-n{destinations}", f"-b{burst}")
    words = (source.device, sink.mac, source.address, sink.address, f"{rate:g}", f"{ground.seconds:g}")
    return [ground.tool("generate"), *options, *words]


def generate(ground: Ground, path: Path, size: int, rate: float, destinations: int = 1) -> list[str]:
    return exec_in(path.source.netns, *pinned(FIRST, *generator(ground, path, size, rate, destinations)))


@contextlib.contextmanager
def unread(path: Path) -> Iterator[None]:
    """A socket takes what comes to port 9, so that nobody answers that it's closed, and is never read."""
    with inside(path.sink.netns):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.bind(("", 9))
        yield


@contextlib.contextmanager
def listening(ground: Ground, path: Path) -> Iterator[Callable[[], Figures]]:
    """A process reads what comes to port 9; what it got can be asked for afterwards."""
    words = pinned(FIRST + SECOND, ground.tool("datagrams"), "receive")
    result: Figures = {}
    with subprocess.Popen(exec_in(path.sink.netns, *words), stdout=subprocess.PIPE, text=True) as receiver:
        try:
            assert receiver.stdout is not None
            assert receiver.stdout.readline() == "ready\n"
            yield lambda: result
            settle(lambda: received(path))
            receiver.send_signal(signal.SIGTERM)
            said = receiver.communicate(timeout=LIMIT)[0].split()
        finally:
            receiver.kill()
    count, number, reordered, ns = (int(word) for word in said)
    assert number > ENOUGH and ns, f"only {number} datagrams arrived"
    result |= {"gbit": count * 8 / ns, "kpps": number / ns * 1e6, "reordered": reordered}


def received(path: Path) -> int:
    """Frames that the sink's device, or with "*" all of its namespace, received."""
    with inside(path.sink.netns), open("/proc/thread-self/net/dev") as file:
        lines = [line.split(":") for line in file if ":" in line]
    wanted = path.sink.device
    return sum(int(rest.split()[1]) for name, rest in lines if wanted in (name.strip(), "*") and name.strip() != "lo")


def settle(count: Callable[[], int], quiet_for: float = 0.05, at_most: float = 5.0) -> None:
    """Until nothing more comes."""
    deadline, last = time.monotonic() + at_most, -1
    while (now := count()) != last and time.monotonic() < deadline:
        last = now
        time.sleep(quiet_for)


MEASURES: dict[str, Callable[..., Figures]] = {
    one.__name__: one
    for one in (
        tcp,
        tcp_beside,
        gso,
        frames,
        flow,
        together,
        ordered,
        rr,
        ping,
        rr_under_broadcast,
        rr_beside,
        idle,
        facts,
    )
}
