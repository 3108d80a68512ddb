"""What may stand next on a command line: the shells' completion scripts ask here, on every TAB."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from ipvsw.cli.words import (
    COMMANDS,
    LINK_COMMANDS,
    MODE_KEYS,
    OPTIONS,
    PORT_KEYS,
    REPEATED,
    SHELLS,
    SWITCHED,
    TYPES,
    VALUED,
    Usage,
    find_command,
)
from ipvsw.client import ApiError, Client, Unreachable
from ipvsw.model import DEFAULT_SOCKET, Flag, MacSource, Mode

TIMEOUT = 2.0  # seconds; nobody waits longer for a TAB


def candidates(words: list[str], *, netns: str = "/run/netns", devices: str = "/sys/class/net") -> list[str]:
    """`words`: those after `ipvsw`, the last one unfinished and possibly empty. Sorted; files are the
    shell's own business."""
    *before, last = words or [""]
    socket, before = _take_socket(before)
    if socket is None:
        return []
    if (before and before[-1] in VALUED) or "--" in before:
        return []
    before = [word for at, word in enumerate(before) if not word.startswith("-") and before[at - 1] not in VALUED]
    try:
        command, rest = find_command(before)
    except Usage:
        return []
    if last.startswith("-"):
        found: Iterable[str] = (*OPTIONS, "--all") if command in ("", "stats") else OPTIONS
        found = (*found, *(option for option, commands in VALUED.items() if command in commands))
    else:
        found = _Next(socket, netns, devices).after(command, rest)
    return sorted({one for one in found if one.startswith(last)})


def _take_socket(words: list[str]) -> tuple[str | None, list[str]]:
    """The socket that is asked for, None while it is being typed; and the other words."""
    socket: str | None = DEFAULT_SOCKET
    others: list[str] = []
    for at, word in enumerate(words):
        if word.startswith("--socket="):
            socket = word.removeprefix("--socket=")
        elif word == "--socket":
            socket = words[at + 1] if at + 1 < len(words) else None
        elif at == 0 or words[at - 1] != "--socket":
            others.append(word)
    return socket, others


class _Next:
    def __init__(self, socket: str, netns: str, devices: str) -> None:
        self._client = Client(socket, timeout=TIMEOUT)
        self._netns = netns
        self._devices = devices

    def after(self, command: str, words: list[str]) -> Iterable[str]:
        if command == "link" and not words:
            return LINK_COMMANDS
        if command == "link add":
            return self._in_add(words)
        if command == "link set" and words and words != ["dev"]:
            return self._in_keys([word for word in words if word != "dev"][1:], ("type",), {})
        if words and words != ["dev"]:
            return ()
        return self._first(command)

    def _first(self, command: str) -> Iterable[str]:
        choices: dict[str, Callable[[], Iterable[str]]] = {
            "": lambda: COMMANDS,
            "help": lambda: COMMANDS,
            "completion": lambda: SHELLS,
            "show": self._switches,
            "stats": self._both,
            "address": self._both,
            "lease": self._both,
            "link show": self._both,
            "link set": self._both,
            "link delete": self._ports,
            "exec": self._ports,
            "attach": self._ports,
            "detach": self._ports,
        }
        return choices.get(command, tuple)()

    def _in_add(self, words: list[str]) -> Iterable[str]:
        return self._in_keys(
            words,
            PORT_KEYS,
            {"link": lambda: _names(self._devices), "netns": lambda: _names(self._netns)},
        )

    def _in_keys(
        self, words: list[str], known: tuple[str, ...], values: dict[str, Callable[[], Iterable[str]]]
    ) -> Iterable[str]:
        values = values | {
            "type": lambda: TYPES,
            "kind": lambda: TYPES["ipvtap"],
            "learn": lambda: SWITCHED,
            "mac": lambda: MacSource,
            "mode": lambda: Mode,
        }
        said = set()
        waiting = None  # the keyword whose value comes next
        for word in words:
            if waiting is not None:
                waiting = None
            elif word in known or word == "mode":
                waiting = word
                said.add(word)
            else:
                said.add("flag" if word in list(Flag) else word)
        if waiting is not None:
            return values.get(waiting, tuple)()
        flags = {str(flag) for flag in Flag} if "flag" in said else set()
        return [key for key in (*known, *MODE_KEYS) if (key not in said or key in REPEATED) and key not in flags]

    def _switches(self) -> list[str]:
        return [switch for switch, _ in self._status()]

    def _ports(self) -> list[str]:
        """By their own name where it is the only one, else SWITCH/PORT."""
        every = [(switch, port) for switch, ports in self._status() for port in ports]
        names = [port for _, port in every]
        return [port if names.count(port) == 1 else f"{switch}/{port}" for switch, port in every]

    def _both(self) -> list[str]:
        return self._switches() + self._ports()

    def _status(self) -> list[tuple[str, list[str]]]:
        try:
            return [(one["name"], [port["name"] for port in one["ports"]]) for one in self._client.switches()]
        except (Unreachable, ApiError):
            return []


def _names(directory: str) -> list[str]:
    return os.listdir(directory) if Path(directory).is_dir() else []
