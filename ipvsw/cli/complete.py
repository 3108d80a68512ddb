"""What may stand next on a command line: the shells' completion scripts ask here, on every TAB."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence

from ipvsw import DEFAULT_SOCKET
from ipvsw.config.names import short_names

TIMEOUT = 2.0  # seconds; longer is too long for a TAB


class Names:
    """Names of switches, ports, namespaces and devices. None of the daemon's, if it does not answer."""

    def __init__(self, socket: str, netns: str = "/run/netns", devices: str = "/sys/class/net") -> None:
        self._socket = socket
        self._netns = netns
        self._devices = devices

    def switches(self) -> list[str]:
        return [switch for switch, _ in self._status()]

    def ports(self) -> list[str]:
        return short_names((switch, port) for switch, ports in self._status() for port in ports)

    def both(self) -> list[str]:
        return self.switches() + self.ports()

    def namespaces(self) -> list[str]:
        return _files(self._netns)

    def devices(self) -> list[str]:
        return _files(self._devices)

    def _status(self) -> list[tuple[str, list[str]]]:
        from ipvsw.client import ApiError, Client, Unreachable

        try:
            found = Client(self._socket, timeout=TIMEOUT).switches()
        except (Unreachable, ApiError):
            return []
        return [(one["name"], [port["name"] for port in one["ports"]]) for one in found]


def _files(directory: str) -> list[str]:
    return os.listdir(directory) if os.path.isdir(directory) else []


def candidates(words: Sequence[str], *, netns: str = "/run/netns", devices: str = "/sys/class/net") -> list[str]:
    """`words`: those after `ipvsw`, the last one unfinished and possibly empty. Sorted; files are the
    shell's own business."""
    from ipvsw.cli.command import Usage
    from ipvsw.cli.commands import OPTIONS, below, every_option, find_command, top_level

    *before, last = words or [""]
    valued = {option.name for option in every_option() if option.operand}
    if "--" in before or (before and before[-1] in valued):
        return []
    socket = _socket(before)
    before = [word for at, word in enumerate(before) if not word.startswith("-") and before[at - 1] not in valued]
    try:
        command, rest = find_command(before)
    except Usage:
        return []
    if last.startswith("-"):
        own = command.options if command else every_option()
        found: Iterable[str] = [option.name for option in (*OPTIONS, *own)]
    elif command is None:
        found = top_level()
    elif not rest and (inner := below(command.name)):
        found = (*inner, "help")
    else:
        found = command.complete(rest, Names(socket, netns, devices))
    return sorted({one for one in found if one.startswith(last)})


def _socket(words: list[str]) -> str:
    """The daemon's socket that is asked for."""
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        if word.startswith("--socket="):
            return word.removeprefix("--socket=")
        if word == "--socket":
            return following
    return DEFAULT_SOCKET
