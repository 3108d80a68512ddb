"""The API over a real unix socket, with a daemon that is made up; and the client that is its other half."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from ipaddress import ip_address, ip_interface
from pathlib import Path

import msgspec
import openapi_spec_validator
import pytest

from ipvsw import client
from ipvsw.config.file import ConfigError
from ipvsw.daemon.api import bodies, operations
from ipvsw.model import Flag, PortConfig
from ipvsw.status import AddressStatus, LeaseStatus, SwitchStats, SwitchStatus
from tests.support.patience import LIMIT
from tests.unit.daemon.fake_manager import DMZ, LAN, LEASES, STATS, Daemon, refused

# ---------------------------------------------------------------------------- reading


def test_switches(api_client: client.Client) -> None:
    assert msgspec.convert(api_client.switches(), tuple[SwitchStatus, ...]) == (LAN, DMZ)
    assert msgspec.convert(api_client.switch("dmz"), SwitchStatus) == DMZ


def test_stats(api_client: client.Client) -> None:
    assert msgspec.convert(api_client.stats(), tuple[SwitchStats, ...]) == STATS


def test_leases(api_client: client.Client) -> None:
    assert msgspec.convert(api_client.leases(), tuple[LeaseStatus, ...]) == LEASES


def test_addresses(api_client: client.Client) -> None:
    expected = tuple(one for port in LAN.ports for one in port.addresses)
    assert len(expected) == 3
    assert msgspec.convert(api_client.addresses(), tuple[AddressStatus, ...]) == expected


# ---------------------------------------------------------------------------- changing


def test_add_port(daemon: Daemon, api_client: client.Client) -> None:
    answer = api_client.add_port(
        master="eth0",
        name="ipvl2",
        netns="ns2",
        addresses=["10.0.0.4/24"],
        gateway=["10.0.0.1"],
        mtu=1400,
        flag="private",
        mode=None,
    )
    assert answer["state"] == "up"
    port = PortConfig(
        name="ipvl2",
        ifname="ipvl2",
        netns="ns2",
        addresses=(ip_interface("10.0.0.4/24"),),
        gateway=(ip_address("10.0.0.1"),),
        mtu=1400,
    )
    assert daemon.manager.calls == [("add_port", "eth0", port, None, Flag.PRIVATE)]


def test_delete_port(daemon: Daemon, api_client: client.Client) -> None:
    api_client.delete_port("ipvl1")
    api_client.delete_port("dmz/ipvl0")
    assert daemon.manager.calls == [("delete_port", "lan", "ipvl1"), ("delete_port", "dmz", "ipvl0")]
    several = 'port "ipvl0" is on several switches: say which of lan/ipvl0, dmz/ipvl0'
    assert refused(api_client, "DELETE", "/v1/ports/ipvl0") == (409, several)
    assert refused(api_client, "DELETE", "/v1/ports/x") == (404, 'there is no port "x"')
    assert refused(api_client, "DELETE", "/v1/ports/dmz%2Fipvl1") == (404, 'there is no port "dmz/ipvl1"')


def test_set_mode(daemon: Daemon, api_client: client.Client) -> None:
    assert api_client.set_mode("lan", flag="vepa")["flag"] == "vepa"
    api_client.set_mode("ipvl1", mode="l2")
    api_client.set_mode("dmz/ipvl0", flag="bridge")
    assert [call[1] for call in daemon.manager.calls] == ["lan", "lan", "dmz"]
    assert refused(api_client, "PATCH", "/v1/switches/x", {"flag": "vepa"}) == (
        404,
        'there is no switch, port or master "x"',
    )


def test_reload(daemon: Daemon, api_client: client.Client) -> None:
    assert api_client.reload() == ["attach lan/ipvl2", "detach lan/ipvl1"]
    daemon.manager.error = ConfigError("switch[0].mtu: unknown key")
    assert refused(api_client, "POST", "/v1/reload") == (409, "switch[0].mtu: unknown key")


# ---------------------------------------------------------------------------- refusing


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "text"),
    [
        ("GET", "/v1/switches/x", None, 404, 'there is no switch "x"'),
        ("GET", "/v2/switches", None, 404, "/v2/switches: no such path"),
        ("PUT", "/v1/switches", None, 405, "PUT /v1/switches: no such operation"),
        ("POST", "/v1/ports", None, 400, "line 1, column 1: Expecting value"),
        ("POST", "/v1/ports", [], 400, "the document: must be a table, not an array"),
        ("POST", "/v1/ports", {"name": "a"}, 400, "master: is missing"),
        (
            "POST",
            "/v1/ports",
            {"master": "eth0", "name": "a", "nets": "x"},
            400,
            "nets: unknown key; did you mean netns?",
        ),
        (
            "POST",
            "/v1/ports",
            {"master": "eth0", "name": "a", "mode": 3},
            400,
            "mode: must be a string, not an integer",
        ),
        (
            "POST",
            "/v1/ports",
            {"master": "eth0", "name": "a", "addresses": ["10.0.0.2/24", "10.0.0.300/24"]},
            400,
            'addresses[1]: "10.0.0.300/24" is not an IPv4 or IPv6 interface address',
        ),
        ("PATCH", "/v1/switches/lan", {}, 400, "mode or flag is missing"),
        ("PATCH", "/v1/switches/lan", {"flag": "x"}, 400, 'flag: "x" is not valid; use bridge, private or vepa'),
    ],
)
def test_refused(
    daemon: Daemon, api_client: client.Client, method: str, target: str, body: object, status: int, text: str
) -> None:
    assert refused(api_client, method, target, body) == (status, text)
    assert daemon.manager.calls == []


def test_refused_by_the_daemon(daemon: Daemon, api_client: client.Client) -> None:
    daemon.manager.refuse("eth9: there is no such device")
    assert refused(api_client, "POST", "/v1/ports", {"master": "eth9", "name": "a"}) == (
        409,
        "eth9: there is no such device",
    )


def test_a_fault_of_ours_is_json_too(daemon: Daemon, api_client: client.Client) -> None:
    daemon.manager.error = OSError(28, "No space left on device")
    status, text = refused(api_client, "POST", "/v1/reload")
    assert (status, text) == (500, "OSError: [Errno 28] No space left on device")


def test_too_large_a_body_is_refused(api_client: client.Client) -> None:
    body = {"master": "eth0", "name": "a", "addresses": ["10.0.0.2/24"] * 100_000}
    assert refused(api_client, "POST", "/v1/ports", body)[0] == 413


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_others_may_read_only() -> None:
    """Another user, let in by the file's mode."""
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[2]); from ipvsw.client import *\n"
        "c = Client(sys.argv[1]); c.switches()\n"  # so that all is imported that nobody else may read
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); print(len(c.switches()))\n"
        "for change in (c.reload, lambda: c.delete_port('ipvl1'), lambda: c.set_mode('lan', flag='vepa')):\n"
        "    try: change()\n"
        "    except ApiError as error: print(error.status)\n"
    )
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o711)
        path = Path(directory, "api.sock")
        daemon = Daemon(path)
        try:
            path.chmod(0o666)
            source = Path(client.__file__).parents[1]
            done = subprocess.run(
                [sys.executable, "-c", script, path, source], capture_output=True, text=True, timeout=LIMIT, check=False
            )
            assert (done.stdout.split(), done.stderr) == (["2", "403", "403", "403"], "")
            assert daemon.manager.calls == []
        finally:
            daemon.close()


# ---------------------------------------------------------------------------- the document


def test_openapi_is_valid_and_whole(api_client: client.Client) -> None:
    document = api_client.request("GET", "/openapi.json")
    openapi_spec_validator.validate(document)
    assert document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]
    assert {"SwitchStatus", "PortStatus", "SwitchStats", "AddPort"} <= set(schemas)
    assert set(schemas["HostAccess"]["enum"]) == {"none", "to-host", "from-host", "both"}
    assert set(schemas["L3Output"]["enum"]) == {"fast", "host"}
    assert {"host", "routed"} <= set(schemas["SwitchStats"]["properties"])
    listed = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert listed == {(route.method, route.path) for route in operations.ROUTES}


def test_the_documentation_lists_every_operation() -> None:
    text = (Path(client.__file__).parents[1] / "docs/reference/api.md").read_text()
    listed = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert sorted(listed) == sorted(f"{route.method} {route.path}" for route in operations.ROUTES)


def test_a_port_to_attach_has_every_key_of_a_configured_one() -> None:
    attach = {one.name for one in msgspec.structs.fields(bodies.AddPort)}
    assert attach == {one.name for one in msgspec.structs.fields(PortConfig)} | {"master", "mode", "flag"}
