"""What one daemon tells the next: it means the same there, and only what is still wanted is kept."""

from __future__ import annotations

import json
from collections.abc import Iterable

import msgspec
import pytest

from ipvsw.config.file import parse
from ipvsw.daemon.state import (
    VERSION,
    Inherited,
    Moving,
    PortTables,
    Structure,
    decode,
    describe,
    encode,
    inherit,
    lasting,
)
from ipvsw.model import Config, Flag, Kind, Mode, PortConfig, Refused
from ipvsw.ports.backend import Holding, Left, Settings, held_name
from ipvsw.status import SwitchStats, Traffic
from ipvsw.switch.held import TUNNELS, MasterLeft, frame_names
from ipvsw.switch.held import held_name as held_master_name
from ipvsw.switch.hostport import HostLeft

FILE = """
[[switch]]
name = "lan"
master = "eth0"

[[switch.port]]
name = "a"
netns = "ns1"
addresses = ["10.0.0.1/24"]

[[switch.port]]
name = "b"
netns = "ns2"
queues = 2
"""
ADDED = """
[[switch.port]]
name = "c"
netns = "ns3"
"""


def left(port: PortConfig, first_fd: int) -> Left:
    settings = Settings(port, b"\2\0\0\0\0\1", 1500, True, False)
    fds = {str(queue): first_fd + queue for queue in range(port.queues)}
    return Left(port.kind, settings, Holding(fds, 7, (4, 4026532000)))


def endpoints(config: Config) -> dict[str, Left]:
    found = {}
    for number, (switch, port) in enumerate((one, each) for one in config.switches for each in one.ports):
        found[f"{switch.name}/{port.name}"] = left(port, 100 + 10 * number)
    return found


def held(ports: dict[str, Left]) -> dict[str, int]:
    return {
        held_name(*name.split("/"), word): fd for name, one in ports.items() for word, fd in one.holding.fds.items()
    }


def pass_on(running: Config, before: Config, filed: Config, without: Iterable[str] = ()) -> Inherited:
    """From a daemon that ran `running`, having read `before`, to one that reads `filed`."""
    ports = endpoints(running)
    structure = decode(encode(describe(running, before, ports, {}, PortTables())), Structure)
    kept = {name: fd for name, fd in held(ports).items() if name not in without}
    counts = {switch.name: SwitchStats(name=switch.name, master=Traffic(rx_frames=5)) for switch in running.switches}
    moving = decode(encode(Moving(version=VERSION, counters=counts)), Moving)
    return inherit(filed, structure, moving, kept)


def names(inherited: Inherited) -> set[str]:
    """Of the ports that go on."""
    gone = {(switch.name, port.name) for switch in inherited.gone for port in switch.ports}
    gone |= {(switch, port.name) for switch, port in inherited.gone_ports}
    return {
        f"{switch}/{port}" for switch, ports in inherited.ports.items() for port in ports if (switch, port) not in gone
    }


def test_the_same_file_keeps_everything_as_it_was() -> None:
    config = parse(FILE)
    inherited = pass_on(config, config, config)
    assert inherited.config == config
    assert {f"{s}/{p}": one for s, ports in inherited.ports.items() for p, one in ports.items()} == endpoints(config)
    assert inherited.unwanted == {}
    assert inherited.counters["lan"].master.rx_frames == 5


def test_the_first_daemon_inherits_nothing() -> None:
    inherited = inherit(parse(FILE), decode(None, Structure), decode(None, Moving), {})
    assert inherited == Inherited(config=parse(FILE))


def test_what_was_added_at_run_time_is_kept() -> None:
    file, running = parse(FILE), parse(FILE + ADDED)
    inherited = pass_on(running, file, file)
    assert inherited.config == running
    assert names(inherited) == {"lan/a", "lan/b", "lan/c"}


def test_a_switch_that_was_made_at_run_time_is_kept() -> None:
    file = parse(FILE)
    running = parse(FILE + '[[switch]]\nmaster = "eth1"\nmode = "l3"' + ADDED)
    inherited = pass_on(running, file, file)
    assert inherited.config == running
    assert names(inherited) == {"lan/a", "lan/b", "eth1/c"}


def test_what_left_the_file_goes() -> None:
    config = parse(FILE)
    inherited = pass_on(config, config, parse(FILE[: FILE.rindex("[[switch.port]]")]))
    assert names(inherited) == {"lan/a"}
    assert inherited.unwanted == {held_name("lan", "b", "0"): 110, held_name("lan", "b", "1"): 111}
    assert (inherited.gone, inherited.gone_ports) == ((), ()), "descriptors are all that there is of it"


@pytest.mark.parametrize(("old", "new"), [('master = "eth0"', 'master = "eth9"'), ('name = "lan"', 'name = "wan"')])
def test_a_switch_that_nobody_wants_is_to_be_undone_as_it_ran(old: str, new: str) -> None:
    config = parse(FILE)
    inherited = pass_on(config, config, parse(FILE.replace(old, new)))
    assert inherited.gone == config.switches
    assert set(inherited.ports["lan"]) == {"a", "b"}
    assert inherited.unwanted == {}


