"""The command line tool against an API with a made-up daemon behind it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path

import msgspec
import pytest

from ipvsw import __version__, cli
from ipvsw.cli.commands import COMMANDS, understand
from ipvsw.cli.complete import candidates
from ipvsw.cli.help import help_text
from ipvsw.cli.link import statistics
from ipvsw.cli.stats import stats
from ipvsw.cli.status import show
from ipvsw.cli.table import table
from ipvsw.config.file import parse
from ipvsw.config.port_keys import MACHINES, PORT
from ipvsw.model import Flag, HostAccess, L3Output, Mode, PortConfig
from ipvsw.status import SwitchStats, SwitchStatus, Traffic
from tests.support.patience import LIMIT
from tests.unit.daemon.fake_manager import CONFIG, DMZ, LAN, LEASES, STATS, Daemon

ROOT = Path(cli.__file__).parents[2]
COMPLETIONS = Path(cli.__file__).parent / "completions"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("cli") / "api.sock")
    yield daemon
    daemon.close()


@pytest.fixture
def daemon(shared: Daemon) -> Daemon:
    shared.manager.calls.clear()
    shared.manager.error = None
    return shared


@pytest.fixture
def run(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(line: str) -> tuple[int, str, str]:
        code = cli.main(["--socket", str(daemon.path), *line.split()])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


# ---------------------------------------------------------------------------- reading


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
    titles, first, second = (
        line.split() for line in show((msgspec.structs.replace(LAN, ports=()), other)).splitlines()
    )
    at = titles.index("L3-OUTPUT")
    assert titles[at : at + 2] == ["L3-OUTPUT", "HOST-ACCESS"]
    assert (first[at : at + 2], second[at : at + 2]) == (["-", "-"], ["host", "to-host"])


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
    assert json.loads(run("lease dmz/ipvl0 --json")[1]) == [msgspec.to_builtins(LEASES[1])]
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


# ---------------------------------------------------------------------------- changing

IPVL2 = PortConfig(name="ipvl2", ifname="ipvl2", netns="ns2")


@pytest.mark.parametrize(
    "line",
    [
        "link add link eth0 name ipvl2 netns ns2 type ipvlan mode l2 private",
        "link add link eth0 name ipvl2 type ipvlan mode l2 private netns ns2",
        "link add name ipvl2 link eth0 netns ns2 type ipvlan private mode l2",
        "l a link eth0 ipvl2 netns ns2 type ipvlan mode l2 private",
        "link add dev ipvl2 link eth0 netns ns2 type ipvlan mode l2 private",
    ],
)
def test_link_add(daemon: Daemon, run: Run, line: str) -> None:
    assert run(line) == (0, "", "")
    assert daemon.manager.calls == [("add_port", "eth0", IPVL2, Mode.L2, Flag.PRIVATE)]


def test_link_add_everything(daemon: Daemon, run: Run) -> None:
    line = (
        "link add link eth0 name a ifname net0 mtu 1400 address 10.0.0.4/24 address fd00::4/64"
        " gateway 10.0.0.1 gateway fd00::1 netns 4194305 type ipvlan --json"
    )
    code, out, err = run(line)
    assert (code, err) == (0, "") and json.loads(out)["name"] == "a"
    port = PortConfig(
        name="a",
        ifname="net0",
        netns="pid:4194305",
        addresses=(ip_interface("10.0.0.4/24"), ip_interface("fd00::4/64")),
        gateway=(ip_address("10.0.0.1"), ip_address("fd00::1")),
        mtu=1400,
    )
    assert daemon.manager.calls == [("add_port", "eth0", port, None, None)]


@pytest.mark.parametrize(
    ("words", "queues"),
    [("numtxqueues 4", 4), ("numrxqueues 2 numtxqueues 4", 4), ("queues 3 numtxqueues 1 numrxqueues 1", 3)],
)
def test_link_add_queues_as_ip_says_it(daemon: Daemon, run: Run, words: str, queues: int) -> None:
    assert run(f"link add link eth0 ipvl2 netns ns2 {words} type ipvlan") == (0, "", "")
    ((_, _, port, _, _),) = daemon.manager.calls
    assert port.queues == queues


def test_link_add_queues_are_a_number(run: Run) -> None:
    code, _, err = run("link add link eth0 ipvl2 netns ns2 numtxqueues many type ipvlan")
    assert code == 2 and "numtxqueues many: not a number" in err


def test_link_set_mtu(daemon: Daemon, run: Run) -> None:
    assert run("link set dev lan/ipvl0 mtu 1400") == (0, "", "")
    assert daemon.manager.calls == [("change_port", "lan", "ipvl0", 1400)]
    assert run("link set lan/ipvl0 mtu 60") == (1, "", "ipvsw: mtu: 60 is not between 68 and 65535\n")
    assert run("link set none mtu 1400") == (1, "", 'ipvsw: there is no port "none"\n')


def test_link_set(daemon: Daemon, run: Run) -> None:
    assert run("link set ipvl1 type ipvlan vepa") == (0, "", "")
    assert run("link set dev lan type ipvlan mode l2 private") == (0, "", "")
    assert run("l s dmz/ipvl0 type ipvlan mode l2") == (0, "", "")
    assert run("link set eth1 type ipvlan mode l3") == (0, "", "")
    assert daemon.manager.calls == [
        ("set_mode", "lan", None, Flag.VEPA),
        ("set_mode", "lan", Mode.L2, Flag.PRIVATE),
        ("set_mode", "dmz", Mode.L2, None),
        ("set_mode", "dmz", Mode.L3, None),
    ]
    assert run("link set eth9 type ipvlan mode l3") == (1, "", 'ipvsw: there is no switch, port or master "eth9"\n')


@pytest.mark.parametrize("line", ["link del ipvl1", "link delete dev ipvl1", "l d lan/ipvl1"])
def test_link_delete(daemon: Daemon, run: Run, line: str) -> None:
    assert run(line) == (0, "", "")
    assert daemon.manager.calls == [("delete_port", "lan", "ipvl1")]


def test_reload(run: Run) -> None:
    assert run("reload") == (0, "attach lan/ipvl2\ndetach lan/ipvl1\n", "")
    assert run("reload --dry-run") == (0, "attach lan/ipvl2\n", "")


def test_save(run: Run, tmp_path: Path) -> None:
    for words in ("save", "save -"):
        code, text, _ = run(words)
        assert code == 0 and parse(text) == CONFIG
    file = tmp_path / "ipvsw.toml"
    assert run(f"save {file}") == (0, "", "")
    assert file.read_text() == text
    file.write_text("# what was there\n")
    file.chmod(0o600)
    link = tmp_path / "link.toml"
    link.symlink_to(file)
    assert run(f"save {link}") == (0, "", "")
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode), link.is_symlink()) == (text, 0o600, True)
    assert run(f"save {tmp_path}/none/x") == (1, "", f"ipvsw: {tmp_path}/none/x: No such file or directory\n")
    assert run(f"save {tmp_path}") == (1, "", f"ipvsw: {tmp_path}: Is a directory\n")
    assert {path.name for path in tmp_path.iterdir()} == {"ipvsw.toml", "link.toml"}


# ---------------------------------------------------------------------------- failing


def test_a_refusal_is_one_line(daemon: Daemon, run: Run) -> None:
    daemon.manager.refuse("eth9: there is no such device")
    assert run("link add link eth9 name a type ipvlan") == (1, "", "ipvsw: eth9: there is no such device\n")
    assert run("link del x") == (1, "", 'ipvsw: there is no port "x"\n')


def test_no_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([f"--socket={tmp_path}/api.sock", "show"]) == 1
    assert capsys.readouterr().err == f"ipvsw: {tmp_path}/api.sock: no daemon answers there; is ipvswd running?\n"


EVERY = (
    "link, show, address, lease, stats, watch, top, trace, doctor, web, exec, attach, detach, reload, save, completion,"
    " help"
)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (
            "",
            f"a command is missing; they are {EVERY} (see ipvsw --help)",
        ),
        (
            "x",
            f"x: no such command; they are {EVERY} (see ipvsw --help)",
        ),
        ("exec vm1", "exec: the command is missing: exec PORT -- COMMAND (see ipvsw exec --help)"),
        ("exec -- sleep 1", "exec: the name of a port is missing (see ipvsw exec --help)"),
        ("show -- x", "show: -- is for exec (see ipvsw show --help)"),
        ("attach vm1", "attach: --qmp PATH is missing (see ipvsw attach --help)"),
        ("detach vm1 --qmp", "--qmp: PATH is missing (see ipvsw --help)"),
        ("detach vm1 --qmp /q --bus b", "detach: --bus is for attach (see ipvsw detach --help)"),
        (
            "link add link eth0 name a type ipvtap kind netns",
            "link add: kind netns: type ipvtap has macvtap, tap, stream, dgram",
        ),
        ("link add link eth0 name a type ipvlan kind tap", "link add: kind tap: type ipvlan has netns"),
        ("--jsn show", "--jsn: no such option (see ipvsw --help)"),
        ("show --socket", "--socket: PATH is missing (see ipvsw --help)"),
        ("show --all", "show: --all is for stats (see ipvsw show --help)"),
        ("show a b", "show: b: one word too many (see ipvsw show --help)"),
        ("reload now", "reload: now: one word too many (see ipvsw reload --help)"),
        ("link x", "link: x: no such command; they are add, set, delete, show (see ipvsw link --help)"),
        ("link del", "link delete: the name of a port is missing (see ipvsw link delete --help)"),
        ("link add", "link add: type ipvlan is missing (see ipvsw link add --help)"),
        ("link add type ipvlan", "link add: link MASTER is missing (see ipvsw link add --help)"),
        ("link add link eth0 type ipvlan", "link add: name NAME is missing (see ipvsw link add --help)"),
        ("link add link eth0 name a", "link add: type ipvlan is missing (see ipvsw link add --help)"),
        ("link add link eth0 name a type macvlan", "link add: type macvlan: ipvsw makes ipvlan and ipvtap only"),
        ("link add link eth0 name a type", "link add: type: a word is missing after it"),
        ("link add link eth0 name a b type ipvlan", "link add: b: not understood"),
        ("link add link eth0 link eth1 name a type ipvlan", "link add: link is given twice"),
        ("link add link eth0 name a mtu x type ipvlan", "link add: mtu x: not a number"),
        ("link add link eth0 name a type ipvlan mode l4", "link add: mode l4: not one of l2, l3, l3s"),
        ("link add link eth0 name a type ipvlan bridge vepa", "link add: vepa: the flag is bridge already"),
        ("link set", "link set: the name of a port, a switch or a master is missing"),
        ("link set a type ipvlan", "link set: nothing to set: say mode MODE, or bridge, private or vepa"),
        ("link set a mode l2", "link set: type ipvlan is missing"),
        ("link set a mtu", "link set: mtu: a word is missing after it"),
        ("link set a mtu big", "link set: mtu big: not a number"),
        ("link set a mtu 1400 mode l2", "link set: mtu is a port's, mode and flag are the switch's"),
        ("link set a up type ipvlan", "link set: up: not understood"),
        ("completion fish", "completion: say bash or zsh"),
    ],
)
def test_not_understood(daemon: Daemon, run: Run, line: str, error: str) -> None:
    code, out, err = run(line)
    assert (code, out) == (2, "")
    assert err.startswith(f"ipvsw: {error}") and err.count("\n") == 1
    assert "--help)" in err
    assert daemon.manager.calls == []


def test_a_reader_that_stops_reading(daemon: Daemon) -> None:
    """As in `ipvsw show | head -0`."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    script = "import sys; from ipvsw.cli import main; sys.exit(main())"
    with os.fdopen(write_end, "wb") as broken:
        done = subprocess.run(
            [sys.executable, "-c", script, "--socket", str(daemon.path), "show"],
            cwd=ROOT,
            stdout=broken,
            stderr=subprocess.PIPE,
            timeout=LIMIT,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"")


