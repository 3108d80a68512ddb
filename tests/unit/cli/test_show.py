"""What the commands that only read print: switches, counters, leases, addresses, links."""

from __future__ import annotations

import json

import msgspec
import pytest

from ipvsw.cli.link import statistics
from ipvsw.cli.stats import stats
from ipvsw.cli.status import show
from ipvsw.model import Export, HostAccess, L3Output
from ipvsw.status import SwitchStats, SwitchStatus, Traffic
from tests.unit.cli.lines import Run
from tests.unit.daemon.fake_manager import DMZ, LAN, LEASES, STATS


def test_show(run: Run) -> None:
    assert run("show") == (
        0,
        """\
SWITCH  MASTER  NETNS  MODE  FLAG    STATE    MAC                MTU   WORKERS  IO     PORTS  REASON
lan     eth0    -      l2    bridge  up       02:00:00:00:00:01  1500  1        epoll  2      -
dmz     eth1    host1  l2    vepa    waiting  -                  -     1        epoll  1      there is no eth1 in host1

PORT       KIND   STATE    NETNS  IFNAME  MTU   OFFLOADS        REASON
lan/ipvl0  netns  up       ns0    ipvl0   1500  csum,tso4,tso6  -
lan/ipvl1  netns  down     ns1    net0    1400  -               -
dmz/ipvl0  netns  waiting  ns9    ipvl0   -     -               there is no ns9

ADDRESS     PORT       STATE      SOURCE
10.0.0.2    lan/ipvl0  owned      config
fe80::1234  lan/ipvl0  owned      netlink
10.0.0.2    lan/ipvl1  duplicate  netlink
""",
        "",
    )


def test_show_names_what_is_not_the_default() -> None:
    other = msgspec.structs.replace(DMZ, ports=(), l3_output=L3Output.HOST, host_access=HostAccess.TO_HOST)
    other = msgspec.structs.replace(other, multicast=("224.0.0.251", "ff02::fb"))
    other = msgspec.structs.replace(other, export=Export.ROUTES, exported=7)
    titles, first, second = (
        line.split() for line in show((msgspec.structs.replace(LAN, ports=()), other)).splitlines()
    )
    at = titles.index("L3-OUTPUT")
    assert titles[at : at + 4] == ["L3-OUTPUT", "HOST-ACCESS", "MULTICAST", "EXPORT"]
    assert first[at : at + 4] == ["-"] * 4
    assert second[at : at + 5] == ["host", "to-host", "224.0.0.251,ff02::fb", "7", "routes"]


def test_stats_have_the_host_where_it_spoke() -> None:
    spoke = Traffic(rx_frames=3, rx_bytes=180, outcomes={"to_port": 2, "drop_host_access": 1})
    found = msgspec.to_builtins([msgspec.structs.replace(STATS[0], host=spoke)])
    lines = stats(found, {"lan": "eth0"}, zeros=False, totals=True)
    text = lines.splitlines()
    at = text.index("host lan/eth0")
    assert [line.split() for line in text[at + 1 : at + 5]] == [
        ["rx_frames", "3"],
        ["rx_bytes", "180"],
        ["to_port", "2"],
        ["drop_host_access", "1"],
    ]
    assert text[: text.index("master lan/eth0")].count("    drop_host_access    1") == 1


def test_show_one(run: Run) -> None:
    code, out, _ = run("show dmz")
    assert code == 0 and "dmz/ipvl0" in out and "lan" not in out
    assert run("show x") == (1, "", 'ipvsw: there is no switch "x"\n')


@pytest.mark.parametrize("line", ["show --json", "-j show", "s -j", "sh --json"])
def test_show_json(run: Run, line: str) -> None:
    code, out, err = run(line)
    assert (code, err) == (0, "")
    assert msgspec.json.decode(out, type=tuple[SwitchStatus, ...]) == (LAN, DMZ)


def test_stats(run: Run) -> None:
    assert run("stats lan") == (
        0,
        """\
switch lan
    duplicates          4
    repaired_filters    1
    rx_frames           4
    rx_bytes          240
    tx_frames           3
    tx_bytes          180
    to_port             2
    runt                1
    to_master           1
master lan/eth0
    rx_frames    3
    rx_bytes   180
    tx_frames    1
    tx_bytes    60
    to_port      2
    runt         1
port lan/ipvl0
    rx_frames    1
    rx_bytes    60
    tx_frames    2
    tx_bytes   120
    to_master    1
port lan/ipvl1
""",
        "",
    )


def test_stats_of_a_port(run: Run) -> None:
    code, out, _ = run("stats ipvl1 --all")
    assert code == 0
    assert out.splitlines() == [
        "port lan/ipvl1",
        *(f"    {name:<13}  0" for name in Traffic.__struct_fields__[:-1]),
    ]
    code, out, _ = run("stats ipvl0")
    assert [line for line in out.splitlines() if line[0] != " "] == ["port lan/ipvl0", "port dmz/ipvl0"]
    code, out, _ = run("stats dmz/ipvl0")
    assert out == "port dmz/ipvl0\n"
    assert run("stats dmz/ipvl1") == (1, "", 'ipvsw: there is no switch or port "dmz/ipvl1"\n')


def test_stats_json(run: Run) -> None:
    assert msgspec.json.decode(run("stats --json")[1], type=tuple[SwitchStats, ...]) == STATS
    (only,) = msgspec.json.decode(run("stats lan/ipvl0 -j")[1], type=tuple[SwitchStats, ...])
    assert only.ports == {"ipvl0": STATS[0].ports["ipvl0"]}


