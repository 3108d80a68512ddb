"""The CNI plugin, as runtimes start it: every requirement of the specification that it has to meet, each with the code
that it gives; and the IPAM plugins that it starts, the real ones."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.plugins.cni import FAILS, REAL, VERSIONS, Cni
from tests.support.patience import until
from tests.support.running import ROOT, Daemon, switch
from tests.support.topology import WIRE4, WIRE6, Lab, run


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cni]:
    if not REAL.is_dir():
        pytest.skip("the reference CNI plugins are not installed (Debian: containernetworking-plugins)")
    with Lab(2) as lab, Daemon(switch("m0", lab.host), home=lab.home, keeps=True) as daemon:
        daemon.wait()
        yield Cni(lab, daemon, tmp_path_factory.mktemp("cni"))


@pytest.fixture
def cni(setting: Cni) -> Iterator[Cni]:
    """Nothing is attached and nothing leased, before and after."""
    yield setting
    setting.daemon.call("DELETE", "/v1/labels/cni")
    for path in (setting.directory / "leases").glob("net/[1f]*"):
        path.unlink()
    assert not setting.ports()
    assert setting.link() is None


# ---------------------------------------------------------------------------- requirements, each with its code


@pytest.mark.parametrize("what", FAILS)
def test_what_fails_has_its_code_and_leaves_nothing(cni: Cni, what: str) -> None:
    verb, change, environment, code = FAILS[what]
    config = change if isinstance(change, str) else cni.config(**change)
    assert cni.failed(verb, config, **environment) == code
    assert not cni.ports()


@pytest.mark.parametrize("version", VERSIONS)
def test_answers_have_the_version_that_was_asked(cni: Cni, version: str) -> None:
    """And its form: `version` of an address until 0.4.0, `mtu` of an interface from 1.1.0."""
    ipam = cni.host_local() if version != "1.1.0" else None  # that of Debian 12 knows 1.0.0
    answer = cni.done("ADD", cni.config(cniVersion=version, ipam=ipam))
    assert answer["cniVersion"] == version
    assert ("mtu" in answer["interfaces"][0]) == (version == "1.1.0")
    assert all(("version" in one) == (version < "1") for one in answer["ips"])
    cni.done("DEL", cni.config(cniVersion=version, ipam=ipam))


def test_versions_are_told_whatever_is_asked(cni: Cni) -> None:
    everything = {"cniVersion": "0.9.9", "supportedVersions": VERSIONS}
    assert cni.done("VERSION", {"cniVersion": "0.9.9"}, CNI_NETNS="dummy") == everything
    assert cni.done("VERSION", "", CNI_CONTAINERID=None, CNI_NETNS=None)["supportedVersions"] == VERSIONS


# ---------------------------------------------------------------------------- attachments


def test_a_container_from_add_to_del(cni: Cni) -> None:
    config = cni.config(ipam=cni.host_local(), dns={"nameservers": ["10.1.0.254"]})
    answer = cni.done("ADD", config)
    (interface,) = answer["interfaces"]
    link = cni.link()
    assert link is not None
    assert interface == {"name": "eth0", "mac": link["address"], "sandbox": cni.netns}
    assert [one["interface"] for one in answer["ips"]] == [0, 0]
    assert [one["gateway"] for one in answer["ips"]] == [WIRE4, WIRE6]
    assert answer["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    assert answer["dns"] == {"nameservers": ["10.1.0.254"]}
    assert [one["address"].split("/")[0] for one in answer["ips"]] == cni.leased()
    for one in answer["ips"]:
        cni.lab.reachable(cni.lab.wire, one["address"].split("/")[0])
    assert f"default via {WIRE4}" in cni.lab.ip(cni.lab.ports[0], "route")
    assert f"default via {WIRE6}" in cni.lab.ip(cni.lab.ports[0], "-6", "route")
    assert cni.ports()[0]["label"] == "cni:net:c1:eth0"
    assert cni.done("CHECK", config | {"prevResult": answer}) is None
    assert cni.done("DEL", config | {"prevResult": answer}) is None
    assert cni.link() is None
    assert not cni.leased()
    cni.done("DEL", config)  # again


def test_del_comes_after_the_namespace_without_a_result(cni: Cni) -> None:
    """As containerd's last DEL, and that of a container that never was."""
    cni.lab.add(f"{cni.lab.prefix}-gone")
    config = cni.config(ipam=cni.host_local())
    cni.done("ADD", config, CNI_NETNS=f"/run/netns/{cni.lab.prefix}-gone")
    run("ip", "netns", "del", f"{cni.lab.prefix}-gone")
    until(lambda: not cni.ports(), "the port has gone with its namespace")
    assert len(cni.leased()) == 2
    cni.done("DEL", config, CNI_NETNS="")
    assert not cni.leased()
    cni.done("DEL", config, CNI_NETNS=None, CNI_CONTAINERID="never")
    no_daemon = cni.config(ipam=cni.host_local(), ipvsw={"socket": "/run/none.sock"})
    cni.done("DEL", no_daemon, CNI_NETNS="/run/netns/none")


