"""One value of the configuration, checked by itself: a reader takes what a TOML or JSON parser
gave and the place where it stands, and returns the model's value.
"""

from __future__ import annotations

import datetime
import difflib
import functools
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Literal, cast

from ipvsw.model import FOLLOW, Address, Guard, Interface, MacSource, Network, Persist, Refused, Who

IFNAME_MAX = 15  # bytes; IFNAMSIZ in linux/if.h, less the closing NUL
SOCKET_PATH_MAX = 104  # bytes; sun_path in linux/un.h, less the closing NUL and the ".fd" of the other socket
PATH_MAX = 4095  # bytes; linux/limits.h, less the closing NUL
NAME_MAX = 255  # bytes; a file name's, which the name of a namespace is
MTU_MIN = 68  # bytes; ETH_MIN_MTU, RFC 791 section 3.2
MTU_MIN_IPV6 = 1280  # bytes; IPV6_MIN_MTU, RFC 8200 section 5
MTU_MAX = 65535  # bytes; ETH_MAX_MTU
WORKERS_MAX = 64
BUSY_POLL_MAX = 1000  # us
QUEUES_MAX = 16
INDEX_MAX = (1 << 31) - 1  # of an interface: an int
LEARNED_MAX = 1024
ADDRESSES_MAX = 1 << 20
GROUPS_MAX = 1 << 20
INTERFACES_CACHED = 1 << 17
LABEL_MAX = 400  # bytes
ID_MAX = 0xFFFFFFFE  # (uid_t) -1 means no user

Reader = Callable[[object, str], Any]


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
            hint = f"did you mean {near[0]}?" if near else "known keys are " + ", ".join(sorted(readers))
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


def integer(least: int, most: int) -> Reader:
    """A reader of numbers from `least` to `most`."""

    def read(value: object, place: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong_type(place, "an integer", value)
        if not least <= value <= most:
            raise ConfigError(f"{place}: {_number(value)} is not between {least} and {most}")
        return value

    return read


def read_socket(value: object, place: str) -> str:
    """The path of a unix socket."""
    return _read_path(read_string(value, place), place, SOCKET_PATH_MAX)


def read_endpoint(value: object, place: str) -> str:
    """ADDRESS:PORT of a loopback address, that of IPv6 in brackets."""
    text = read_string(value, place)
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:]+)\]|([0-9.]+)):([0-9]{1,5})", text, re.ASCII)
    try:
        if found is None or not 0 < int(found[3]) < 65536:
            raise ValueError
        address = ipaddress.ip_address(found[1] or found[2])
    except ValueError:
        raise ConfigError(f"{place}: {quoted(text)} is not an address and a port, as 127.0.0.1:9417 would be") from None
    if not address.is_loopback:
        raise ConfigError(f"{place}: {address} is not a loopback address; a proxy with TLS may serve others")
    return text


def read_file(value: object, place: str) -> str:
    return _read_path(read_string(value, place), place, PATH_MAX)


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
        return "cannot be a name: it would be read as a path"
    return f"is longer than {NAME_MAX} bytes" if len(name.encode()) > NAME_MAX else None


def ifname_fault(name: str) -> str | None:
    """Why the kernel would refuse it: dev_valid_name, dev_prep_valid_name, sysctl_dev_name_is_allowed."""
    if not name.isprintable() or any(one.isspace() for one in name):
        return "is not an interface name: it has a space or an unprintable character"
    if bad := next((one for one in name if one in "/:%"), None):
        return f'is not an interface name: it has a "{bad}"'
    if name in (".", "..", "all", "default", "lo"):
        return "is not an interface name: the kernel reserves it"
    if len(name.encode()) > IFNAME_MAX:
        return f"is not an interface name: it is longer than {IFNAME_MAX} bytes"
    return None


def read_netns(value: object, place: str) -> str:
    if value == "":
        raise ConfigError(f"{place}: is empty; leave it out for the daemon's own namespace")
    spec = read_string(value, place)
    if spec.startswith("/"):
        return _read_path(spec, place, PATH_MAX)
    if spec.startswith("pid:"):
        if not re.fullmatch(r"pid:[1-9][0-9]{0,8}", spec, re.ASCII):
            raise ConfigError(f"{place}: {quoted(spec)} does not name a process, as pid:1234 would")
        return spec
    if "/" in spec:
        raise ConfigError(f"{place}: {quoted(spec)} is not a name, an absolute path or pid:N")
    return read_name(spec, place)


def read_port_netns(value: object, place: str) -> str:
    """As `read_netns`; or FOLLOW, with what tells the namespace if the device has been given away already."""
    if isinstance(value, str) and re.fullmatch(rf"{FOLLOW}(:[0-9]{{1,20}}){{2}}|{FOLLOW}", value, re.ASCII):
        return value
    return read_netns(value, place)


def read_mac(value: object, place: str) -> MacSource | str:
    """`l2macnat` is what others call "own"."""
    if isinstance(value, str) and re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", value, re.ASCII):
        mac = value.lower()
        if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
            raise ConfigError(f"{place}: {mac} is not the MAC address of an interface")
        return mac
    if value == "l2macnat":
        return MacSource.OWN
    word = read_string(value, place)
    if word not in list(MacSource):
        raise ConfigError(f"{place}: {quoted(word)} is not valid; use {', '.join(MacSource)} or a MAC address")
    return MacSource(word)


