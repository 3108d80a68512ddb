"""Networks of Docker's, which Docker tells of once, and never again after a restart: validated, and kept in a file."""

import json
import os
import threading

from common.asked import FLAGS, MODES, Fault, check_choice, check_known, dictionary, guards

GENERIC = "com.docker.network.generic"
INTERNAL, IFNAME, PORTS = (
    "com.docker.network.internal",
    "com.docker.network.endpoint.ifname",
    "com.docker.network.portmap",
)
NUMBERS = {"mtu": "mtu", "com.docker.network.driver.mtu": "mtu", "max_addresses": "max_addresses", "queues": "queues"}
TEXTS = {"ipvlan_mode": "mode", "ipvlan_flag": "flag", "rate": "rate", "packets": "packets", "broadcast": "broadcast"}
OPTIONS = ("parent", "guard", *NUMBERS, *TEXTS)
VERSION = 1


def text(inside, key):
    """Errors: Fault."""
    found = inside.get(key)
    if not isinstance(found, str) or not found:
        raise Fault(f"{key}: missing")
    return found


def network_of(asked):
    """What is kept of a network: keys of its ports, and whether it has a way out. Errors: Fault."""
    given = dictionary(asked, "Options")
    options = dictionary(given, GENERIC)
    check_known((key for key in options if not key.startswith("com.docker.")), OPTIONS)
    if not options.get("parent"):
        raise Fault("option parent: missing; say -o parent=eth0")
    port = {"master": options["parent"]}
    for key, known in (("ipvlan_mode", MODES), ("ipvlan_flag", FLAGS)):
        check_choice(options, key, known)
    port |= {name: options[key] for key, name in TEXTS.items() if key in options}
    for key, name in NUMBERS.items():
        if key in options:
            if not str(options[key]).isdecimal():
                raise Fault(f"option {key}: {options[key]} is not a number")
            port[name] = int(options[key])
    if guard := options.get("guard"):
        port["guard"] = guards(guard)
    return {"port": port, "internal": bool(given.get(INTERNAL))}


class Networks:
    """By Docker's id, in the file `path`."""

    def __init__(self, path):
        """Errors: OSError; Fault if the file can't be read."""
        self._path = path
        self._networks = {}
        self._lock = threading.Lock()  # Docker asks for several things at once
        try:
            with open(path, encoding="utf-8") as file:
                kept = json.load(file)
        except FileNotFoundError:
            return
        except ValueError as error:
            raise Fault(f"{path}: {error}") from None
        if kept.get("version") != VERSION:
            raise Fault(f"{path}: of version {kept.get('version')}, this plugin reads {VERSION}")
        self._networks = kept["networks"]

    def find(self, asked):
        """Errors: Fault."""
        network = self._networks.get(text(asked, "NetworkID"))
        if network is None:
            raise Fault(f"there is no network {asked['NetworkID'][:12]}")
        return network

    def put(self, asked, network):
        """Errors: OSError, after which nothing has changed."""
        with self._lock:
            self._write({**self._networks, text(asked, "NetworkID"): network})

    def drop(self, asked):
        """One that is not there is no error. Errors: OSError."""
        with self._lock:
            self._write({key: one for key, one in self._networks.items() if key != text(asked, "NetworkID")})

    def _write(self, networks):
        """It is on the disk when this returns."""
        os.makedirs(os.path.dirname(self._path), 0o700, exist_ok=True)
        with open(f"{self._path}.new", "w", encoding="utf-8") as file:
            json.dump({"version": VERSION, "networks": networks}, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(f"{self._path}.new", self._path)
        self._networks = networks
