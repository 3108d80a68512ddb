"""The devices as iproute2 and the kernel see them: semantics of a link with a master, and ways to go."""

from __future__ import annotations

import errno
import json
import time
from typing import Any

from tests.support.patience import until
from tests.support.topology import MASTER_MAC, Lab, batch, inside, port4, run
from tests.vm.module.kernel import Module, descriptors, index_of, nodes, set_mode
from tests.vm.module.net import add, name, served, until_served

OTHER_MAC = "02:00:00:00:00:77"
CYCLES = 100


def going(module: Module) -> dict[str, Any]:
    """Deleted, and its namespace deleted, while the daemon serves it under load."""
    with Lab(3) as lab, served(lab, 3) as daemon:
        one, two, three = lab.ports
        lab.spawn(three, "ping", "-f", "-q", port4(1))
        lab.spawn(three, "ping", "-f", "-q", port4(2))
        assert len(descriptors(daemon.pid)) == 3
        lab.ip(one, "link", "del", name(1))
        run("ip", "netns", "del", two)
        until(lambda: len(descriptors(daemon.pid)) == 1, "their descriptors are closed", every=0.1)
        until(lambda: [port["netns"] for port in daemon.show()[0]["ports"]] == [three], "it shows what is left")
        until(lambda: len(nodes()) == 1, "their character devices are gone", every=0.1)
        # One that moves on is found again, with what it had before.
        lab.ip(three, "link", "set", name(3), "netns", one)
        lab.ip(one, "link", "set", name(3), "up")
        lab.ip(one, "addr", "add", f"{port4(1)}/16", "dev", name(3))
        lab.reachable(lab.wire, port4(1))
        lab.ip(lab.host, "link", "del", "m0")
        until(lambda: not nodes(), "the master took its devices along", every=0.1)
        until(lambda: not descriptors(daemon.pid), "nothing of them is open", every=0.1)
        return {}


def semantics(module: Module) -> dict[str, Any]:
    """link, iflink and link-netns; MAC, MTU and carrier follow the master; what is refused."""
    with Lab(2) as lab:
        one, two = lab.ports
        add(lab, 1)
        link = _link(lab, one, name(1))
        assert link["linkinfo"]["info_kind"] == "ipvsw"
        assert link["link_index"] == index_of(lab.host, "m0") and link["link_netnsid"] >= 0
        assert link["address"] == MASTER_MAC and link["mtu"] == 1500
        assert f"link-netns {lab.host}" in lab.ip(one, "link", "show", "dev", name(1))

        # Made where it belongs, with a sibling for a master.
        lab.ip(lab.host, "link", "add", "link", "m0", "name", "sib", "type", "ipvsw")
        lab.ip(lab.host, "link", "add", "link", "sib", "name", name(2), "netns", two, "mtu", "1300", "type", "ipvsw")
        assert _link(lab, two, name(2))["link_index"] == index_of(lab.host, "m0")
        assert _link(lab, two, name(2))["mtu"] == 1300
        lab.ip(lab.host, "link", "del", "sib")

        lab.ip(two, "link", "set", name(2), "up")
        identifiers = {_interface_identifier(lab, netns) for netns in (one, two)}
        assert len(identifiers) == 2, f"devices share an IPv6 interface identifier: {identifiers}"

        lab.ip(lab.host, "link", "set", "m0", "address", OTHER_MAC, "mtu", "1400")
        for netns, k in ((one, 1), (two, 2)):
            link = _link(lab, netns, name(k))
            assert (link["address"], link["mtu"]) == (OTHER_MAC, 1400)
        lab.ip(lab.wire, "link", "set", "w0", "down")
        until(lambda: "NO-CARRIER" in _link(lab, one, name(1))["flags"], "the carrier is gone with the master's")
        lab.ip(lab.wire, "link", "set", "w0", "up")
        until(lambda: "LOWER_UP" in _link(lab, one, name(1))["flags"], "the carrier comes back")

        refusals = {
            "a MAC of its own": _complaint(lab, one, "link", "set", name(1), "address", MASTER_MAC),
            "no master": _complaint(lab, lab.host, "link", "add", "name", "x", "type", "ipvsw"),
            "loopback": _complaint(lab, lab.host, "link", "add", "link", "lo", "name", "x", "type", "ipvsw"),
            "a VLAN on top": _complaint(
                lab, one, "link", "add", "link", name(1), "name", "x", "type", "vlan", "id", "5"
            ),
        }
        assert all(refusals.values()), refusals

        # The master moves, and is still the master; then its namespace goes.
        lab.add(f"{lab.prefix}-new")
        lab.ip(lab.host, "link", "set", "m0", "netns", f"{lab.prefix}-new")
        assert f"link-netns {lab.prefix}-new" in lab.ip(one, "link", "show", "dev", name(1))
        run("ip", "netns", "del", f"{lab.prefix}-new")
        until(lambda: lab.link(one, name(1)) is None, "the device goes with its master's namespace", every=0.1)
        return {}


