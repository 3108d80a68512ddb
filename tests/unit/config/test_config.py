"""The configuration file: what is read, and the one line that each mistake gets."""

from __future__ import annotations

import json
import os
import string
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvsw.config.file import FILE_MAX, ConfigError, check, load, parse, read_attach, read_document
from ipvsw.config.tables import document
from ipvsw.model import (
    Config,
    DaemonConfig,
    Export,
    Flag,
    HostAccess,
    Kind,
    L3Output,
    MacSource,
    Mode,
    PortConfig,
    Refused,
    SwitchConfig,
)
from tests.unit.config.broken_configs import BROKEN

EVERYTHING = """
[daemon]
socket = "/run/ipvsw/other.sock"
workers = 2

[[switch]]
name = "lan"
master = "eth0"
netns = "host1"
mode = "l3s"
flag = "private"
l3_output = "host"
host_access = "to-host"
export = "routes"

[[switch.port]]
name = "first"
ifname = "ipvl0"
netns = "ns0"
addresses = ["10.0.0.2/24", "fd00::2/64"]
gateway = ["192.0.2.1", "fe80::1"]
mtu = 1400

[[switch.port]]
name = "ipvl1"
netns = "pid:1234"
mac = "own"

[[switch]]
master = "eth1"
"""


def test_everything_is_read() -> None:
    assert parse(EVERYTHING) == Config(
        daemon=DaemonConfig(socket="/run/ipvsw/other.sock", workers=2),
        switches=(
            SwitchConfig(
                name="lan",
                master="eth0",
                netns="host1",
                mode=Mode.L3S,
                flag=Flag.PRIVATE,
                l3_output=L3Output.HOST,
                host_access=HostAccess.TO_HOST,
                export=Export.ROUTES,
                ports=(
                    PortConfig(
                        name="first",
                        ifname="ipvl0",
                        netns="ns0",
                        addresses=(ip_interface("10.0.0.2/24"), ip_interface("fd00::2/64")),
                        gateway=(ip_address("192.0.2.1"), ip_address("fe80::1")),
                        mtu=1400,
                    ),
                    PortConfig(name="ipvl1", ifname="ipvl1", netns="pid:1234", mac=MacSource.OWN),
                ),
            ),
            SwitchConfig(name="eth1", master="eth1"),
        ),
    )


@pytest.mark.parametrize(("word", "meant"), [("master", "master"), ("own", "own"), ("l2macnat", "own")])
def test_mac_source(word: str, meant: str) -> None:
    read = parse(f'[[switch]]\nmaster = "eth0"\n[[switch.port]]\nname = "a"\nmac = "{word}"\n')
    assert read.switches[0].ports[0].mac == meant


def test_virtual_machines_have_their_own_mac() -> None:
    text = '[[switch]]\nmaster = "eth0"\n' + "".join(
        f'[[switch.port]]\nname = "{kind}"\nkind = "{kind}"\n' for kind in ("netns", "macvtap", "tap")
    )
    assert [port.mac for port in parse(text).switches[0].ports] == ["master", "own", "own"]


def test_nothing_is_a_configuration() -> None:
    assert parse("") == Config()


def test_the_example_is_a_configuration() -> None:
    assert load(Path(__file__).resolve().parents[3] / "contrib" / "ipvsw.toml").switches[0].ports


@pytest.mark.parametrize(
    "lines",
    [
        "addresses = ['127.0.0.2/8', '224.0.0.5/32', '240.0.0.1/4']",  # the kernel's driver takes them all
        "addresses = ['10.0.0.2', 'fd00::2']",  # a host's own prefix, as with `ip addr add`
        "ifname = 'exactly15bytes_'",
        "ifname = 'eth0.10'",
        "mtu = 68",
        "mtu = 1280\naddresses = ['fd00::2/64']",
        "netns = '/proc/1234/ns/net'",
    ],
)
def test_taken(lines: str) -> None:
    read = parse(f"[[switch]]\nmaster = 'eth0'\n[[switch.port]]\nname = 'a'\n{lines}\n")
    assert len(read.switches[0].ports) == 1


EVERY_KIND = """
[[switch]]
master = "eth0"
guard = ["arp", "nd"]
port = [
  {name = "a", netns = "n", claim = ["10.0.0.0/8", "fd00::/64"], max_addresses = 0, guard = "off", queues = 2},
  {name = "b", kind = "macvtap", mac = "master", learn = true, max_learned = 3, allow = ["@kvm", 7], claim = "any"},
  {name = "c", kind = "tap", owner = "nobody", group = 9, guard = "strict"},
  {name = "much-longer-than-an-interface-name", kind = "stream", path = "/run/c"},
  {name = "e", kind = "dgram", local = "/run/l", remote = "/run/r", claim = "on-link"},
]
"""


@pytest.mark.parametrize("text", ["", EVERYTHING, EVERY_KIND])
def test_what_is_written_as_tables_is_read_as_the_same(text: str) -> None:
    config = parse(text)
    assert read_document(json.loads(json.dumps(document(config)))) == config


def test_same_names_in_different_namespaces() -> None:
    ports = "".join(
        f"[[switch.port]]\nname = 'p{at}'\nifname = 'eth0'\nnetns = 'ns{at}'\naddresses = ['10.0.{at}.2/24']\n"
        for at in range(3)
    )
    assert len(parse("[[switch]]\nmaster = 'eth0'\n" + ports).switches[0].ports) == 3