# ---------------------------------------------------------------------------- words


def test_every_command_may_be_shortened() -> None:
    words = {"s": "show", "sa": "save", "st": "stats", "a": "address", "addr": "address", "r": "reload"}
    for word, command in words.items():
        assert understand([word]).command == command
    assert understand(["l"]).command == "link"
    assert understand(["l", "sho"]).command == "link show"


def test_options_stand_anywhere() -> None:
    assert vars(understand(["-j", "show", "lan"])) == vars(understand(["show", "lan", "--json"]))
    assert vars(understand(["show", "--socket=/x"])) == vars(understand(["--socket", "/x", "show"]))
    assert understand(["show"]).command == "show"
    assert understand(["stats", "-a"]).options == {"all": ""}


def test_a_namespace_that_is_called_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["link", "add", "link", "eth0", "name", "a", "netns", "7", "type", "ipvlan"]
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/run/netns/7")
    assert understand(words).port["netns"] == "7"
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    assert understand(words).port["netns"] == "pid:7"


def test_help_on_every_level(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("", *(one.name for one in COMMANDS)):
        for words in ([*command.split(), "--help"], ["-h", *command.split()], ["help", *command.split()]):
            assert cli.main(words) == 0
            captured = capsys.readouterr()
            assert (captured.out, captured.err) == (help_text(command), "")
        assert captured.out.startswith("usage: ipvsw")
        assert all(len(line) <= 100 for line in captured.out.splitlines())
    assert cli.main(["link", "help"]) == 0
    assert capsys.readouterr().out == help_text("link")


def test_every_key_of_a_port_is_a_word_with_help() -> None:
    lines = {line.split()[0]: line for line in help_text("link add").splitlines() if line.startswith("  ")}
    for key in PORT:
        line = lines[key.word or key.name]
        assert key.operand in line
        assert ("  kind " in line[2:]) == (set(key.kinds) < set(MACHINES))


def test_each_kind_of_value_is_read_from_its_word() -> None:
    line = "link add link eth0 name a type ipvtap kind tap mtu 1400 learn on owner 1000 group kvm allow @kvm allow 5"
    assert understand(line.split()).port == {
        "master": "eth0", "name": "a", "kind": "tap", "mtu": 1400, "learn": True, "owner": 1000, "group": "kvm",
        "allow": ["@kvm", 5],
    }  # fmt: skip


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ipvsw {__version__}\n"


def test_table() -> None:
    assert table(("A", "B", "C"), [("1", "", "x"), ("", "", "yy")]) == ["A  C", "1  x", "-  yy"]


@pytest.mark.parametrize(
    "line",
    ["--version", "{} show", "{} stats", "{} address", "{} lease", "{} -s link", "completion words {} link del "],
)
def test_starts_quickly(daemon: Daemon, line: str) -> None:
    """What is imported takes longer than the daemon's answer."""
    script = (
        "import sys; from ipvsw.cli import main; main(sys.argv[1:])\n"
        "slow = {'aiohttp', 'asyncio', 'dataclasses', 'inspect', 'ipaddress', 'msgspec', 'pyroute2', 'uvloop'}\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} & slow), file=sys.stderr)"
    )
    # Without the site's own packages, which may import whatever they like.
    argv = [sys.executable, "-S", "-c", script, *line.format(f"--socket={daemon.path}").split(" ")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=True)
    assert done.stdout and done.stderr == "\n"


# ---------------------------------------------------------------------------- completion


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", "address attach completion detach doctor exec help lease link reload save show stats top trace watch web"),
        ("s", "save show stats"),
        ("link ", "add delete help list set show"),
        ("link a", "add"),
        ("l del ", "dmz/ipvl0 ipvl1 lan/ipvl0"),
        ("link del ipvl1 ", ""),
        ("link set dev l", "lan lan/ipvl0"),
        ("link set ipvl1 ", "bridge mode mtu private type vepa"),
        ("link set ipvl1 type ", "ipvlan ipvtap"),
        ("link set ipvl1 type ipvlan mode ", "l2 l3 l3s"),
        ("link set ipvl1 type ipvlan vepa ", "mode mtu"),
        (
            "link add ",
            "address allow bridge broadcast claim connect device gateway group guard ifname index kind label learn"
            " link local mac max_addresses max_groups max_learned metric mode mtu name netns owner packets path persist"
            " private queues rate remote route type vepa",
        ),
        ("link add link e", "eth0 eth1"),
        ("link add link eth0 name x netns ", "ns0 ns1"),
        ("link add link eth0 name x address 10.0.0.2/24 a", "address allow"),
        ("link add link eth0 name x m", "mac max_addresses max_groups max_learned metric mode mtu"),
        ("link add link eth0 name x mac ", "master own"),
        ("link add link eth0 name x learn ", "off on"),
        ("lease l", "lan lan/ipvl0"),
        ("link add link eth0 name ", ""),
        ("show ", "dmz lan"),
        ("show --", "--help --json --socket --version"),
        ("stats --a", "--all"),
        ("completion ", "bash zsh"),
        ("nonsense ", ""),
        ("--socket ", ""),
    ],
)
def test_candidates(daemon: Daemon, tmp_path: Path, line: str, expected: str) -> None:
    netns, devices = tmp_path / "netns", tmp_path / "devices"
    for path in (netns / "ns0", netns / "ns1", devices / "eth0", devices / "eth1"):
        path.mkdir(parents=True)
    words = line.split(" ") if line.startswith("--socket") else ["--socket", str(daemon.path), *line.split(" ")]
    assert candidates(words, netns=str(netns), devices=str(devices)) == expected.split()