def test_a_port_whose_device_would_stay_is_to_be_undone() -> None:
    vm = '[[switch.port]]\nname = "vm"\nnetns = "ns3"\nkind = "tap"\n'
    config = parse(FILE + vm)
    inherited = pass_on(config, config, parse(FILE))
    assert inherited.gone_ports == (("lan", config.switches[0].ports[2]),)
    assert names(inherited) == {"lan/a", "lan/b"}
    assert inherited.unwanted == {}


def test_nothing_is_to_be_undone_of_a_switch_that_was_stopped() -> None:
    file = parse(FILE)
    structure = decode(encode(describe(file, file, {}, {}, PortTables())), Structure)
    inherited = inherit(Config(), structure, decode(None, Moving), {})
    assert inherited == Inherited(config=Config())


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        ("10.0.0.1/24", "10.0.0.9/24", {"lan/a", "lan/b"}),  # in place
        ('netns = "ns1"', 'netns = "ns9"', {"lan/b"}),  # made anew
        ("queues = 2", "queues = 3", {"lan/a"}),
        ('master = "eth0"', 'master = "eth9"', set()),
        ('name = "lan"', 'name = "wan"', set()),
    ],
)
def test_a_file_that_was_changed_keeps_what_need_not_be_made_anew(old: str, new: str, kept: set[str]) -> None:
    config, changed = parse(FILE), parse(FILE.replace(old, new))
    inherited = pass_on(config, config, changed)
    assert inherited.config == changed
    assert names(inherited) == kept


def test_a_port_of_the_file_that_takes_the_place_of_an_added_one_wins() -> None:
    running, changed = parse(FILE + ADDED), parse(FILE + ADDED.replace("ns3", "ns4"))
    inherited = pass_on(running, parse(FILE), changed)
    assert inherited.config == changed
    assert names(inherited) == {"lan/a", "lan/b"}


def test_added_ports_that_the_file_leaves_no_room_for_are_given_up(caplog: pytest.LogCaptureFixture) -> None:
    changed = parse(FILE + '[[switch.port]]\nname = "d"\nnetns = "ns3"\nifname = "c"\n')
    inherited = pass_on(parse(FILE + ADDED), parse(FILE), changed)
    assert inherited.config == changed
    assert "not restored" in caplog.text


def test_a_mode_that_was_set_at_run_time_is_kept_until_the_file_says_another() -> None:
    file = parse(FILE)
    running = parse(FILE.replace('"eth0"', '"eth0"\nmode = "l3"\nflag = "private"'))
    assert pass_on(running, file, file).config == running
    changed = parse(FILE.replace('"eth0"', '"eth0"\nmode = "l3s"'))
    switch = pass_on(running, file, changed).config.switches[0]
    assert (switch.mode, switch.flag) == (Mode.L3S, Flag.PRIVATE)


def test_a_port_whose_descriptors_are_not_all_there_is_made_anew() -> None:
    config = parse(FILE)
    inherited = pass_on(config, config, config, without=[held_name("lan", "b", "1")])
    assert names(inherited) == {"lan/a"}
    assert inherited.unwanted == {held_name("lan", "b", "0"): 110}


def test_a_newer_version_is_refused_and_says_what_to_do() -> None:
    newer = json.dumps({"version": VERSION + 1, "running": 7}).encode()
    with pytest.raises(Refused, match=f"newer ipvswd .state version {VERSION + 1}, .*--cleanup"):
        decode(newer, Structure)


def test_fields_that_are_unknown_or_missing_are_no_fault() -> None:
    content = json.loads(encode(describe(parse(FILE), parse(FILE), endpoints(parse(FILE)), {}, PortTables())))
    content["another"] = content["endpoints"]["lan/a"]["another"] = [1]
    assert decode(json.dumps(content).encode(), Structure).endpoints.keys() == {"lan/a", "lan/b"}
    assert decode(b'{"version": 1}', Structure) == Structure(version=1)
    assert decode(b'{"version": 0}', Moving).counters == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": "x"}', b'{"version": 1, "endpoints": {"a": 1}}'])
def test_what_cannot_be_read_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(Refused) as refused:
        decode(content, Structure)
    assert "\n" not in str(refused.value)


def pass_on_master(master: MasterLeft, fds: dict[str, int], filed: str = FILE) -> Inherited:
    structure = decode(encode(describe(parse(FILE), parse(FILE), {}, {"lan": master}, PortTables())), Structure)
    return inherit(parse(filed), structure, Moving(version=VERSION), fds)


def test_a_master_is_passed_on_with_where_its_reader_stopped() -> None:
    groups = frozenset([b"\x33\x33\0\0\0\x01"])
    master = MasterLeft(7, (4, 77), (40,), (2048, 2048), (5,), groups, HostLeft(41, 9))
    (name,) = frame_names("lan", 1)
    inherited = pass_on_master(master, {name: 40, held_master_name("lan", "host"): 41, "port-x": 1})
    assert inherited.masters == {"lan": master}
    assert inherited.unwanted == {"port-x": 1}


