"""The configuration file read again, what that would do, and what runs written as a file."""

from __future__ import annotations

from typing import Any

from tests.support.patience import until
from tests.support.running import Daemon, port, switch
from tests.support.topology import Lab, port4


def without_devices(shown: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `ipvsw show` says, without what the kernel gives each device anew."""
    ports = [[one | {"index": 0} for one in each["ports"]] for each in shown]
    return [each | {"ports": of_switch} for each, of_switch in zip(shown, ports, strict=True)]


def test_what_runs_is_saved_with_what_the_command_line_has_changed() -> None:
    with Lab(2) as lab:
        first = port("ipvl0", lab.ports[0], [f"{port4(1)}/16"], mtu=1400)
        with Daemon(switch("m0", lab.host, [first], guard="strict")).wait() as daemon:
            words = f"name more ifname ipvl0 netns {lab.ports[1]} address {port4(2)}/16 type ipvlan vepa"
            daemon.cli("link", "add", "link", "m0", *words.split())
            daemon.cli("link", "set", "m0", "type", "ipvlan", "mode", "l3")
            daemon.wait()
            before = without_devices(daemon.show())
            assert [one["name"] for one in before[0]["ports"]] == ["ipvl0", "more"]
            assert (before[0]["mode"], before[0]["flag"]) == ("l3", "vepa")
            daemon.cli("save", str(daemon.config))
            assert daemon.cli("reload") == "nothing has changed\n"
            daemon.stop()
            daemon.start()
            daemon.wait()
            until(lambda: without_devices(daemon.show()) == before, "the same runs again")
            assert daemon.cli("save") == daemon.config.read_text()


def test_a_dry_run_says_what_a_reload_does() -> None:
    with Lab(2) as lab:
        ports = [port("ipvl0", netns, [f"{port4(k)}/16"]) | {"name": f"p{k}"} for k, netns in enumerate(lab.ports, 1)]
        for one in ports:
            one["ifname"] = "ipvl0"
        with Daemon(switch("m0", lab.host, ports)).wait() as daemon:
            text = daemon.config.read_text()
            before = daemon.show()
            assert daemon.cli("reload", "--dry-run") == "nothing has changed\n"
            addresses = f'"{port4(1)}/16"]'
            changed = text.replace('name = "p2"', 'name = "p3"').replace(addresses, f"{addresses}\nmtu = 1400")
            daemon.config.write_text(changed)
            plan = daemon.cli("reload", "--dry-run")
            assert plan.splitlines() == [
                "remove port lan/p2",
                "change port lan/p1: mtu 1400",
                f"add port lan/p3 as ipvl0 in {lab.ports[1]}",
            ]
            assert daemon.show() == before
            daemon.config.write_text(changed + "[[switch]]\n")
            for words in (["reload"], ["reload", "--dry-run"]):
                assert daemon.cli(*words, check=False) == ""
            assert daemon.show() == before
            daemon.config.write_text(changed)
            assert daemon.cli("reload") == plan
            daemon.wait()
            assert [(one["name"], one["mtu"]) for one in daemon.show()[0]["ports"]] == [("p1", 1400), ("p3", 1500)]
