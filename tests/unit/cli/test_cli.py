"""The command line tool against an API with a made-up daemon behind it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from ipvsw import cli
from ipvsw.config.file import parse
from ipvsw.model import Flag, Mode, PortConfig
from tests.support.patience import LIMIT
from tests.unit.cli.lines import ROOT, Run
from tests.unit.daemon.fake_manager import CONFIG, Daemon

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


_MOST = "link, show, address, lease, stats, watch, top, trace, capture, doctor, web, exec, attach, detach"
EVERY = f"{_MOST}, reload, save, completion, help"


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
