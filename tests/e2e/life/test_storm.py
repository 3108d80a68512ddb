"""A namespace that changes its addresses without end doesn't delay what happens in another."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.patience import patient, until
from tests.support.running import Daemon
from tests.support.topology import Lab, exec_in, inside

ROUNDS = 10
STORM = """
words() { for k in $(seq 250); do echo "addr add 10.77.0.$k/32 dev ipvl1"; done
          for k in $(seq 250); do echo "addr del 10.77.0.$k/32 dev ipvl1"; done; }
words > /tmp/$$; while ip -batch /tmp/$$; do :; done; rm /tmp/$$
"""


@contextmanager
def storm(netns: str) -> Iterator[None]:
    """Some thousand changes a second."""
    with inside(netns):
        process = subprocess.Popen(["bash", "-c", STORM], start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def owned(lan: Daemon, address: str) -> bool:
    return any(one["address"] == address and one["state"] == "owned" for one in lan.get("/v1/addresses"))


def test_a_siblings_new_address_does_not_wait(lab: Lab, lan: Daemon) -> None:
    with storm(lab.ports[0]):
        until(lambda: owned(lan, "10.77.0.100"), "the storm has begun")
        time.sleep(2)  # for what piles up
        delays = []
        for k in range(ROUNDS):
            address = f"10.1.9.{k + 1}"
            subprocess.run(exec_in(lab.ports[1], "ip", "addr", "add", f"{address}/32", "dev", "ipvl2"), check=True)
            start = time.monotonic()
            until(lambda: owned(lan, address), f"{address} works", every=0.002)  # noqa: B023
            delays.append(time.monotonic() - start)
    print("delays", [round(delay * 1000) for delay in sorted(delays)], "ms")
    assert statistics.median(delays) < patient(1)  # seconds; behind the storm's events each takes several
    for k in (1, 2):
        assert lan.port(f"ipvl{k}")["state"] == "up"
