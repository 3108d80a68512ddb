"""Ports with several queues: as many workers read what one sends, and no flow is out of order."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import traffic
from tests.support.patience import LIMIT
from tests.support.running import Daemon, port, switch, toml
from tests.support.topology import WIRE4, WIRE6, Lab, inside, port4, port6

FLOWS, DATAGRAMS, AT_ONCE = 8, 2000, 100  # the last: on the way, in each flow
SO_RCVBUFFORCE = 33


def ports(lab: Lab, queues: int) -> list[dict[str, object]]:
    """Each with an address for each flow, and one of IPv6."""
    return [
        port(f"ipvl{k}", netns, [*(f"{flow4(k, flow)}/16" for flow in range(FLOWS)), f"{port6(k)}/64"], queues=queues)
        for k, netns in enumerate(lab.ports, 1)
    ]


def flow4(k: int, flow: int) -> str:
    return f"{port4(k).rpartition('.')[0]}.{10 * k + flow}"


@pytest.fixture
def wide(lab: Lab) -> Iterator[Daemon]:
    with Daemon(switch("m0", lab.host, ports(lab, 2)), home=lab.home, workers=2) as daemon:
        daemon.wait()
        lab.reachable(lab.ports[0], flow4(2, 0))
        yield daemon


def queues(lab: Lab, k: int) -> int:
    """That the port's device has."""
    link = lab.link(lab.ports[k - 1], f"ipvl{k}")
    assert link
    return int(link["linkinfo"]["info_data"].get("numqueues", 1))


def test_a_port_has_as_many_queues_as_are_wanted_and_read(lab: Lab, wide: Daemon) -> None:
    assert queues(lab, 1) == queues(lab, 2) == 2
    for wanted, had in ((1, 1), (5, 2)):
        wide.config.write_text(toml(wide.socket, [switch("m0", lab.host, ports(lab, wanted))], workers=2))
        wide.cli("reload")
        wide.wait()
        assert queues(lab, 1) == had
        lab.reachable(lab.ports[0], flow4(2, 0))


def test_connections_in_every_direction_at_once(lab: Lab, wide: Daemon) -> None:
    first, second = lab.ports
    ways = [
        (first, second, flow4(2, 0)),
        (second, first, port6(1)),
        (first, lab.wire, WIRE4),
        (first, lab.wire, WIRE6),
        (lab.wire, second, flow4(2, 1)),
        (lab.wire, second, port6(2)),
    ]
    for netns, address in ((first, WIRE4), (first, WIRE6), (second, WIRE4), (second, WIRE6), (second, port6(1))):
        lab.reachable(netns, address)
    with ThreadPoolExecutor(len(ways)) as pool:
        for done in [pool.submit(traffic.tcp, *way) for way in ways * 3]:
            done.result()


def test_no_flow_is_out_of_order_while_its_answers_come_by_another_queue(lab: Lab, wide: Daemon) -> None:
    """Datagrams both ways between each two addresses, as many as may be on the way."""
    for flow in range(FLOWS):  # what waits for its neighbour the sender's own kernel lets others pass
        lab.reachable(lab.ports[0], flow4(2, flow))
        lab.reachable(lab.ports[1], flow4(1, flow))
    with ThreadPoolExecutor(2 * FLOWS) as pool:
        both = [pool.submit(exchange, lab, flow) for flow in range(FLOWS)]
        for done in both:
            assert done.result() == ([], [])


def exchange(lab: Lab, flow: int) -> tuple[list[int], list[int]]:
    """What came too late at each end of one flow."""
    ends = []
    for k in (1, 2):
        with inside(lab.ports[k - 1]):
            ends.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        ends[-1].setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        ends[-1].bind((flow4(k, flow), 9000 + flow))
        ends[-1].settimeout(LIMIT)
    for end, there in zip(ends, reversed(ends), strict=True):
        end.connect(there.getsockname())
    late: tuple[list[int], list[int]] = ([], [])
    threads = [threading.Thread(target=converse, args=(end, found)) for end, found in zip(ends, late, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for end in ends:
        end.close()
    return late


def converse(end: socket.socket, late: list[int]) -> None:
    """Send, and receive what the other end sends meanwhile, which is never more than AT_ONCE behind."""
    last = 0
    for number in range(1, DATAGRAMS + 1):
        end.send(number.to_bytes(4, "big"))
        while last < number - AT_ONCE or (number == DATAGRAMS and last < DATAGRAMS):
            came = int.from_bytes(end.recv(100), "big")
            if came <= last:
                late.append(came)
            last = max(last, came)