def test_an_add_that_fails_gives_its_addresses_back(cni: Cni) -> None:
    config = cni.config(ipam=cni.host_local())
    first = cni.done("ADD", config)
    leased = cni.leased()
    taken = {"type": "static", "addresses": [{"address": first["ips"][0]["address"]}]}
    for ipam in (cni.host_local(), taken):
        other = cni.config(ipam=ipam, name="net" if ipam is taken else "other", mtu=70000)
        assert cni.failed("ADD", other, CNI_CONTAINERID="c2", CNI_NETNS=f"/run/netns/{cni.lab.ports[1]}") == 100
    assert not list((cni.directory / "leases/other").glob("[1f]*"))
    assert cni.failed("ADD", cni.config(ipam=taken), CNI_CONTAINERID="c2", CNI_IFNAME="eth1") == 100
    assert cni.leased() == leased
    assert len(cni.ports()) == 1


def test_an_address_that_the_host_has_is_refused(cni: Cni) -> None:
    ipam = {"type": "static", "addresses": [{"address": "10.1.0.1/16"}]}
    assert cni.failed("ADD", cni.config(ipam=ipam)) == 100
    assert not cni.ports()


def test_a_runtime_that_has_forgotten_attaches_again(cni: Cni) -> None:
    """The same container in another namespace, without a DEL; but not twice in one."""
    config = cni.config()
    cni.done("ADD", config)
    assert cni.failed("ADD", config) == 100
    assert cni.link() is not None
    cni.done("ADD", config, CNI_NETNS=f"/run/netns/{cni.lab.ports[1]}")
    assert cni.link() is None
    assert cni.link(1) is not None
    assert len(cni.ports()) == 1


def test_check_finds_what_is_wrong(cni: Cni) -> None:
    config = cni.config(ipam=cni.host_local())
    answer = cni.done("ADD", config)
    checked = config | {"prevResult": answer}
    cni.done("CHECK", checked)
    other_mac = {**answer, "interfaces": [{**answer["interfaces"][0], "mac": "02:00:00:00:99:99"}]}
    other_address = {**answer, "ips": [{**answer["ips"][0], "address": "10.1.9.9/16"}]}
    for wrong in (other_mac, other_address):
        assert cni.failed("CHECK", config | {"prevResult": wrong}) == 100
    cni.lab.ip(cni.lab.ports[0], "link", "set", "eth0", "down")
    until(lambda: cni.ports()[0]["state"] == "down", "the port is down")
    assert cni.failed("CHECK", checked) == 100
    cni.lab.ip(cni.lab.ports[0], "link", "set", "eth0", "up")
    until(lambda: cni.call("CHECK", checked)[0] == 0, "all is well again", every=0.2)