def test_candidates_without_a_daemon(tmp_path: Path) -> None:
    assert candidates(["re"]) == ["reload"]
    assert candidates([])[0] == "address"
    assert candidates([f"--socket={tmp_path}/api.sock", "show", ""]) == []


def test_completion_prints_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh"):
        assert cli.main(["completion", shell]) == 0
        assert capsys.readouterr().out == (COMPLETIONS / f"ipvsw.{shell}").read_text()
        if found := shutil.which(shell):
            subprocess.run([found, "-n", COMPLETIONS / f"ipvsw.{shell}"], check=True)


def test_bash_completes(daemon: Daemon, tmp_path: Path) -> None:
    command = tmp_path / "ipvsw"
    command.write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -c "from ipvsw.cli import *; main()" "$@"\n'
    )
    command.chmod(stat.S_IRWXU)
    script = (
        f"source {COMPLETIONS}/ipvsw.bash; COMP_WORDS=(ipvsw --socket {daemon.path} link delete '');"
        " COMP_CWORD=5; _ipvsw; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("dmz/ipvl0 ipvl1 lan/ipvl0\n", "")


# ---------------------------------------------------------------------------- manual pages


@pytest.mark.parametrize("page", ["ipvsw.8", "ipvswd.8", "ipvsw-qemu-helper.8", "ipvsw.toml.5"])
@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
def test_manual_page(page: str) -> None:
    done = subprocess.run(
        ["man", "--warnings", "-l", "--", ROOT / "man" / page],
        env={**os.environ, "MANWIDTH": "100", "LC_ALL": "C.UTF-8", "MANPAGER": "cat"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 30


def test_manual_pages_name_everything() -> None:
    tool = (ROOT / "man" / "ipvsw.8").read_text().replace("\\-", "-")
    for command in COMMANDS:
        assert command.name in tool
        assert all(option.name in tool for option in command.options)
    file = (ROOT / "man" / "ipvsw.toml.5").read_text()
    for kind in ("DaemonConfig", "SwitchConfig", "PortConfig"):
        for one in msgspec.structs.fields(getattr(sys.modules["ipvsw.model"], kind)):
            assert f"\n.B {one.name}\n" in file or one.name == "ports"
