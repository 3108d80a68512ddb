"""`ipvsw doctor`: each condition made, and found by its code; nothing where nothing is wrong."""

from __future__ import annotations

import errno
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from tests.support.patience import LIMIT, until
from tests.support.running import ROOT, Daemon, port, switch
from tests.support.topology import MASTER4, WIRE4, Lab, port4, port6, run

# What may be so on the machine that tests.
MACHINE = {"no-uring", "no-jit", "no-group-events", "no-veth", "no-uso", "network-manager", "little-memory"}
PLAIN = "import sys; from ipvsw.cli import main; sys.exit(main())"
UNDER_SECCOMP = """
import ctypes, struct, sys
code = {code}
rules = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in code))
program = struct.pack("=HxxxxxxQ", len(code), ctypes.addressof(rules))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()
from {module} import main
sys.exit(main())
"""
# Classic BPF over struct seccomp_data: its call at 0, the halves of its arguments from 16 on.
LOAD, IS, HAS, RETURN = 0x20, 0x15, 0x45, 6
REFUSED, ALLOWED = 0x50000, 0x7FFF0000
NO_URING = [(LOAD, 0, 0, 0), (IS, 0, 1, 425), (RETURN, 0, 0, REFUSED | errno.ENOSYS), (RETURN, 0, 0, ALLOWED)]
NO_USO = [  # TUNSETOFFLOAD with TUN_F_USO4
    *((LOAD, 0, 0, 0), (IS, 0, 5, 16), (LOAD, 0, 0, 24), (IS, 0, 3, 0x400454D0), (LOAD, 0, 0, 32), (HAS, 0, 1, 0x20)),
    *((RETURN, 0, 0, REFUSED | errno.EINVAL), (RETURN, 0, 0, ALLOWED)),
]


def lan(lab: Lab, **more: Any) -> dict[str, Any]:
    ports = [port(f"ipvl{k}", netns, [f"{port4(k)}/16", f"{port6(k)}/64"]) for k, netns in enumerate(lab.ports, 1)]
    return switch("m0", lab.host, ports, **more)


def findings(daemon: Daemon) -> list[dict[str, str]]:
    """But those of the machine that tests."""
    return everything(daemon, but=MACHINE)


def everything(daemon: Daemon, but: Collection[str] = ()) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(daemon.cli("doctor", "--json", check=False))
    return [one for one in found if one["code"] not in but]


def test_there_is_nothing_to_say_where_nothing_is_wrong(lab: Lab) -> None:
    with Daemon(lan(lab), home=lab.home) as daemon:
        daemon.wait()
        done = doctor(daemon)
        rest = [line for line in done.stdout.splitlines() if line and not line.startswith((*MACHINE, "    do:"))]
        assert rest == []
        assert done.returncode == (1 if done.stdout else 0)
        assert findings(daemon) == []


def doctor(daemon: Daemon, *more: str) -> Any:
    command = [sys.executable, "-c", PLAIN, "--socket", str(daemon.socket), "doctor", *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)


def proxy_arp(lab: Lab) -> None:
    lab.sysctl(lab.host, "net/ipv4/conf/m0/proxy_arp", "1")


def rp_filter(lab: Lab) -> None:
    lab.sysctl(lab.host, "net/ipv4/conf/m0/rp_filter", "1")


def ipv6_off(lab: Lab) -> None:
    lab.sysctl(lab.host, "net/ipv6/conf/all/disable_ipv6", "1")


def no_carrier(lab: Lab) -> None:
    lab.ip(lab.wire, "link", "set", "w0", "down")


def macvlan(lab: Lab) -> None:
    lab.ip(lab.host, "link", "add", "link", "m0", "name", "mv0", "type", "macvlan")


def conflict(lab: Lab) -> None:
    lab.ip(lab.ports[0], "addr", "add", f"{MASTER4}/16", "dev", "ipvl1")


def mtu(lab: Lab) -> None:
    lab.ip(lab.ports[0], "link", "set", "ipvl1", "mtu", "1300")


def large_port(lab: Lab) -> None:
    lab.ip(lab.ports[0], "link", "set", "ipvl1", "mtu", "1600")


def duplicate(lab: Lab) -> None:
    lab.ip(lab.wire, "addr", "add", f"{port4(1)}/32", "dev", "w0")


def all_multicast(lab: Lab) -> None:
    lab.ip(lab.host, "link", "set", "m0", "allmulticast", "on")


def gateway(lab: Lab) -> None:
    lab.ip(lab.host, "route", "add", "default", "via", WIRE4)
    lab.ip(lab.host, "neigh", "replace", WIRE4, "lladdr", "02:00:00:00:00:77", "dev", "m0")


CONDITIONS: dict[str, tuple[Callable[[Lab], None], dict[str, Any]]] = {
    "proxy-arp": (proxy_arp, {}),
    "rp-filter": (rp_filter, {"mode": "l3", "host_access": "both"}),
    "ipv6-off": (ipv6_off, {"mode": "l3"}),
    "no-carrier": (no_carrier, {}),
    "other-upper": (macvlan, {}),
    "address-conflict": (conflict, {}),
    "mtu-differs": (mtu, {}),
    "mtu-above-master": (large_port, {}),
    "lan-duplicate": (duplicate, {}),
    "gateway-changed": (gateway, {}),
    "allmulti": (all_multicast, {}),
}


