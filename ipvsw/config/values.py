"""One value of the configuration, checked by itself: each `read_` function takes what a TOML or JSON
parser gave and the place where it stands, and returns the model's value.
"""

from __future__ import annotations

import datetime
import difflib
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ipvsw.model import Address, Flag, HostAccess, Interface, Io, Kind, L3Output, MacSource, Mode, Refused, Who

IFNAME_MAX = 15  # bytes; IFNAMSIZ in linux/if.h, less the closing NUL
SOCKET_PATH_MAX = 104  # bytes; sun_path in linux/un.h, less the closing NUL and the ".fd" of the other socket
NAME_MAX = 255  # bytes; a file name's, which the name of a namespace is
MTU_MIN = 68  # bytes; ETH_MIN_MTU, RFC 791 section 3.2
MTU_MIN_IPV6 = 1280  # bytes; IPV6_MIN_MTU, RFC 8200 section 5
MTU_MAX = 65535  # bytes; ETH_MAX_MTU
WORKERS_MAX = 64
BUSY_POLL_MAX = 1000  # us
QUEUES_MAX = 16
LEARNED_MAX = 1024
ID_MAX = 0xFFFFFFFE  # (uid_t) -1 is nobody

Reader = Callable[[object, str], Any]
Choice = TypeVar("Choice", Mode, Flag, L3Output, HostAccess, Io, Kind, MacSource)


class ConfigError(Refused):
    """A mistake in the configuration; the text is one line that names the place."""