def test_same_address_on_two_switches() -> None:
    text = "".join(
        f"[[switch]]\nmaster = 'eth{at}'\n[[switch.port]]\nname = 'p{at}'\naddresses = ['10.0.0.2/24']\n"
        for at in range(2)
    )
    assert len(parse(text).switches) == 2


@pytest.mark.parametrize(("text", "line"), BROKEN, ids=[line[:60] for _, line in BROKEN])
def test_broken(text: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value) == line


def test_first_mistake_in_file_order() -> None:
    with pytest.raises(ConfigError, match=r"^switch\[0\]\.flag: "):
        parse("[[switch]]\nmaster = 'a'\nflag = 'x'\nmode = 'x'\n[daemon]\nworkers = 0\n")


def test_load(tmp_path: Path) -> None:
    file = tmp_path / "ipvsw.toml"
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value) == f"{file}: No such file or directory"
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert str(caught.value) == f"{tmp_path}: not a regular file"
    for endless in ("/dev/zero", "/dev/tty"):
        with pytest.raises(ConfigError, match=r"not a regular file|No such"):
            load(endless)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="not a regular file"):
        load(tmp_path / "fifo")
    with file.open("wb") as sparse:
        sparse.truncate(FILE_MAX + 1)
    with pytest.raises(ConfigError, match="larger than 64 MiB"):
        load(file)
    file.write_bytes(b"[daemon]\n# \xff\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value) == f"{file}: not UTF-8 at byte 11"
    file.write_text(EVERYTHING)
    assert load(file) == parse(EVERYTHING)


def test_errors_are_refusals() -> None:
    with pytest.raises(Refused):
        parse("[")


def test_check_names_switches_and_ports() -> None:
    ports = tuple(
        PortConfig(name=name, ifname=name, netns="", addresses=(ip_interface(f"10.0.0.2/{prefix}"),))
        for name, prefix in (("a", 24), ("b", 16))
    )
    with pytest.raises(ConfigError) as caught:
        check(Config(switches=(SwitchConfig(name="lan", master="eth0", ports=ports),)))
    assert str(caught.value) == 'lan/b.addresses[0]: the address "10.0.0.2" is already used by port lan/a'


def test_attach_request() -> None:
    body = {"master": "eth0", "name": "a", "flag": "vepa", "addresses": ["10.0.0.2/24"]}
    port = PortConfig(name="a", ifname="a", netns="", addresses=(ip_interface("10.0.0.2/24"),))
    assert read_attach(body) == ("eth0", port, None, Flag.VEPA)
    for broken, line in (
        ({"name": "a"}, "master: is missing"),
        ({"master": "eth0"}, "name: is missing"),
        ({"master": "eth0", "name": "a", "mtu": None}, "mtu: must be an integer, not null"),
        ({"master": "eth0", "name": "a", "addresses": [1]}, "addresses[0]: must be a string, not an integer"),
        ([], "the document: must be a table, not an array"),
    ):
        with pytest.raises(ConfigError) as caught:
            read_attach(broken)
        assert str(caught.value) == line


# Keys and texts that reach deep, so that random documents do not all end at the first check.
KEYS = ["daemon", "switch", "port", "name", "ifname", "master", "netns", "mode", "flag", "addresses", "gateway", "mtu"]
KEYS += ["l3_output", "host_access", "export"]
WORDS = ["eth0", "ns0", "pid:1", "/run/netns/ns0", "l2", "vepa", "10.0.0.2/24", "fd00::1", "::", "10.0.0.1", "lo", ""]
SCALARS = st.one_of(
    st.sampled_from(WORDS),
    st.text(max_size=20),
    st.text(string.digits + "abcdef:./%", max_size=20),
    st.integers(),
    st.integers(min_value=10**4000),
    st.booleans(),
    st.floats(),
    st.dates(),
    st.datetimes(),
    st.times(),
)
NAMES = st.one_of(st.sampled_from([*KEYS, "socket", "workers"]), st.text(max_size=8))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=6)),
    max_leaves=20,
)


def _some(required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {key: st.one_of(likely, VALUES) for key, likely in required.items()},
        optional={key: st.one_of(likely, VALUES) for key, likely in optional.items()},
    )


ADDRESSES = st.lists(st.one_of(st.ip_addresses().map(str), st.sampled_from(WORDS)), max_size=3)
PORTS = _some(
    {"name": st.sampled_from("abc")},
    {
        "ifname": st.sampled_from("abc"),
        "netns": st.sampled_from(WORDS),
        "addresses": ADDRESSES,
        "gateway": ADDRESSES,
        "mtu": st.integers(60, 70000),
        "kind": st.sampled_from(list(Kind)),
        "mac": st.sampled_from(list(MacSource)),
    },
)
SWITCHES = _some(
    {"master": st.sampled_from(["eth0", "eth1"])},
    {"name": st.sampled_from("ab"), "flag": st.sampled_from(list(Flag)), "port": st.lists(PORTS, max_size=3)},
)
DOCUMENTS = st.one_of(
    st.dictionaries(NAMES, VALUES, max_size=6),
    _some({"switch": st.lists(SWITCHES, max_size=3)}, {"daemon": _some({}, {"workers": st.integers()})}),
)


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS)
def test_any_document_is_read_or_refused_in_one_line(document: dict[str, Any]) -> None:
    try:
        read = read_document(document)
    except ConfigError as error:
        line = str(error)
        assert line and len(line.splitlines()) == 1
        assert ": " in line
    else:
        check(read)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        parse(text)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1