@pytest.mark.parametrize("code", CONDITIONS)
def test_a_condition_is_found(lab: Lab, code: str) -> None:
    arrange, keys = CONDITIONS[code]
    with Daemon(lan(lab, **keys), home=lab.home) as daemon:
        daemon.wait()
        assert code not in {one["code"] for one in findings(daemon)}
        arrange(lab)
        found = until(lambda: [one for one in findings(daemon) if one["code"] == code], code)
        assert found[0]["where"].split("/")[0] == "lan" and found[0]["remedy"]
        done = doctor(daemon)
        assert done.returncode == 1 and f"{code}: {found[0]['where']}: {found[0]['text']}\n    do: " in done.stdout


def test_an_address_that_a_port_may_not_have_is_found(lab: Lab) -> None:
    one = port("ipvl1", lab.ports[0], [f"{port4(1)}/16"], claim=["10.9.0.0/16"])
    with Daemon(switch("m0", lab.host, [one]), home=lab.home) as daemon:
        daemon.wait()
        lab.ip(lab.ports[0], "addr", "add", "10.1.0.200/16", "dev", "ipvl1")
        found = until(lambda: [one for one in findings(daemon) if "10.1.0.200" in one["text"]], "it is refused")
        assert [(one["code"], one["where"]) for one in found] == [("address-refused", "lan/ipvl1")]


def test_a_master_that_is_a_bridge_behind_netfilter_is_found(lab: Lab) -> None:
    lab.ip(lab.host, "link", "add", "br0", "type", "bridge")
    lab.ip(lab.host, "link", "set", "br0", "up")
    if not _has_bridge_netfilter(lab):
        pytest.skip("the kernel has no br_netfilter")
    with Daemon(switch("br0", lab.host, [port("ipvl1", lab.ports[0])]), home=lab.home) as daemon:
        daemon.wait()
        lab.sysctl(lab.host, "net/bridge/bridge-nf-call-iptables", "0")
        lab.sysctl(lab.host, "net/bridge/bridge-nf-call-ip6tables", "0")
        lab.sysctl(lab.host, "net/bridge/bridge-nf-call-arptables", "0")
        assert "bridge-nf" not in {one["code"] for one in findings(daemon)}
        lab.sysctl(lab.host, "net/bridge/bridge-nf-call-iptables", "1")
        assert "bridge-nf" in {one["code"] for one in findings(daemon)}


def _has_bridge_netfilter(lab: Lab) -> bool:
    return "bridge" in lab.execute(lab.host, "ls", "/proc/sys/net").split()


def test_a_master_that_is_not_there_is_found(lab: Lab) -> None:
    with Daemon(lan(lab), home=lab.home) as daemon:
        daemon.wait()
        lab.ip(lab.host, "link", "del", "m0")
        found = until(lambda: [one for one in findings(daemon) if one["code"] == "master-away"], "the master is gone")
        assert "m0" in found[0]["text"]


def test_programs_of_others_are_found(lab: Lab, tmp_path: Path) -> None:
    source, made = tmp_path / "pass.c", tmp_path / "pass.o"
    source.write_text(
        '__attribute__((section("xdp"))) int all(void *frame) { return 2; }\n'
        '__attribute__((section("tc"))) int each(void *frame) { return 0; }\n'
    )
    run("clang", "-O2", "-target", "bpf", "-c", str(source), "-o", str(made))
    with Daemon(lan(lab), home=lab.home) as daemon:
        daemon.wait()
        lab.ip(lab.host, "link", "set", "m0", "xdpgeneric", "obj", str(made), "sec", "xdp")
        assert [one["code"] for one in findings(daemon)] == ["xdp"]
        lab.ip(lab.host, "link", "set", "m0", "xdpgeneric", "off")
        assert findings(daemon) == []
        words = ["prio", "5", "bpf", "direct-action", "obj", str(made), "sec", "tc"]
        lab.execute(lab.host, "tc", "filter", "add", "dev", "m0", "egress", *words)
        (found,) = findings(daemon)
        assert found["code"] == "tc-filter" and "egress" in found["text"]


def test_descriptors_that_run_out_are_found(lab: Lab) -> None:
    """The last of them are kept for the data plane: the API is refused then, and the doctor says why."""
    with Daemon(lan(lab), home=lab.home) as daemon:
        daemon.wait()
        run("prlimit", "--pid", str(daemon.pid), f"--nofile={daemon.fds() + 4}:")
        assert [one["code"] for one in findings(daemon)] == ["few-fds"]
        run("prlimit", "--pid", str(daemon.pid), "--nofile=1024:")
        assert findings(daemon) == []


@pytest.mark.parametrize(
    ("code", "refused", "where"), [("no-uring", NO_URING, "lan"), ("no-uso", NO_USO, "host")], ids=["uring", "uso"]
)
def test_what_the_kernel_refuses_the_daemon_is_found(
    lab: Lab, code: str, refused: list[tuple[int, ...]], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = UNDER_SECCOMP.format(code=refused, module="ipvsw.daemon.main")
    monkeypatch.setenv("IPVSWD", shlex.join([sys.executable, "-c", program]))
    with Daemon(lan(lab), home=lab.home, io="auto") as daemon:
        daemon.wait()
        assert (code, where) in {(one["code"], one["where"]) for one in everything(daemon)}


def test_a_daemon_that_is_to_use_epoll_misses_nothing(lab: Lab) -> None:
    with Daemon(lan(lab), home=lab.home, io="epoll") as daemon:
        daemon.wait()
        assert everything(daemon, but=MACHINE - {"no-uring"}) == []


def test_a_daemon_that_is_away_is_found(lab: Lab) -> None:
    with Daemon(lan(lab), home=lab.home) as daemon:
        daemon.wait()
        daemon.stop()
        assert [one["code"] for one in findings(daemon)] == ["daemon-away"]