def test_status_and_collection(cni: Cni) -> None:
    """For both the variables of an attachment are there, and empty."""
    config = cni.config(cniVersion="1.1.0")
    empty: dict[str, str | None] = dict.fromkeys(("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"), "")
    assert cni.done("STATUS", config, **empty) is None
    for number, container in enumerate(("c1", "c2")):
        cni.done("ADD", config, CNI_CONTAINERID=container, CNI_NETNS=f"/run/netns/{cni.lab.ports[number]}")
    cni.done("ADD", cni.config(name="net2"), CNI_CONTAINERID="c2", CNI_IFNAME="eth1")
    valid = [{"containerID": "c2", "ifname": "eth0"}]
    assert cni.done("GC", config | {"cni.dev/valid-attachments": valid}, **empty) is None
    assert {port["label"] for port in cni.ports()} == {"cni:net:c2:eth0", "cni:net2:c2:eth1"}
    cni.done("GC", config | {"cni.dev/attachments": []}, **empty)
    assert {port["label"] for port in cni.ports()} == {"cni:net2:c2:eth1"}


# ---------------------------------------------------------------------------- what configurations say


def test_a_configuration_of_ipvlan_with_the_type_alone_changed(cni: Cni) -> None:
    """As its documentation has it, but for the socket of this daemon."""
    ipvlan = {"name": "net", "type": "ipvlan", "master": "m0", "mode": "l2", "mtu": 1400}
    ipam = {"type": "host-local", "subnet": "10.1.0.0/16", "dataDir": str(cni.directory / "leases")}
    answer = cni.done(
        "ADD", cni.config(**{**ipvlan, "type": "ipvsw"}, cniVersion="0.3.1", ipam=ipam, linkInContainer=False)
    )
    link = cni.link()
    assert link is not None and link["mtu"] == 1400
    assert answer["ips"][0]["version"] == "4"
    cni.lab.reachable(cni.lab.ports[0], WIRE4)


def test_options_of_ours_and_of_the_runtime(cni: Cni) -> None:
    config = cni.config(
        ipvsw={"flag": "private", "guard": "strict", "metric": 77, "routes": ["203.0.113.0/24"]},
        ipam=cni.host_local(),
        runtimeConfig={
            "mac": "02:00:00:00:77:01",
            "ips": ["10.1.3.77/16"],
            "bandwidth": {"ingressRate": 2000000, "ingressBurst": 1, "egressRate": 1000500, "egressBurst": 1},
        },
    )
    answer = cni.done("ADD", config, CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAME=x")
    assert answer["interfaces"][0]["mac"] == "02:00:00:00:77:01"
    assert "10.1.3.77/16" in [one["address"] for one in answer["ips"]]
    (port,) = cni.ports()
    assert port["limits"]["rate"] == "1001kbit/2mbit"
    assert "ip-source" in port["guards"]
    assert cni.daemon.show()[0]["flag"] == "private"
    routes = cni.lab.ip(cni.lab.ports[0], "route")
    assert "metric 77" in routes and "203.0.113.0/24 dev eth0" in routes
    cni.lab.reachable(cni.lab.wire, "10.1.3.77")
    cni.daemon.cli("link", "set", "lan", "type", "ipvlan", "bridge")


def test_routes_of_the_ipam_plugin(cni: Cni) -> None:
    routes = [{"dst": "198.51.100.0/24"}, {"dst": "203.0.113.0/24", "gw": "10.1.0.9"}, {"dst": "2001:db8::/32"}]
    ipam = {
        "type": "static",
        "addresses": [{"address": "10.1.3.5/16", "gateway": WIRE4}, {"address": "fd00:1::35/64", "gateway": WIRE6}],
        "routes": routes,
        "dns": {"search": ["example.org"]},
    }
    answer = cni.done("ADD", cni.config(ipam=ipam))
    assert answer["dns"] == {"search": ["example.org"]}
    four, six = (cni.lab.ip(cni.lab.ports[0], family, "route") for family in ("-4", "-6"))
    assert f"198.51.100.0/24 via {WIRE4} dev eth0" in four
    assert "203.0.113.0/24 via 10.1.0.9 dev eth0" in four
    assert f"2001:db8::/32 via {WIRE6} dev eth0" in six
    assert "default" not in four + six.replace("default via fe80", "")


def test_in_a_chain(cni: Cni) -> None:
    """Behind another plugin its result is kept; before one, that one works on ours; without IPAM the addresses of the
    plugin before are taken over, as by ipvlan."""
    before = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "lo", "sandbox": cni.netns}],
        "ips": [{"address": "127.0.0.1/8", "interface": 0}],
        "dns": {},
    }
    config = cni.config(ipam=cni.host_local(), prevResult=before)
    answer = cni.done("ADD", config)
    assert [one["name"] for one in answer["interfaces"]] == ["lo", "eth0"]
    assert [one["interface"] for one in answer["ips"]] == [0, 1, 1]
    tuning = {"cniVersion": "1.0.0", "name": "net", "type": "tuning", "mtu": 1300, "prevResult": answer}
    code, after = cni.call("ADD", tuning, plugin="tuning")
    assert code == 0, after
    link = cni.link()
    assert link is not None and link["mtu"] == 1300
    cni.done("CHECK", config | {"prevResult": after})
    cni.done("DEL", config)
    given = {"cniVersion": "1.0.0", "interfaces": [], "ips": [{"address": "10.1.3.9/16"}]}
    taken = cni.done("ADD", cni.config(prevResult=given))
    assert taken["ips"] == [{"interface": 0, "address": "10.1.3.9/16"}]
    cni.lab.reachable(cni.lab.wire, "10.1.3.9")


