"""Words of the command line: shortened, in any order, with help, completion and manual pages."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from ipvsw import __version__, cli
from ipvsw.cli.commands import COMMANDS, understand
from ipvsw.cli.complete import candidates
from ipvsw.cli.help import help_text
from ipvsw.cli.table import table
from ipvsw.config.port_keys import MACHINES, PORT
from tests.support.patience import LIMIT
from tests.unit.cli.lines import ROOT
from tests.unit.daemon.fake_manager import Daemon

COMPLETIONS = Path(cli.__file__).parent / "completions"


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


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "",
            "address attach capture completion detach doctor exec help lease link reload save show stats top trace"
            " watch web",
        ),
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
            "address allow bridge broadcast claim connect device dhcp gateway group guard ifname index kind label"
            " learn link local mac max_addresses max_groups max_learned metric mode mtu name netns owner packets"
            " path persist private queues rate remote route type vepa",
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
