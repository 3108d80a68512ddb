"""Netavark plugin `ipvsw`, by which Podman has networks of ipvswd's: `podman network create -d ipvsw -o parent=eth0`.

Interface: https://github.com/containers/netavark/blob/main/plugin-API.md, version 1.0.0. A plugin says everything on
stdout, as JSON, errors too. The namespace goes to the daemon as a descriptor: that of a rootless container has no path
outside of Podman's own mount namespace.
"""

import json
import os
import sys

from common.asked import Fault, dictionary
from common.daemon import DaemonDown, Refusal, call, fault_of, is_writable, remove_labelled, short_name

from netavark.network import checked, port_of

VERSION, API_VERSION = "0.1.0", "1.0.0"
SOCKETS = ("/run/ipvsw/api.sock", "/var/lib/ipvsw/users.sock")  # the second for users, who see no /run


def main(words):
    """Exit code: 0 done, 1 failed."""
    verbs = {"info": (info, 0), "create": (create, 0), "setup": (setup, 1), "teardown": (teardown, 1)}
    try:
        verb, operands = verbs.get(words[0] if words else "", (None, 0))
        if verb is None or len(words) != 1 + operands:
            raise Fault("usage: info | create | setup NETNS | teardown NETNS")
        answer = verb(*words[1:])
    except (Fault, DaemonDown, Refusal) as error:
        print(json.dumps({"error": str(error)}))
        return 1
    except Exception as error:  # what is said must be JSON, whatever happens
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return 1
    if answer is not None:
        print(json.dumps(answer))
    return 0


def info():
    return {"version": VERSION, "api_version": API_VERSION}


def create():
    return checked(given())


def setup(netns):
    asked = given()
    label, socket = label_of(asked), socket_of(asked)
    body, subnets = port_of(asked)
    body |= {"name": short_name(body["ifname"], label), "label": label, "persist": "netns"}
    try:
        descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Fault(f"{netns}: {error.strerror}") from None
    remove_labelled(socket, label)  # Podman has forgotten what it had, as after a reboot
    port = call(socket, "POST", "/v1/ports", body, descriptor)
    os.close(descriptor)
    if fault := fault_of(port, body.get("addresses", ())):
        remove_labelled(socket, label)
        raise Fault(fault[1])
    servers = dictionary(asked, "network").get("network_dns_servers") or []
    interface = {"mac_address": port["mac"], "subnets": subnets}
    return {"dns_search_domains": [], "dns_server_ips": servers, "interfaces": {body["ifname"]: interface}}


def teardown(netns):
    """Without the daemon nothing is wrong: Podman deletes the namespace next, and the port goes with it."""
    asked = given()
    try:
        remove_labelled(socket_of(asked), label_of(asked))
    except DaemonDown:
        pass


def given():
    try:
        found = json.loads(sys.stdin.read())
    except ValueError as error:
        raise Fault(f"what was given is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Fault("what was given is not an object")
    return found


def label_of(asked):
    """An attachment is known by container, network and interface."""
    ifname = dictionary(asked, "network_options").get("interface_name")
    return f"podman:{asked.get('container_id')}:{dictionary(asked, 'network').get('id')}:{ifname}"


def socket_of(asked):
    chosen = dictionary(dictionary(asked, "network"), "options").get("socket")
    return chosen or next(filter(is_writable, SOCKETS), SOCKETS[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
