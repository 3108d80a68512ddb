"""Routing daemons announce a thousand addresses of a host by BGP: all of them and nothing else, and steadily."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.e2e.routes.engines import Bird, Engine, Frr, GoBgp, Router
from tests.e2e.routes.exported import exported, removals
from tests.support.patience import until
from tests.support.running import Daemon, port, switch, take_over
from tests.support.topology import Lab

MANY = 499  # addresses of each family, beside those of the second port


def addresses(version: int) -> list[str]:
    return [f"10.2.{4 + k // 200}.{1 + k % 200}" if version == 4 else f"fd02::{k + 1:x}" for k in range(MANY)]


@pytest.mark.parametrize("engine", [Bird, Frr, GoBgp], ids=lambda engine: str(engine.__name__))
def test_what_is_owned_is_announced_and_nothing_else(lab: Lab, engine: type[Engine], tmp_path: Path) -> None:
    mine = {*addresses(4), *addresses(6)}
    ports = [
        port("ipvl1", lab.ports[0], [f"{one}/{32 if '.' in one else 128}" for one in (*addresses(4), *addresses(6))]),
        port("ipvl2", lab.ports[1], ["fd02:0:0:1::12/128"], routes=["10.1.0.0/16"]),
    ]
    config = switch("m0", lab.host, ports, mode="l3", export="routes")
    with Daemon(config, home=lab.home) as daemon:
        daemon.wait()
        lab.ip(lab.ports[1], "addr", "add", "10.2.0.12/32", "dev", "ipvl2")
        for words in (
            "route add blackhole 203.0.113.0/24 proto static",
            "route add blackhole 203.0.113.1 proto static table 118",
            "route add blackhole 203.0.113.2 proto 118",
            "-6 route add blackhole 2001:db8:9::/48 proto static",
            "-6 route add blackhole 2001:db8:9::1 proto static table 118",
        ):
            lab.ip(lab.host, *words.split())
        router = Router(lab, tmp_path / "router")
        announcer = engine(lab.host, tmp_path / "engine")
        announcer.start()
        try:
            families = {*announcer.families}
            wanted = {one for one in (*mine, "10.2.0.12", "fd02:0:0:1::12") if (4 if "." in one else 6) in families}
            router.until_heard(wanted)
            lab.reachable(lab.wire, "10.2.0.12")
            with removals(lab.wire, tmp_path / "removed") as removed:
                begun = time.monotonic()
                lab.ip(lab.ports[1], "addr", "del", "10.2.0.12/32", "dev", "ipvl2")
                until(lambda: any("10.2.0.12 " in line for line in removed.lines()), "one is withdrawn")
                print(f"{engine.__name__}: one of {len(wanted)} withdrawn after {time.monotonic() - begun:.3f} s")
                wanted.remove("10.2.0.12")
                for again in ("kill", "take over"):
                    if again == "kill":
                        daemon.kill()
                        daemon.start()
                        daemon.wait()
                    else:
                        take_over(daemon)
                    until(lambda: daemon.show()[0]["exported"] == 2 * MANY + 1, "it goes on with the routes")
                assert len(removed.lines()) == 1, "no route flaps"
                lab.ip(lab.ports[1], "addr", "add", "10.2.0.12/32", "dev", "ipvl2")
                router.until_heard({*wanted, "10.2.0.12"})
                assert len(removed.lines()) == 1
            daemon.stop()
            assert exported(lab) == set()
            router.until_heard(set())
        finally:
            announcer.stop()
            router.stop()
