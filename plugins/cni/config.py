"""What a runtime gives the plugin: the configuration and the environment, each value checked before it is used."""

import json
import os

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
PORT_KEYS = ("broadcast", "claim", "guard", "mac", "max_addresses", "max_groups", "metric", "packets", "queues", "rate")
OUR_KEYS = ("flag", "routes", "socket", *PORT_KEYS)  # below `ipvsw` in the configuration

# Codes of the specification, section "Error".
INCOMPATIBLE, UNSUPPORTED, NO_CONTAINER, BAD_ENVIRONMENT, IO_FAILED, BAD_JSON, BAD_CONFIG = 1, 2, 3, 4, 5, 6, 7
TRY_LATER, NOT_AVAILABLE, LIMITED = 11, 50, 51
REFUSED = 100  # by the daemon: what it says is the message
BROKEN = 101  # the plugin itself

# What a name may be: letters and digits first, then these too.
ALNUM = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
IFNAME_MAX = 15


class Fault(Exception):
    def __init__(self, code, message, details=""):
        super().__init__(message)
        self.code, self.message, self.details = code, message, details


class Naming(dict):
    """Of an object that must have the first of these keys."""


# What a value is: a type, a list of values of one, or an object of such keys. Other keys are left alone.
TEXTS = [str]
ADDRESS = Naming(address=str, gateway=str, interface=int)
ROUTE = Naming(dst=str, gw=str, priority=int, table=int, scope=int)
INTERFACE = {"name": str, "mac": str, "sandbox": str}
RESULT = {"interfaces": [INTERFACE], "ips": [ADDRESS], "routes": [ROUTE], "dns": {}}
RUNTIME = {"ips": TEXTS, "mac": str, "bandwidth": {"egressRate": int, "ingressRate": int}}
ATTACHMENTS = [{"containerID": str, "ifname": str}]
CONFIG = {
    "name": str,
    "master": str,
    "mode": str,
    "mtu": int,
    "linkInContainer": bool,
    "ipam": {"type": str},
    "dns": {},
    "runtimeConfig": RUNTIME,
    "prevResult": RESULT,
    "ipvsw": {"socket": str, "routes": TEXTS},
    "cni.dev/valid-attachments": ATTACHMENTS,
    "cni.dev/attachments": ATTACHMENTS,
}
WORDS = {str: "a string", int: "a number", bool: "true or false"}


def fit(value, kind, place, code=BAD_CONFIG):
    """`value` without the keys that are null, if it is of that kind. Errors: Fault, which names the place."""
    if isinstance(kind, list):
        if not isinstance(value, list):
            raise Fault(code, f"{place}: must be a list")
        return [fit(one, kind[0], f"{place}[{number}]", code) for number, one in enumerate(value)]
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            raise Fault(code, f"{place}: must be an object")
        at = f"{place}." if place else ""
        given = {key: one for key, one in value.items() if one is not None}
        if isinstance(kind, Naming) and not given.get(first := next(iter(kind))):
            raise Fault(code, f"{at}{first}: missing")
        return {key: fit(one, kind[key], f"{at}{key}", code) if key in kind else one for key, one in given.items()}
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Fault(code, f"{place}: must be {WORDS[kind]}")
    return value


def parse(content):
    """Errors: Fault."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Fault(BAD_JSON, "the configuration is not JSON", str(error)) from None
    if not isinstance(found, dict):
        raise Fault(BAD_JSON, "the configuration is not an object")
    return found


def read_version(found):
    """The version that is asked for, "" if none is. Errors: Fault."""
    version = found.get("cniVersion")
    return "" if version is None else fit(version, str, "cniVersion")


def read_config(content):
    found = parse(content)
    version = read_version(found) or "0.1.0"
    if version not in VERSIONS:
        raise Fault(INCOMPATIBLE, f"cniVersion {version} is not supported", f"supported are {', '.join(VERSIONS)}")
    config = fit(found, CONFIG, "")
    config["cniVersion"] = version
    if not is_name(config.get("name")):
        raise Fault(BAD_CONFIG, "name: missing, or not of letters, digits, '.', '_' and '-'")
    for key in config.get("ipvsw", {}):
        if key not in OUR_KEYS:
            raise Fault(BAD_CONFIG, f"ipvsw.{key}: unknown key; known are {', '.join(sorted(OUR_KEYS))}")
    if config.get("ipam", {}).get("type") == "dhcp":
        raise Fault(UNSUPPORTED, "ipam.type: dhcp needs the interface first; with ipvsw-dhcp ipvswd leases the address")
    if config.get("linkInContainer"):
        raise Fault(UNSUPPORTED, "linkInContainer: the master must be in the daemon's namespace")
    return config


def is_name(value):
    return isinstance(value, str) and value[:1] in tuple(ALNUM) and not set(value) - set(ALNUM + "._-")


def is_ifname(value):
    bad = value in (".", "..") or any(char in "/:" or char.isspace() or not char.isprintable() for char in value)
    return not bad and len(value.encode()) <= IFNAME_MAX


def as_numbers(version):
    return [int(part) for part in version.split(".")]


class Attachment:
    """What the environment says of it. `netns` is "" where the runtime has none any more."""

    def __init__(self, config, *, needs_netns):
        self.container = environment("CNI_CONTAINERID")
        self.ifname = environment("CNI_IFNAME")
        self.netns = os.environ.get("CNI_NETNS", "")
        if not is_name(self.container):
            raise Fault(BAD_ENVIRONMENT, f"CNI_CONTAINERID: {self.container} is not a container's")
        if not is_ifname(self.ifname):
            raise Fault(BAD_ENVIRONMENT, f"CNI_IFNAME: {self.ifname} is not the name of an interface")
        if needs_netns:
            environment("CNI_NETNS")
            if not os.path.exists(self.netns):
                raise Fault(NO_CONTAINER, f"CNI_NETNS: {self.netns} does not exist")
        self.label = f"cni:{config['name']}:{self.container}:{self.ifname}"


def environment(name):
    value = os.environ.get(name, "")
    if not value:
        raise Fault(BAD_ENVIRONMENT, f"{name}: missing")
    return value


def cni_args():
    pairs = (pair.partition("=") for pair in os.environ.get("CNI_ARGS", "").split(";") if pair)
    return {key: value for key, _, value in pairs}