@pytest.mark.parametrize("line", ["lease", "le", "lease list", "lease show"])
def test_lease(run: Run, line: str) -> None:
    status, out, _ = run(line)
    assert status == 0
    titles, first, second = out.splitlines()
    assert titles.split() == ["ADDRESS", "PORT", "STATE", "REMAINING", "MAC", "CLIENT-ID", "HOSTNAME", "SERVER"]
    assert first.split()[:5] == ["10.0.0.2", "lan/ipvl1", "owned", "3600", "s"]
    assert first.split()[5:] == ["02:00:00:00:00:01", "01:02:00:00:00:00:01", "one", "10.0.0.254"]
    assert second.split() == ["fd00::2", "dmz/ipvl0", "-", "for", "ever", "-", "00:03", "-", "-"]


def test_leases_of_one(run: Run) -> None:
    assert [one["address"] for one in json.loads(run("lease list lan --json")[1])] == ["10.0.0.2"]
    assert json.loads(run("lease dmz/ipvl0 --json")[1]) == [json.loads(msgspec.json.encode(LEASES[1]))]
    assert run("lease lan/ipvl0")[:2] == (0, "")
    assert run("lease x")[0] == 1


@pytest.mark.parametrize("line", ["addr", "a", "address show", "addr list"])
def test_addr(run: Run, line: str) -> None:
    code, out, _ = run(line)
    assert code == 0
    assert out.splitlines()[0].split() == ["ADDRESS", "PORT", "STATE", "SOURCE"]
    assert len(out.splitlines()) == 4


def test_addr_of_one(run: Run) -> None:
    _, out, _ = run("addr show dev ipvl1")
    assert out.splitlines()[1:] == ["10.0.0.2  lan/ipvl1  duplicate  netlink"]
    assert run("addr dmz") == (0, "", "")
    assert [one["address"] for one in json.loads(run("addr lan/ipvl0 --json")[1])] == ["10.0.0.2", "fe80::1234"]
    assert run("addr x")[0] == 1


@pytest.mark.parametrize("line", ["link", "l", "link show", "l sh", "link list"])
def test_link_show(run: Run, line: str) -> None:
    assert run(line) == (
        0,
        """\
5: ipvl0@eth0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 state UP mode DEFAULT
    link/ether 02:00:00:00:00:01 brd ff:ff:ff:ff:ff:ff link-netns ns0
    ipvlan  mode l2 bridge
7: net0@eth0: <BROADCAST,MULTICAST> mtu 1400 state DOWN mode DEFAULT
    link/ether 02:00:00:00:00:01 brd ff:ff:ff:ff:ff:ff link-netns ns1
    ipvlan  mode l2 bridge
    alias cni:net:c1:net0
    altname ipvl1
0: ipvl0@eth1: <BROADCAST,MULTICAST> mtu 0 state NOTPRESENT mode DEFAULT
    link-netns ns9
    ipvlan  mode l2 vepa
""",
        "",
    )


def test_link_show_one(run: Run) -> None:
    assert run("link show dev ipvl1")[1].startswith("7: net0@eth0")
    assert run("link show dmz/ipvl0")[1].startswith("0: ipvl0@eth1")
    assert len(run("link show lan")[1].splitlines()) == 8
    assert run("link show x") == (1, "", 'ipvsw: there is no switch or port "x"\n')


def test_link_show_json(run: Run) -> None:
    (one,) = json.loads(run("link show ipvl1 --json")[1])
    assert one == {
        "ifindex": 7,
        "link": "eth0",
        "ifname": "net0",
        "flags": ["BROADCAST", "MULTICAST"],
        "mtu": 1400,
        "operstate": "DOWN",
        "linkmode": "DEFAULT",
        "link_type": "ether",
        "address": "02:00:00:00:00:01",
        "broadcast": "ff:ff:ff:ff:ff:ff",
        "linkinfo": {"info_kind": "ipvlan", "info_data": {"mode": "l2", "bridge": True}},
        "link_netns": "ns1",
        "ifalias": "cni:net:c1:net0",
        "altnames": ["ipvl1"],
    }


def test_link_show_statistics(run: Run) -> None:
    """As `ip -s link` in the namespace: it receives what the switch sent."""
    lines = run("-s link show lan/ipvl0")[1].splitlines()
    assert [line.split() for line in lines[-4:]] == [
        ["RX:", "bytes", "packets", "errors", "dropped"],
        ["120", "2", "0", "0"],
        ["TX:", "bytes", "packets", "errors", "dropped"],
        ["60", "1", "0", "0"],
    ]
    (one,) = json.loads(run("-s -j link show lan/ipvl0")[1])
    assert one["stats64"]["tx"] == {"bytes": 60, "packets": 1, "errors": 0, "dropped": 0}
    assert len(run("-s link")[1].splitlines()) == len(run("link")[1].splitlines()) + 3 * 4
    dropped = {"rx_frames": 5, "rx_bytes": 300, "tx_frames": 0, "tx_bytes": 0, "tx_errors": 2}
    outcomes = {"to_port": 1, "left_to_host": 1, "drop_runt": 1, "guard_arp": 2, "limit_rate": 4}
    counters = statistics({**dropped, "outcomes": outcomes})["stats64"]
    assert (counters["rx"]["dropped"], counters["tx"]["dropped"]) == (2, 7)
