"""The groups that l3 and l3s switch as l2 does every multicast frame."""

from __future__ import annotations

from ipaddress import ip_address

from ipvsw.config.values import ConfigError, quoted, read_list, read_string
from ipvsw.model import Address, Mode, SwitchConfig

GROUPS_MAX = 16  # as the data plane has room for


def read_groups(value: object, place: str) -> tuple[Address, ...]:
    groups: tuple[Address, ...] = read_list(value, place, _read_group)
    if len(groups) > GROUPS_MAX:
        raise ConfigError(f"{place}: {len(groups)} groups are more than {GROUPS_MAX}")
    for at, group in enumerate(groups):
        if (first := groups.index(group)) < at:
            raise ConfigError(f"{place}[{at}]: the group {group} is already {place}[{first}]")
    return groups


def _read_group(value: object, place: str) -> Address:
    text = read_string(value, place)
    try:
        if "%" in text:
            raise ValueError
        group = ip_address(text)
    except ValueError:
        raise ConfigError(f"{place}: {quoted(text)} is not an IPv4 or IPv6 address") from None
    if not group.is_multicast:
        raise ConfigError(f"{place}: {group} is not the address of a multicast group")
    return group


def check_groups(switch: SwitchConfig, place: str) -> None:
    """Errors: ConfigError."""
    if switch.multicast and switch.mode is Mode.L2:
        raise ConfigError(f"{place}: is for modes l3 and l3s; in l2 every group passes")