def test_a_masters_tap_for_tunnels_is_passed_on_with_it() -> None:
    """A daemon that knows of none leaves none, and drops what it does not know."""
    master = MasterLeft(7, (4, 77), (40,), (2048, 2048), tunnels=42)
    (name,) = frame_names("lan", 1)
    fds = {name: 40, held_master_name("lan", TUNNELS): 42}
    inherited = pass_on_master(master, fds)
    assert (inherited.masters, inherited.unwanted) == ({"lan": master}, {})
    inherited = pass_on_master(master, fds, "[daemon]\nworkers = 2\n" + FILE)
    assert (inherited.masters, inherited.unwanted) == ({}, fds)


def test_of_another_master_or_number_of_workers_nothing_is_passed_on() -> None:
    master = MasterLeft(7, (4, 77), (40,), (2048, 2048))
    (name,) = frame_names("lan", 1)
    assert pass_on_master(master, {name: 40}).masters
    inherited = pass_on_master(master, {name: 40}, "[daemon]\nworkers = 2\n" + FILE)
    assert (inherited.masters, inherited.unwanted) == ({}, {name: 40})
    inherited = pass_on_master(master, {name: 40}, FILE.replace('master = "eth0"', 'master = "eth9"'))
    assert [one.master for one in inherited.gone] == ["eth0"]
    assert inherited.masters == {"lan": master}, "it is undone first"
    assert pass_on_master(master, {}).masters == {}


def test_tables_of_ports_are_made_once_while_a_port_is_the_same() -> None:
    tables = PortTables()
    (one, two), (again, _) = parse(FILE).switches[0].ports, parse(FILE).switches[0].ports
    tables.renew()
    written = tables.write(one)
    tables.renew()
    assert tables.write(again) is written
    assert tables.write(two) is not written
    other = msgspec.structs.replace(one, ifname="eth7")
    assert b"eth7" in bytes(tables.write(other))
    assert tables.write(one) is written
    tables.renew()
    tables.renew()
    assert tables.write(one) is not written, "nobody has asked for it in between"


def test_names_of_held_descriptors_fit_every_store() -> None:
    name = held_name("s" * 255, "\N{SNOWMAN}" * 80, "0")
    assert name.isascii()
    assert ":" not in name
    assert len(name) < 200
    assert held_name("a", "b", "0") != held_name("a", "c", "0")


def test_kinds_are_written_as_words() -> None:
    structure = describe(parse(FILE), parse(FILE), endpoints(parse(FILE)), {}, PortTables())
    assert msgspec.json.decode(encode(structure))["endpoints"]["lan/a"]["kind"] == Kind.NETNS.value


# ---------------------------------------------------------------------------- what lasts


def test_nothing_lasts_that_the_file_has() -> None:
    config = parse(FILE)
    assert lasting(config, config) is None
    assert lasting(parse(FILE + ADDED + 'persist = "never"'), config) is None


def test_what_was_added_lasts_and_so_do_modes() -> None:
    added = parse(FILE + ADDED)
    assert lasting(added, parse(FILE)) == added
    moded = parse(FILE.replace('master = "eth0"', 'master = "eth0"\nmode = "l3"'))
    assert lasting(moded, parse(FILE)) == moded


def test_a_switch_that_was_added_lasts_with_its_ports() -> None:
    other = """
    [[switch]]
    name = "dmz"
    master = "eth1"
    [[switch.port]]
    name = "d"
    netns = "ns4"
    persist = false
    """
    assert lasting(parse(FILE + other), parse(FILE)) is None


@pytest.mark.parametrize(
    ("persist", "birth", "now", "stays"),
    [
        ("always", "netns 4:7 boot", "", True),
        ("always", "netns 4:7 boot", "netns 4:8 other", True),
        ("netns", "netns 4:7 boot", "netns 4:7 boot", True),
        ("netns", "netns 4:7 boot", "netns 4:7 other", False),
        ("netns", "netns 4:7 boot", "", False),
        ("netns", "", "netns 4:7 boot", True),  # it never had one
        ("always", "process 9 100 boot", "process 9 100 boot", True),
        ("always", "process 9 100 boot", "process 9 200 boot", False),
        ("always", "process 9 100 boot", "", False),
    ],
)
def test_what_is_gone_for_good_is_not_restored(persist: str, birth: str, now: str, stays: bool) -> None:
    before = parse(FILE)
    running = parse(f'{FILE}{ADDED}persist = "{persist}"')
    ports = endpoints(running)
    births = {"lan/c": birth, "lan/a": "process 1 1 other"}
    structure = decode(encode(describe(running, before, ports, {}, PortTables(), births)), Structure)
    inherited = inherit(before, structure, Moving(version=VERSION), held(ports), {"ns3": now}.get)  # type: ignore[arg-type]
    assert [port.name for port in inherited.config.switches[0].ports] == ["a", "b", *(["c"] if stays else [])]
    assert ("c" in inherited.ports["lan"]) == stays
    assert len(inherited.unwanted) == (0 if stays else 1)