def test_many_at_once_have_addresses_of_their_own(cni: Cni) -> None:
    """50 containers, eight at any time, on a daemon that is stopped and started afterwards."""
    names = [f"{cni.lab.prefix}-m{k}" for k in range(50)]
    cni.lab.add(*names)
    config = cni.config(ipam=cni.host_local())

    def attach(name: str) -> list[str]:
        answer = cni.done("ADD", config, CNI_CONTAINERID=name, CNI_NETNS=f"/run/netns/{name}")
        return [one["address"] for one in answer["ips"]]

    with ThreadPoolExecutor(8) as pool:
        addresses = [address for found in pool.map(attach, names) for address in found]
    assert len(set(addresses)) == len(addresses) == 100
    cni.daemon.stop()
    cni.daemon.start()
    cni.daemon.wait()
    until(lambda: [port["state"] for port in cni.ports()] == ["up"] * 50, "all are up again", every=0.2)
    cni.lab.reachable(cni.lab.wire, addresses[-2].split("/")[0])
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(lambda name: cni.done("DEL", config, CNI_CONTAINERID=name, CNI_NETNS=f"/run/netns/{name}"), names)
        )
    assert not cni.ports()
    assert not cni.leased()
    for name in names:
        run("ip", "netns", "del", name)


def test_the_documents_example(cni: Cni) -> None:
    """As libcni hands it to the plugin; the network is another one here."""
    text = (ROOT / "docs/containers.md").read_text()
    (snippet,) = re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    network = json.loads(snippet.replace("192.0.2.", "10.1.3.").replace('"eth0"', '"m0"'))
    (plugin,) = network["plugins"]
    plugin["ipam"]["dataDir"] = str(cni.directory / "leases")
    ours = {"socket": str(cni.daemon.socket)} | plugin["ipvsw"]
    config = plugin | {"name": network["name"], "cniVersion": network["cniVersion"], "ipvsw": ours}
    answer = cni.done("ADD", config)
    assert answer["ips"][0]["address"] == "10.1.3.64/24"
    assert "default via 10.1.3.1" in cni.lab.ip(cni.lab.ports[0], "route")
    cni.done("CHECK", config | {"prevResult": answer})
    cni.done("DEL", config)
    assert not cni.ports()


# ---------------------------------------------------------------------------- how light it is


def test_the_plugin_imports_little(tmp_path: Path) -> None:
    """A runtime waits for every start; nothing of the package, and no module that takes long."""
    run(str(ROOT / "scripts/plugin"), "cni", str(tmp_path / "ipvsw"))
    program = f"import sys; sys.path.insert(0, {str(tmp_path / 'ipvsw')!r}); import __main__, cni.port, cni.ipam"
    program += ", common.daemon; print(*sys.modules)"
    done = subprocess.run(["/usr/bin/python3", "-IS", "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"ipvsw", "asyncio", "subprocess", "http", "ipaddress", "urllib", "typing", "ssl", "hashlib"}
