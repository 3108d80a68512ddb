"""Model -> TOML -> model: nothing is lost."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from msgspec import structs

from ipvsw.config.file import ConfigError, parse, read_document
from ipvsw.config.keys import DAEMON, KINDS, SWITCH, Key
from ipvsw.config.port_keys import PORT
from ipvsw.config.write import write
from ipvsw.model import Config, Device, Export, Flag, Guard, HostAccess, Io, Kind, L3Output, MacSource, Mode, Persist
from tests.unit.config.test_config import EVERYTHING

NAMES = st.text(st.sampled_from("ab0-_.@\"'\\#=[]é☃"), min_size=1, max_size=6)
IFNAMES = st.text(st.sampled_from("ab0-_."), min_size=1, max_size=15)
PATHS = NAMES.map("/run/{}".format)
WHO = NAMES | NAMES.map("@{}".format) | st.integers(0, 0xFFFFFFFE)
NETNS = IFNAMES | PATHS | st.integers(1, 99999).map("pid:{}".format)
V4 = st.ip_addresses(v=4).map(str)
V6 = st.ip_addresses(v=6).map(str)
INTERFACES = st.tuples(V4, st.integers(0, 32)).map("{0[0]}/{0[1]}".format) | st.tuples(V6, st.integers(0, 128)).map(
    "{0[0]}/{0[1]}".format
)
PREFIXES = st.ip_addresses(v=4, network="10.0.0.0/8").map("{}/32".format) | st.just("2001:db8::/32")
ROUTES = ("default via 10.0.0.1", "10.0.0.0/8", "10.9.0.0/16 metric 5", "2001:db8::/32 via fe80::1 metric 4294967295")
GUARDS = st.sampled_from(["strict", "off"]) | st.lists(st.sampled_from(list(map(str, Guard))), unique=True)

# What each key may have, as TOML gives it. A new key needs a line here.
DAEMON_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "socket": PATHS,
    "users_socket": PATHS,
    "state": PATHS,
    "workers": st.integers(1, 64),
    "io": st.sampled_from(list(map(str, Io))),
    "busy_poll": st.integers(0, 1000),
    "coalesce": st.booleans(),
    "allow": st.lists(WHO, max_size=3),
    "metrics": st.sampled_from(["127.0.0.1:9417", "[::1]:1", "127.9.9.9:65535"]),
}
SWITCH_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "name": NAMES,
    "master": IFNAMES,
    "netns": NETNS,
    "mode": st.sampled_from(list(map(str, Mode))),
    "flag": st.sampled_from(list(map(str, Flag))),
    "l3_output": st.sampled_from(list(map(str, L3Output))),
    "host_access": st.sampled_from(list(map(str, HostAccess))),
    "multicast": st.lists(st.sampled_from(["224.0.0.251", "239.255.255.250", "ff02::fb"]), unique=True),
    "export": st.sampled_from(list(map(str, Export))),
    "guard": GUARDS,
    "device": st.sampled_from(list(map(str, Device))),
    "users": st.lists(WHO, max_size=3),
}
PORT_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "name": NAMES | IFNAMES,
    "ifname": IFNAMES,
    "netns": NETNS,
    "kind": st.sampled_from(list(map(str, KINDS))),
    "device": st.sampled_from(list(map(str, Device))),
    "mac": st.sampled_from([*map(str, MacSource), "l2macnat", "02:00:00:00:00:11"]),
    "addresses": st.lists(INTERFACES, max_size=3),
    "gateway": st.lists(V4 | V6, max_size=2),
    "metric": st.integers(1, 0xFFFFFFFF),
    "routes": st.lists(st.sampled_from(ROUTES), max_size=3, unique=True),
    "dhcp": st.booleans(),
    "mtu": st.integers(1280, 65535),
    "index": st.integers(1, (1 << 31) - 1),
    "queues": st.integers(1, 16),
    "owner": WHO,
    "group": WHO,
    "path": PATHS,
    "connect": PATHS,
    "local": PATHS,
    "remote": PATHS,
    "allow": st.lists(WHO, max_size=3),
    "learn": st.booleans(),
    "max_learned": st.integers(1, 1024),
    "claim": st.sampled_from(["any", "on-link"]) | st.lists(PREFIXES, max_size=2),
    "rate": st.sampled_from(["off", "1gbit", "1000mbit/off", "64kbit/2.5gbit"]),
    "packets": st.sampled_from(["off", "200k", "1500/off", "1m/7"]),
    "broadcast": st.sampled_from(["off", "500/s", "2k/s", "7"]),
    "max_groups": st.integers(1, 1 << 20),
    "max_addresses": st.integers(0, 1 << 20),
    "guard": GUARDS,
    "label": st.text(st.sampled_from("ab:/_"), min_size=1, max_size=6),
    "persist": st.sampled_from([*map(str, Persist), True, False]),
}
TABLES = [(DAEMON, DAEMON_VALUES), (SWITCH, SWITCH_VALUES), (PORT, PORT_VALUES)]


def table(values: dict[str, st.SearchStrategy[Any]], *required: str) -> st.SearchStrategy[dict[str, Any]]:
    optional = {name: strategy for name, strategy in values.items() if name not in required}
    return st.fixed_dictionaries({name: values[name] for name in required}, optional=optional)


def fitting_switch(found: dict[str, Any]) -> dict[str, Any]:
    """A switch without the keys that its mode does not have."""
    kept = dict(found)
    if kept.get("mode", Mode.L2) == Mode.L2:
        kept.pop("multicast", None)
        kept.pop("export", None)
    return kept


def fitting(found: dict[str, Any]) -> dict[str, Any]:
    """A port without the keys that its kind does not have, or that go with others it lacks."""
    kind = Kind(found.get("kind", Kind.NETNS))
    kept = {key.name: found[key.name] for key in PORT if key.name in found and kind in key.kinds}
    if not kept.get("learn"):
        kept.pop("max_learned", None)
    if not kept.get("netns") or kept.get("device") == Device.VETH:
        kept.pop("index", None)
    if "path" in kept:
        kept.pop("connect", None)
    if not {"local", "remote"} <= kept.keys():
        kept.pop("local", None)
        kept.pop("remote", None)
    if kind in (Kind.STREAM, Kind.DGRAM) and not {"path", "local"} & kept.keys():
        kept.pop("owner", None)
        kept.pop("group", None)
    return kept


PORTS = table(PORT_VALUES, "name").map(fitting)
DOCUMENTS = st.fixed_dictionaries(
    {"daemon": table(DAEMON_VALUES)},
    optional={
        "switch": st.lists(
            st.tuples(table(SWITCH_VALUES, "master"), st.lists(PORTS, max_size=3)).map(
                lambda pair: fitting_switch(pair[0]) | {"port": pair[1]}
            ),
            max_size=2,
        )
    },
)


@pytest.mark.parametrize(("keys", "values"), TABLES)
def test_every_key_is_tried(keys: tuple[Key, ...], values: dict[str, Any]) -> None:
    assert {key.name for key in keys} == values.keys()


@settings(max_examples=300, suppress_health_check=list(HealthCheck), deadline=None)
@given(DOCUMENTS)
def test_what_is_written_reads_the_same(document: dict[str, Any]) -> None:
    try:
        config = read_document(document)
    except ConfigError:
        assume(False)
    text = write(config)
    assert parse(text) == config
    assert write(parse(text)) == text


@pytest.mark.parametrize("key", PORT, ids=lambda key: key.name)
@settings(max_examples=20, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_every_key_of_a_port_is_written(key: Key, data: st.DataObject) -> None:
    """By itself, so that each is seen in a configuration that is valid."""
    kind = data.draw(st.sampled_from(key.kinds))
    found = {"name": "a", "kind": str(kind), key.name: data.draw(PORT_VALUES[key.name])}
    if key.name in ("owner", "group") and kind in (Kind.STREAM, Kind.DGRAM):
        found |= {"path": "/p"} if kind is Kind.STREAM else {"local": "/l", "remote": "/r"}
    found |= {"local": {"remote": "/r"}, "remote": {"local": "/l"}, "max_learned": {"learn": True}}.get(key.name, {})
    found |= {"netns": "ns0"} if key.name == "index" else {}
    if key.name == "gateway":
        found["addresses"] = ["192.0.2.1/24", "2001:db8::1/64"]
    try:
        config = read_document({"switch": [{"master": "m0", "port": [found]}]})
    except ConfigError:
        assume(False)
    assert parse(write(config)) == config


def test_defaults_are_left_out() -> None:
    assert write(Config()) == ""
    ports = "[[switch.port]]\nname = 'a'\nkind = 'tap'\nmac = 'own'\n"
    text = write(parse(f"[[switch]]\nmaster = 'm0'\nmode = 'l2'\n{ports}"))
    assert " ".join(text.split()) == '[[switch]] name = "m0" master = "m0" [[switch.port]] name = "a" kind = "tap"'


def test_a_switch_that_was_set_to_l2_is_written_without_its_groups() -> None:
    """Which would be a mistake there."""
    config = parse("[[switch]]\nmaster = 'm0'\nmode = 'l3'\nmulticast = ['224.0.0.251', 'FF02::FB']\n")
    assert 'multicast = [\n    "224.0.0.251",\n    "ff02::fb",\n]' in write(config)
    set_to_l2 = structs.replace(config, switches=(structs.replace(config.switches[0], mode=Mode.L2),))
    assert parse(write(set_to_l2)) == parse("[[switch]]\nmaster = 'm0'\n")


def test_the_example() -> None:
    config = parse(EVERYTHING)
    assert parse(write(config)) == config
    with open(os.path.join(os.path.dirname(__file__), "../../../contrib/ipvsw.toml")) as file:
        config = parse(file.read())
    assert parse(write(config)) == config