def read_table(value: object, place: str, readers: Mapping[str, Reader]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong_type(place or "the document", "a table", value)
    found = {}
    for key, item in value.items():
        at = join(place, key)
        if key not in readers:
            near = difflib.get_close_matches(str(key), readers, n=1)
            hint = f"did you mean {near[0]}?" if near else "known are " + ", ".join(sorted(readers))
            raise ConfigError(f"{at}: unknown key; {hint}")
        found[key] = readers[key](item, at)
    return found


def read_list(value: object, place: str, reader: Reader) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _wrong_type(place, "an array", value)
    return tuple(reader(item, f"{place}[{at}]") for at, item in enumerate(value))


def read_string(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise _wrong_type(place, "a string", value)
    if not value:
        raise ConfigError(f"{place}: is empty")
    return value


def read_boolean(value: object, place: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(place, "a boolean", value)
    return value


def read_integer(value: object, place: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong_type(place, "an integer", value)
    if not least <= value <= most:
        raise ConfigError(f"{place}: {_number(value)} is not between {least} and {most}")
    return value


def read_workers(value: object, place: str) -> int:
    return read_integer(value, place, 1, WORKERS_MAX)


def read_busy_poll(value: object, place: str) -> int:
    return read_integer(value, place, 0, BUSY_POLL_MAX)


def read_mtu(value: object, place: str) -> int:
    return read_integer(value, place, MTU_MIN, MTU_MAX)


def read_socket(value: object, place: str) -> str:
    """The path of a unix socket."""
    return _read_path(read_string(value, place), place, SOCKET_PATH_MAX)


def _read_path(path: str, place: str, longest: int) -> str:
    if not path.startswith("/"):
        raise ConfigError(f"{place}: {quoted(path)} is not an absolute path")
    if not path.isprintable():
        raise ConfigError(f"{place}: {quoted(path)} has an unprintable character")
    if len(path.encode()) > longest:
        raise ConfigError(f"{place}: {quoted(path)} is longer than {longest} bytes")
    return path


def read_name(value: object, place: str) -> str:
    """The name of a switch or of a port: the API and the command line write them as SWITCH/PORT."""
    name = read_string(value, place)
    if fault := _name_fault(name):
        raise ConfigError(f"{place}: {quoted(name)} {fault}")
    return name


def read_ifname(value: object, place: str) -> str:
    name = read_string(value, place)
    if fault := ifname_fault(name):
        raise ConfigError(f"{place}: {quoted(name)} {fault}")
    return name


def read_master(value: object, place: str) -> str:
    name = read_string(value, place)
    if name == "lo":
        raise ConfigError(f"{place}: the loopback device cannot be a master")
    return read_ifname(name, place)


def _name_fault(name: str) -> str | None:
    if not name.isprintable() or any(one.isspace() for one in name):
        return "has a space or an unprintable character"
    if "/" in name or name in (".", ".."):
        return "cannot be a name: it reads as a path"
    return f"is longer than {NAME_MAX} bytes" if len(name.encode()) > NAME_MAX else None


def ifname_fault(name: str) -> str | None:
    """What the kernel would say against it: dev_valid_name, dev_prep_valid_name, sysctl_dev_name_is_allowed."""
    if not name.isprintable() or any(one.isspace() for one in name):
        return "is not an interface name: it has a space or an unprintable character"
    if bad := next((one for one in name if one in "/:%"), None):
        return f'is not an interface name: it has a "{bad}"'
    if name in (".", "..", "all", "default", "lo"):
        return "is not an interface name: the kernel keeps it for itself"
    if len(name.encode()) > IFNAME_MAX:
        return f"is not an interface name: it is longer than {IFNAME_MAX} bytes"
    return None


def read_netns(value: object, place: str) -> str:
    if value == "":
        raise ConfigError(f"{place}: is empty; leave it out for the daemon's own namespace")
    spec = read_string(value, place)
    if spec.startswith("/"):
        return _read_path(spec, place, 4095)  # PATH_MAX, less the closing NUL
    if spec.startswith("pid:"):
        if not re.fullmatch(r"pid:[1-9][0-9]{0,8}", spec, re.ASCII):
            raise ConfigError(f"{place}: {quoted(spec)} does not name a process, as pid:1234 would")
        return spec
    if "/" in spec:
        raise ConfigError(f"{place}: {quoted(spec)} is not a name, an absolute path or pid:N")
    return read_name(spec, place)


def read_kind(value: object, place: str) -> Kind:
    """Of a port that the daemon makes."""
    return _read_choice(value, place, Kind, "a kind", but=Kind.LINK)


def read_mac_source(value: object, place: str) -> MacSource:
    """`l2macnat` is what others call "own"."""
    return MacSource.OWN if value == "l2macnat" else _read_choice(value, place, MacSource, "a MAC address to use")


def read_queues(value: object, place: str) -> int:
    return read_integer(value, place, 1, QUEUES_MAX)


def read_max_learned(value: object, place: str) -> int:
    return read_integer(value, place, 1, LEARNED_MAX)


def read_allow(value: object, place: str) -> tuple[Who, ...]:
    return read_list(value, place, read_who)


def read_who(value: object, place: str) -> Who:
    """A user or, with an "@" before it where both may stand, a group: by name or number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return read_integer(value, place, 0, ID_MAX)
    if not isinstance(value, str):
        raise _wrong_type(place, "a name or a number", value)
    name = read_name(value, place)
    if not name.removeprefix("@"):
        raise ConfigError(f"{place}: the name of a group is missing after the @")
    return name


def read_mode(value: object, place: str) -> Mode:
    return _read_choice(value, place, Mode, "a mode")


def read_l3_output(value: object, place: str) -> L3Output:
    return _read_choice(value, place, L3Output, "a way out")


def read_host_access(value: object, place: str) -> HostAccess:
    return _read_choice(value, place, HostAccess, "an access")


def read_io(value: object, place: str) -> Io:
    return _read_choice(value, place, Io, "a way to read and write")


def read_flag(value: object, place: str) -> Flag:
    return _read_choice(value, place, Flag, "a flag")


def _read_choice(value: object, place: str, kind: type[Choice], what: str, but: Choice | None = None) -> Choice:
    word = read_string(value, place)
    known = {str(one): one for one in kind if one is not but}
    if word not in known:
        raise ConfigError(f"{place}: {quoted(word)} is not {what}; known are {', '.join(known)}")
    return known[word]


def read_addresses(value: object, place: str) -> tuple[Interface, ...]:
    return read_list(value, place, _read_interface)


def _read_interface(value: object, place: str) -> Interface:
    text = read_string(value, place)
    try:
        # ipaddress would also take a netmask, a hostmask and, for IPv6, a zone.
        if not re.fullmatch(r"[0-9A-Fa-f.:]+(/[0-9]{1,3})?", text, re.ASCII):
            raise ValueError
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise ConfigError(f"{place}: {quoted(text)} is not an IPv4 or IPv6 interface address") from None
    if fault := _address_fault(interface.ip):
        raise ConfigError(f"{place}: {interface.ip} {fault}")
    return interface


def read_gateways(value: object, place: str) -> tuple[Address, ...]:
    return read_list(value, place, _read_gateway)


def _read_gateway(value: object, place: str) -> Address:
    text = read_string(value, place)
    try:
        if "%" in text:
            raise ValueError
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(f"{place}: {quoted(text)} is not an IPv4 or IPv6 address") from None
    fault = _address_fault(address)
    if fault is None and (address.is_multicast or address.is_loopback):
        fault = "cannot be a gateway"
    if fault:
        raise ConfigError(f"{place}: {address} {fault}")
    return address


def _address_fault(address: Address) -> str | None:
    """Nonsense, and what the kernel refuses on a device (ipv6_add_addr). IPv4's 127.0.0.0/8 and
    224.0.0.0/4 it takes, and its ipvlan driver tells ports apart by them like by any other."""
    if address.is_unspecified:
        return "stands for no address at all"
    if address == ipaddress.IPv4Address(0xFFFFFFFF):
        return "is everybody's address"
    if address.version == 6 and address.is_multicast:
        return "is a group, which no port can own"
    if address.version == 6 and address.is_loopback:
        return "belongs to the loopback device"
    return None


# ---------------------------------------------------------------------------- how mistakes are told


def join(place: str, key: object) -> str:
    word = str(key)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", word):
        word = quoted(word)
    return f"{place}.{word}" if place else word


def quoted(text: str) -> str:
    return json.dumps(_shortened(text), ensure_ascii=not text.isprintable())


def _number(value: int) -> str:
    return str(value) if value.bit_length() <= 64 else f"a number of {value.bit_length()} bits"


def _shortened(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."


_TYPES: tuple[tuple[type, str], ...] = (
    (bool, "a boolean"),
    (int, "an integer"),
    (float, "a float"),
    (str, "a string"),
    (list, "an array"),
    (Mapping, "a table"),
    (datetime.date, "a date"),  # and its subclass, a date with a time
    (datetime.time, "a time"),
    (type(None), "null"),
)


def _wrong_type(place: str, wanted: str, value: object) -> ConfigError:
    got = next((name for kind, name in _TYPES if isinstance(value, kind)), type(value).__name__)
    return ConfigError(f"{place}: must be {wanted}, not {got}")
