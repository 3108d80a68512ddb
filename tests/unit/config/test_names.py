"""PORT and SWITCH/PORT."""

from __future__ import annotations

import pytest

from ipvsw.config.names import find_port, find_ports, find_switch, short_names
from ipvsw.model import NotFound, Refused

SWITCHES = {"lan": ["a", "b", "c@."], "dmz": ["a", "lan"]}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("b", [("lan", "b")]),
        ("a", [("lan", "a"), ("dmz", "a")]),
        ("dmz/a", [("dmz", "a")]),
        ("c@.", [("lan", "c@.")]),
        ("lan", [("dmz", "lan")]),
        ("dmz/b", []),
        ("/a", []),
        ("", []),
        ("lan/", []),
    ],
)
def test_what_a_name_may_mean(name: str, found: list[tuple[str, str]]) -> None:
    assert find_ports(name, SWITCHES) == found


def test_one_port() -> None:
    assert find_port("lan/a", SWITCHES) == ("lan", "a")
    with pytest.raises(NotFound, match=r'^there is no port "x"$'):
        find_port("x", SWITCHES)
    with pytest.raises(Refused, match=r'^port "a" is on several switches: say which of lan/a, dmz/a$'):
        find_port("a", SWITCHES)


def test_a_switch_by_itself_or_by_a_port() -> None:
    masters = {"lan": "eth0", "dmz": "eth1", "dmz2": "eth1", "b2": "b"}
    assert find_switch("lan", SWITCHES, masters) == "lan"  # rather than the port of that name
    assert find_switch("b", SWITCHES, masters) == "lan"  # rather than the master of that name
    assert find_switch("eth0", SWITCHES, masters) == "lan"
    with pytest.raises(NotFound, match=r'^there is no switch, port or master "x"$'):
        find_switch("x", SWITCHES, masters)
    with pytest.raises(Refused, match="on several switches"):
        find_switch("a", SWITCHES, masters)
    with pytest.raises(Refused, match=r'^master "eth1" is of several switches: say which of dmz, dmz2$'):
        find_switch("eth1", SWITCHES, masters)


def test_short_names_mean_what_they_should() -> None:
    every = [(switch, port) for switch, ports in SWITCHES.items() for port in ports]
    short = short_names(every)
    assert short == ["lan/a", "b", "c@.", "dmz/a", "lan"]
    assert [find_port(name, SWITCHES) for name in short] == every
