"""What Docker asks a network driver, and how it is answered.

Protocol: https://github.com/moby/moby/blob/master/libnetwork/docs/remote.md. An endpoint is a port that is given away:
made when a container joins, beside dockerd, which then moves it into the container and renames it. The port goes with
it (`netns = "follow"`), and with the sandbox: one that a killed dockerd has forgotten is gone when its sandbox is.
"""

import base64
import binascii
import time

from common.asked import PUBLISHED, Fault, dictionary, objects
from common.daemon import Refusal, call, remove_labelled

from docker.networks import IFNAME, PORTS, network_of, text

EVERYWHERE = ("0.0.0.0/0", "::/0")  # pool of the null IPAM driver
PATIENCE, PAUSE = 5.0, 0.1  # seconds that a forgotten endpoint has to be gone, between two attempts


class Driver:
    def __init__(self, socket, networks):
        self._socket, self._networks = socket, networks
        self._endpoints = {}  # what Docker said of them, until a container joins

    def answer(self, method, asked):
        """None for a method that there is not. Errors: Fault, OSError, and those of `call`."""
        answers = {
            "Plugin.Activate": lambda: {"Implements": ["NetworkDriver"]},
            "NetworkDriver.GetCapabilities": lambda: {"Scope": "local", "ConnectivityScope": "local"},
            "NetworkDriver.CreateNetwork": lambda: self._create_network(asked),
            "NetworkDriver.DeleteNetwork": lambda: self._delete_network(asked),
            "NetworkDriver.CreateEndpoint": lambda: self._create_endpoint(asked),
            "NetworkDriver.EndpointOperInfo": lambda: {"Value": {}},
            "NetworkDriver.DeleteEndpoint": lambda: self._delete_endpoint(asked),
            "NetworkDriver.Join": lambda: self._join(asked),
            "NetworkDriver.Leave": lambda: self._delete_endpoint(asked),
            "NetworkDriver.ProgramExternalConnectivity": lambda: self._publish(asked),
            "NetworkDriver.RevokeExternalConnectivity": dict,
            "NetworkDriver.DiscoverNew": dict,
            "NetworkDriver.DiscoverDelete": dict,
        }
        return answers[method]() if method in answers else None

    def _create_network(self, asked):
        network = network_of(asked)
        for family in ("IPv4Data", "IPv6Data"):
            pools = objects(asked, family)
            gateway = next((one.get("Gateway") for one in pools if one.get("Pool") not in EVERYWHERE), None)
            network[family] = str(gateway or "").partition("/")[0]
        self._networks.put(asked, network)
        return {}

    def _delete_network(self, asked):
        remove_labelled(self._socket, f"docker:{text(asked, 'NetworkID')}")
        self._networks.drop(asked)
        for key, one in list(self._endpoints.items()):  # others may come meanwhile
            if one["network"] == asked["NetworkID"]:
                self._endpoints.pop(key, None)
        return {}

    def _create_endpoint(self, asked):
        """Nothing is made yet: what can't be is said when a container joins."""
        self._networks.find(asked)
        given = dictionary(asked, "Interface")
        self._endpoints[text(asked, "EndpointID")] = {
            "network": asked["NetworkID"],
            "addresses": [given[key] for key in ("Address", "AddressIPv6") if given.get(key)],
            "mac": given.get("MacAddress") or mac_of(dictionary(asked, "Options")),
        }
        return {"Interface": {}}

    def _join(self, asked):
        network, endpoint = self._networks.find(asked), self._endpoints.get(text(asked, "EndpointID"))
        if endpoint is None:
            raise Fault("the endpoint is not known: the plugin was started anew in between")
        name = f"dk{asked['EndpointID'][:12]}"
        body = {**network["port"], "name": name, "netns": "follow", "persist": "netns", "label": label_of(asked)}
        body |= {"addresses": endpoint["addresses"]} if endpoint["addresses"] else {}
        body |= {"mac": endpoint["mac"]} if endpoint["mac"] else {}
        self._add(body)
        interface = {"SrcName": name, "DstPrefix": "eth"}
        if wanted := dictionary(asked, "Options").get(IFNAME):
            interface["DstName"] = wanted
        has = {":" in one for one in endpoint["addresses"]}
        gateways = {
            key: network[family]
            for key, family, six in (("Gateway", "IPv4Data", False), ("GatewayIPv6", "IPv6Data", True))
            if network[family] and six in has and not network["internal"]
        }
        return {"InterfaceName": interface, **gateways, "DisableGatewayService": not gateways}

    def _add(self, body):
        """A dockerd that was killed has an address given to a new endpoint while the old sandbox ends."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return call(self._socket, "POST", "/v1/ports", body)
            except Refusal as error:
                if error.status != 409 or "already used by" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(PAUSE)

    def _delete_endpoint(self, asked):
        remove_labelled(self._socket, label_of(asked))
        self._endpoints.pop(text(asked, "EndpointID"), None)
        return {}

    def _publish(self, asked):
        if dictionary(asked, "Options").get(PORTS):
            raise Fault(PUBLISHED)
        return {}


def label_of(asked):
    return f"docker:{text(asked, 'NetworkID')}:{text(asked, 'EndpointID')}"


def mac_of(options):
    """That of --mac-address, which comes as base64; "" if there is none."""
    try:
        packed = base64.b64decode(options.get("com.docker.network.endpoint.macaddress") or "", validate=True)
    except (binascii.Error, TypeError, ValueError):
        return ""
    return packed.hex(":") if len(packed) == 6 else ""
