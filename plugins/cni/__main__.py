"""CNI plugin `ipvsw`: a port of ipvswd for each container. Installed by itself, under the name `ipvsw`.

Specification: https://www.cni.dev/docs/spec/, versions 0.3.1 to 1.1.0. Standard library alone, and little of it: a
runtime starts this for every container, and waits.

The daemon has the state: an attachment is a port with the label `cni:NETWORK:CONTAINER:IFNAME`, which goes with its
namespace. Addresses come from the IPAM plugin that the configuration names.
"""

import json
import os
import sys

from common.daemon import SOCKET, DaemonDown, Refusal, fault_of, quoted, remove_labelled, short_name
from common.daemon import call as ask

from cni.config import (
    BAD_CONFIG,
    BAD_ENVIRONMENT,
    BROKEN,
    INCOMPATIBLE,
    LIMITED,
    NO_CONTAINER,
    NOT_AVAILABLE,
    REFUSED,
    TRY_LATER,
    VERSIONS,
    Attachment,
    Fault,
    as_numbers,
    parse,
    read_config,
    read_version,
)
from cni.ipam import IPVSW_DHCP, delegate, leased
from cni.port import master_of, read_options, read_routes, requested_ips, result

SINCE = {"CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}  # verbs that came later


def main():
    """Exit code: 0 done, 1 failed; what is said then is on stdout, as JSON."""
    version = VERSIONS[-1]
    try:
        content = sys.stdin.buffer.read()
        command = os.environ.get("CNI_COMMAND", "")
        if command == "VERSION":
            answer = tell_versions(content)
        else:
            config = read_config(content)
            version = config["cniVersion"]
            answer = run(command, config)
    except Exception as error:  # whatever happens, what is said is JSON
        fault = error if isinstance(error, Fault) else Fault(BROKEN, f"{type(error).__name__}: {error}")
        answer = {"cniVersion": version, "code": fault.code, "msg": fault.message}
        if fault.details:
            answer["details"] = fault.details
        print(json.dumps(answer))
        return 1
    if answer is not None:
        print(json.dumps(answer))
    return 0


def run(command, config):
    verbs = {"ADD": add, "DEL": delete, "CHECK": check, "STATUS": status, "GC": collect}
    if command not in verbs:
        raise Fault(BAD_ENVIRONMENT, f"CNI_COMMAND: {command or 'missing'}")
    if command in SINCE and as_numbers(config["cniVersion"]) < as_numbers(SINCE[command]):
        raise Fault(INCOMPATIBLE, f"{command} needs cniVersion {SINCE[command]}, not {config['cniVersion']}")
    if not os.environ.get("CNI_PATH"):
        raise Fault(BAD_ENVIRONMENT, "CNI_PATH: missing")
    try:
        return verbs[command](config)
    except DaemonDown as error:
        raise Fault(TRY_LATER, str(error)) from None
    except Refusal as error:
        raise Fault(REFUSED, str(error)) from None


def tell_versions(content):
    given = read_version(parse(content)) if content.strip() else ""
    return {"cniVersion": given or VERSIONS[-1], "supportedVersions": list(VERSIONS)}


# ---------------------------------------------------------------------------- ADD


def add(config):
    attachment = Attachment(config, needs_netns=True)
    previous = config.get("prevResult")
    ipam, dhcp = delegated(config), uses_dhcp(config)
    if ipam:
        found = delegate("ADD", config)
        if not found.get("ips"):
            delegate("DEL", config)
            raise Fault(BAD_CONFIG, f"ipam.type: {ipam} has given no address")
    elif dhcp:
        found = {}
    else:
        found = {"ips": (previous or {}).get("ips") or requested_ips(config), "routes": (previous or {}).get("routes")}
        found["dns"] = (previous or {}).get("dns")
    try:
        port = attach(config, attachment, found)
    except BaseException:
        if ipam:
            delegate("DEL", config, quiet=True)
        raise
    if dhcp:
        found = lease(config, attachment, port)
    return result(config, attachment, found, port, previous if ipam or dhcp else None)


def lease(config, attachment, port):
    """What the daemon has leased for the port, in the form of an IPAM plugin's answer. Without a lease there is no
    port."""
    try:
        return leased(lambda: call(config, "GET", "/v1/leases"), port["name"])
    except BaseException:
        remove_labelled(socket_of(config), attachment.label)
        raise


def attach(config, attachment, found):
    body = {
        "master": master_of(config),
        "name": short_name(attachment.ifname, attachment.label),
        "ifname": attachment.ifname,
        "netns": attachment.netns,
        "label": attachment.label,
        "persist": "netns",
        "addresses": [one["address"] for one in found.get("ips") or ()],
        **({"dhcp": True} if uses_dhcp(config) else {}),
        **read_options(config),
    }
    body["gateway"], routes = read_routes(found, config)
    if routes:
        body["routes"] = routes
    port = post(config, body, attachment)
    if fault := fault_of(port, body["addresses"]):
        remove_labelled(socket_of(config), attachment.label)
        again, why = fault
        raise Fault(TRY_LATER if again else REFUSED, why)
    return port


def post(config, body, attachment):
    """A runtime that has lost its memory attaches the same container in another namespace: what was is replaced."""
    try:
        return call(config, "POST", "/v1/ports", body)
    except Refusal as error:
        old = [port for port in labelled(config, attachment.label) if port["netns"] != attachment.netns]
        if error.status != 409 or not old:
            raise
        remove_labelled(socket_of(config), attachment.label)
        return call(config, "POST", "/v1/ports", body)


# ---------------------------------------------------------------------------- DEL, CHECK


def delete(config):
    """Whatever is gone already is no error. The address is free when the port is gone."""
    attachment = Attachment(config, needs_netns=False)
    try:
        remove_labelled(socket_of(config), attachment.label)
    except DaemonDown:
        if attachment.netns and os.path.exists(attachment.netns):
            raise  # else the daemon removes the port when it is there again
    if delegated(config):
        delegate("DEL", config)


def check(config):
    attachment = Attachment(config, needs_netns=True)
    previous = config.get("prevResult")
    if previous is None:
        raise Fault(BAD_CONFIG, "prevResult: CHECK needs it")
    if delegated(config):
        delegate("CHECK", config)
    found = labelled(config, attachment.label)
    if not found:
        raise Fault(NO_CONTAINER, f"there is no port {attachment.label}")
    port = found[0]
    if port["state"] != "up":
        raise Fault(REFUSED, f"the port is {port['state']}: {port['reason']}")
    numbers = [
        number
        for number, one in enumerate(previous.get("interfaces") or ())
        if one.get("name") == attachment.ifname and one.get("sandbox")
    ]
    if not numbers:
        raise Fault(BAD_CONFIG, f"prevResult: there is no interface {attachment.ifname}")
    mac = previous["interfaces"][numbers[0]].get("mac")
    if mac and mac.lower() != port["mac"]:
        raise Fault(REFUSED, f"{attachment.ifname}: its MAC address is {port['mac']}, not {mac}")
    if port["netns"] != attachment.netns or port["ifname"] != attachment.ifname:
        raise Fault(REFUSED, f"the port is {port['ifname']} in {port['netns']}")
    owned = {one["address"] for one in port["addresses"] if one["state"] == "owned"}
    for one in previous.get("ips") or ():
        if one.get("interface") in numbers and one["address"].partition("/")[0] not in owned:
            raise Fault(REFUSED, f"{one['address']} is not the port's")


# ---------------------------------------------------------------------------- STATUS, GC


def status(config):
    try:
        switches = call(config, "GET", "/v1/switches")
    except DaemonDown as error:
        raise Fault(LIMITED, str(error)) from None
    master = master_of(config)
    found = sorted((one for one in switches if one["master"] == master), key=lambda one: bool(one["netns"]))
    if not found and not os.path.exists(f"/sys/class/net/{master}"):
        raise Fault(NOT_AVAILABLE, f"master: there is no {master}")
    if found and found[0]["state"] not in ("up", "degraded"):
        raise Fault(NOT_AVAILABLE, f"master: {master} is {found[0]['state']} {found[0]['reason']}".rstrip())
    if delegated(config):
        delegate("STATUS", config)


def collect(config):
    valid = config.get("cni.dev/valid-attachments", config.get("cni.dev/attachments"))
    if valid is None:
        raise Fault(BAD_CONFIG, "cni.dev/valid-attachments: missing")
    kept = {f"cni:{config['name']}:{one.get('containerID')}:{one.get('ifname')}" for one in valid}
    for port in labelled(config, f"cni:{config['name']}"):
        if port["label"] not in kept:
            remove_labelled(socket_of(config), port["label"])
    if delegated(config):
        delegate("GC", config)


# ---------------------------------------------------------------------------- the daemon


def uses_dhcp(config):
    """Whether the daemon itself leases the address."""
    return config.get("ipam", {}).get("type") == IPVSW_DHCP


def delegated(config):
    """The IPAM plugin that is to be started; "" if none is."""
    return "" if uses_dhcp(config) else config.get("ipam", {}).get("type", "")


def socket_of(config):
    return config.get("ipvsw", {}).get("socket", SOCKET)


def call(config, method, path, body=None):
    return ask(socket_of(config), method, path, body)


def labelled(config, label):
    return [port for switch in call(config, "GET", f"/v1/labels/{quoted(label)}") for port in switch["ports"]]


if __name__ == "__main__":
    sys.exit(main())