def read_persist(value: object, place: str) -> Persist:
    """`true` and `false` are the longest and the shortest."""
    if isinstance(value, bool):
        return Persist.ALWAYS if value else Persist.NEVER
    persist: Persist = choice(Persist)(value, place)
    return persist


def read_label(value: object, place: str) -> str:
    label = read_string(value, place)
    if len(label) > LABEL_MAX or not re.fullmatch(r"[!-~]+", label, re.ASCII):
        raise ConfigError(
            f"{place}: {quoted(label)} must be 1 to {LABEL_MAX} printable ASCII characters without spaces"
        )
    return label


def read_allow(value: object, place: str) -> tuple[Who, ...]:
    return read_list(value, place, read_who)


def read_who(value: object, place: str) -> Who:
    """A user or, with an "@" before it where both may stand, a group: by name or number."""
    if isinstance(value, int) and not isinstance(value, bool):
        number: int = integer(0, ID_MAX)(value, place)
        return number
    if not isinstance(value, str):
        raise _wrong_type(place, "a name or a number", value)
    name = read_name(value, place)
    if not name.removeprefix("@"):
        raise ConfigError(f"{place}: the name of a group is missing after the @")
    return name


def choice(kind: type[StrEnum], but: StrEnum | None = None) -> Reader:
    """A reader of the words of `kind`, all of them `but` one."""
    known = {str(one): one for one in kind if one is not but}

    def read(value: object, place: str) -> StrEnum:
        word = read_string(value, place)
        if word not in known:
            *first, last = known
            raise ConfigError(f"{place}: {quoted(word)} is not valid; use {', '.join(first)} or {last}")
        return known[word]

    return read


def read_addresses(value: object, place: str) -> tuple[Interface, ...]:
    return read_list(value, place, _read_interface)


def _read_interface(value: object, place: str) -> Interface:
    text = read_string(value, place)
    try:
        interface, fault = _interface(text)
    except ValueError:
        raise ConfigError(f"{place}: {quoted(text)} is not an IPv4 or IPv6 interface address") from None
    if fault:
        raise ConfigError(f"{place}: {interface.ip} {fault}")
    return interface


@functools.lru_cache(INTERFACES_CACHED)
def _interface(text: str) -> tuple[Interface, str | None]:
    """The address of `text`, and what is wrong with it. Remembered: a file that is read again has the same addresses
    but for a few, and the plan compares objects that are the same in no time. Errors: ValueError."""
    # ipaddress would also take a netmask, a hostmask and, for IPv6, a zone.
    if not re.fullmatch(r"[0-9A-Fa-f.:]+(/[0-9]{1,3})?", text, re.ASCII):
        raise ValueError
    interface = ipaddress.ip_interface(text)
    return interface, _address_fault(interface.ip)


def read_claim(value: object, place: str) -> tuple[Network, ...] | Literal["any", "on-link"]:
    if value in ("any", "on-link"):
        return value
    if isinstance(value, str):
        raise ConfigError(f'{place}: {quoted(value)} is not valid; use "any", "on-link" or a list of prefixes')
    if value in (["any"], ["on-link"]):  # as the command line sends it
        return cast("Literal['any', 'on-link']", cast("list[object]", value)[0])
    return read_list(value, place, read_network)


def read_guard(value: object, place: str) -> tuple[Guard, ...]:
    """All guards, none, or those of a list, in their own order."""
    words = {"strict": tuple(Guard), "off": ()}
    if isinstance(value, list) and len(value) == 1 and value[0] in words:
        value = value[0]  # as the command line sends it
    if isinstance(value, str):
        if value not in words:
            raise ConfigError(f'{place}: {quoted(value)} is not valid; use "strict", "off" or a list of guards')
        return words[value]
    found = read_list(value, place, choice(Guard))
    return tuple(guard for guard in Guard if guard in found)


def read_network(value: object, place: str) -> Network:
    text = read_string(value, place)
    try:
        if not re.fullmatch(r"[0-9A-Fa-f.:]+(/[0-9]{1,3})?", text, re.ASCII):
            raise ValueError
        return ipaddress.ip_network(text)
    except ValueError:
        raise ConfigError(f"{place}: {quoted(text)} is not an IPv4 or IPv6 prefix") from None


def read_gateways(value: object, place: str) -> tuple[Address, ...]:
    return read_list(value, place, read_gateway)


def read_gateway(value: object, place: str) -> Address:
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
    """What makes no sense, and what the kernel refuses on a device (ipv6_add_addr). IPv4's 127.0.0.0/8 and
    224.0.0.0/4 it accepts, and its ipvlan driver treats them as any other address of a port."""
    if address.is_unspecified:
        return "is the unspecified address"
    if address == ipaddress.IPv4Address(0xFFFFFFFF):
        return "is the broadcast address"
    if address.version == 6 and address.is_multicast:
        return "is a multicast address, which no port can own"
    if address.version == 6 and address.is_loopback:
        return "belongs to the loopback device"
    return None


# ---------------------------------------------------------------------------- errors


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