def attributes(module: Module) -> dict[str, Any]:
    """Mode and flags by rtnetlink: one for all devices of a master, taken over by the daemon."""
    with Lab(2) as lab, served(lab, 2) as daemon:
        one, two = lab.ports
        assert "NOARP" not in _link(lab, two, name(2))["flags"]
        with inside(one):
            index = index_of(one, name(1))
            assert set_mode(index, 3, 0) == errno.EINVAL
            assert set_mode(index, 0, 3) == errno.EINVAL
            assert set_mode(index, 1, 1) == 0
        assert "NOARP" in _link(lab, two, name(2))["flags"]
        until(lambda: _mode(daemon) == ("l3", "private"), "the switch follows", every=0.05)
        daemon.cli("link", "set", f"{name(1)}@{one}", "type", "ipvlan", "mode", "l2", "bridge")
        assert _mode(daemon) == ("l2", "bridge")
        until(lambda: "NOARP" not in _link(lab, two, name(2))["flags"], "ARP is back", every=0.05)
        lab.reachable(one, port4(2))
        status, answer = daemon.call("DELETE", f"/v1/ports/{name(1)}@{one}")
        assert status >= 400 and "ip link del" in json.dumps(answer), answer
        return {}


def bond(module: Module) -> dict[str, Any]:
    """A bond as the master: ports and gateway reach each other, also after a failover."""
    with Lab(2) as lab:
        lab.ip(lab.host, "link", "del", "m0")
        lab.ip(lab.wire, "link", "add", "br0", "type", "bridge")
        lab.ip(lab.host, "link", "add", "b0", "type", "bond", "mode", "active-backup", "miimon", "100")
        for k in (1, 2):
            peer = ("peer", "name", f"w{k}", "netns", lab.wire)
            lab.ip(lab.host, "link", "add", f"e{k}", "type", "veth", *peer)
            lab.ip(lab.host, "link", "set", f"e{k}", "master", "b0")
            batch([f"link set w{k} master br0", f"link set w{k} up"], lab.wire)
        batch(["link set br0 up", "addr add 10.1.0.254/16 dev br0"], lab.wire)
        lab.ip(lab.host, "link", "set", "b0", "up")
        with served(lab, 2, master="b0") as daemon:
            one, two = lab.ports

            def reach_each_other() -> None:
                for netns, address in (
                    (one, port4(2)),
                    (one, "10.1.0.254"),
                    (two, "10.1.0.254"),
                    (lab.wire, port4(1)),
                    (lab.wire, port4(2)),
                ):
                    lab.reachable(netns, address)

            reach_each_other()
            lab.ip(lab.host, "link", "set", "e1", "down")
            reach_each_other()
            assert _complaint(lab, lab.host, "link", "add", "link", "b0", "name", "x", "type", "ipvsw") == ""
            lab.ip(lab.host, "link", "del", "b0")
            until(lambda: not descriptors(daemon.pid), "the devices went with the bond", every=0.1)
        return {}


def cycles(module: Module) -> dict[str, Any]:
    """Made and deleted again and again, beside a daemon that runs after each of them."""
    with Lab(1) as lab, served(lab, 1) as daemon:
        began = time.monotonic()
        add_one = f"link add link m0 name x netns {lab.ports[0]} type ipvsw"
        for netns in ("", f" -n {lab.ports[0]}"):
            delete = "link del x"
            if netns:
                for _ in range(CYCLES // 4):
                    batch([add_one], lab.host)
                    batch([delete], lab.ports[0])
            else:
                batch(["link add link m0 name x type ipvsw", delete] * CYCLES, lab.host)
        seconds = time.monotonic() - began
        until_served(lab, daemon, 1)
        until(lambda: len(nodes()) == len(descriptors(daemon.pid)) == 1, "one is left", every=0.1)
        return {"cycles": CYCLES + CYCLES // 4, "seconds": round(seconds, 1)}


def _complaint(lab: Lab, netns: str, *words: str) -> str:
    """What `ip` complains of, "" if it doesn't."""
    try:
        lab.ip(netns, *words)
    except AssertionError as error:
        return str(error)
    return ""


def _link(lab: Lab, netns: str, device: str) -> dict[str, Any]:
    found = lab.link(netns, device)
    assert found is not None, f"{device} is not in {netns}"
    return found


def _interface_identifier(lab: Lab, netns: str) -> str:
    shown = json.loads(run("ip", "-n", netns, "-6", "-j", "addr", "show", "scope", "link"))
    return next(str(each["local"]) for link in shown for each in link.get("addr_info", []) if "local" in each)


def _mode(daemon: Any) -> tuple[str, str]:
    (shown,) = daemon.show()
    return shown["mode"], shown["flag"]
