"""Words -> what they ask for. The grammar is ip's: keywords in any order, anything may be shortened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ipvsw.model import DEFAULT_SOCKET, Flag, Mode

# In the order in which a shortened word is looked for; the second word names the command.
COMMANDS = {
    "show": "show",
    "stats": "stats",
    "address": "address",
    "link": "link",
    "lease": "lease",
    "exec": "exec",
    "attach": "attach",
    "detach": "detach",
    "reload": "reload",
    "completion": "completion",
    "help": "help",
}
LINK_COMMANDS = {  # ip's own order: `ip link s` is set
    "add": "link add",
    "set": "link set",
    "delete": "link delete",
    "show": "link show",
    "list": "link show",
    "help": "help",
}
SHELLS = ("bash", "zsh")
PATHS = ("--socket", "--qmp")
OPTIONS = ("--json", "--socket", "--help", "--version")
VALUED = {  # options with a value, of one command each
    "--qmp": ("attach", "detach"),
    "--id": ("attach", "detach"),
    "--device": ("attach",),
    "--mac": ("attach",),
    "--bus": ("attach",),
}
PORT_KEYS = (
    *("link", "name", "netns", "ifname", "mtu", "address", "gateway", "type"),
    *("kind", "mac", "queues", "owner", "group", "allow", "learn", "max_learned"),
    *("path", "connect", "local", "remote"),
)
"""What may stand in `link add`, each with a word after it."""
MODE_KEYS = ("mode", *Flag)
SWITCHED = ("on", "off")
TYPES = {  # -> kinds, the first one unless another is said
    "ipvlan": ("netns",),
    "ipvtap": ("macvtap", "tap", "stream", "dgram"),
}
REPEATED = {"address": "addresses", "gateway": "gateway", "allow": "allow"}  # -> the API's key

_SHORT = {"-j": "--json", "-a": "--all", "-h": "--help", "-V": "--version"}


class Usage(Exception):
    """The words were not understood; `command` is how far they were."""

    def __init__(self, text: str, command: str = "") -> None:
        super().__init__(f"{command}: {text}" if command else text)
        self.command = command


@dataclass
class Asked:
    """One command line. `command` is a key of `help.HELP`; "help" and "version" are commands too."""

    command: str = ""
    name: str | None = None  # of a switch, a port or a shell; for "help", of the command
    socket: str = DEFAULT_SOCKET
    json: bool = False
    all: bool = False
    argv: list[str] = field(default_factory=list)  # the command that `exec` runs
    options: dict[str, str] = field(default_factory=dict)  # those of VALUED, without their dashes
    type: str = ""
    port: dict[str, Any] = field(default_factory=dict)  # the API's keys
    mode: str | None = None
    flag: str | None = None


def understand(arguments: Iterable[str]) -> Asked:
    """Errors: Usage."""
    asked = Asked()
    words = list(arguments)
    if "--" in words:
        at = words.index("--")
        words, asked.argv = words[:at], words[at + 1 :]
    words, options = _take_options(words, asked)
    if "--version" in options:
        asked.command = "version"
        return asked
    command, words = find_command(words)
    if command == "help" or "--help" in options:
        asked.command = "help"
        asked.name = find_command(words)[0] if command == "help" else command
        return asked
    if "--all" in options and command != "stats":
        raise Usage("--all is for stats", command)
    if not command:
        raise Usage("a command is missing; they are " + ", ".join(list(COMMANDS)[:-1]))
    for option in asked.options:
        if command not in VALUED[f"--{option}"]:
            raise Usage(f"--{option} is for {' and '.join(VALUED[f'--{option}'])}", command)
    if asked.argv and command != "exec":
        raise Usage("-- is for exec", command)
    asked.command = command
    _READERS[command](words, asked)
    return asked


def _take_options(arguments: list[str], asked: Asked) -> tuple[list[str], set[str]]:
    words, options = [], set()
    while arguments:
        word = arguments.pop(0)
        option, equals, value = word.partition("=")
        option = _SHORT.get(option, option)
        if not word.startswith("-"):
            words.append(word)
        elif option == "--socket" or option in VALUED:
            if not equals:
                if not arguments:
                    raise Usage(f"{option}: a {'path' if option in PATHS else 'word'} is missing")
                value = arguments.pop(0)
            if option == "--socket":
                asked.socket = value
            else:
                asked.options[option.removeprefix("--")] = value
        elif option in (*OPTIONS, "--all") and not equals:
            options.add(option)
        else:
            raise Usage(f"{word}: no such option")
    asked.json = "--json" in options
    asked.all = "--all" in options
    return words, options


def find_command(words: list[str]) -> tuple[str, list[str]]:
    """The command that `words` begin with ("" for none), and the words after it. Errors: Usage."""
    if not words:
        return "", []
    command = complete(words[0], COMMANDS)
    if command is None:
        raise Usage(f"{words[0]}: no such command; they are {', '.join(list(COMMANDS)[:-1])}")
    words = words[1:]
    if command != "link" or not words:
        return command, words
    return _find_link_command(words)


def _find_link_command(words: list[str]) -> tuple[str, list[str]]:
    command = complete(words[0], LINK_COMMANDS)
    if command is None:
        raise Usage(f"{words[0]}: no such command; they are add, set, delete, show", "link")
    return ("help", ["link"]) if command == "help" else (command, words[1:])


def complete(word: str, names: dict[str, str]) -> str | None:
    """What `word` stands for, written out or shortened; the first one wins, as with ip."""
    if word in names:
        return names[word]
    return next((command for name, command in names.items() if word and name.startswith(word)), None)


# ---------------------------------------------------------------------------- one command each


def _read_nothing(words: list[str], asked: Asked) -> None:
    if words:
        raise Usage(f"{words[0]}: one word too many", asked.command)


def _read_name(words: list[str], asked: Asked) -> None:
    """[dev] [NAME]"""
    if words and words[0] == "dev" and len(words) > 1:
        words = words[1:]
    if words:
        asked.name = words[0]
    _read_nothing(words[1:], asked)


def _read_address(words: list[str], asked: Asked) -> None:
    _read_name(words[1:] if words and words[0] in ("show", "list") else words, asked)


def _read_bare_link(words: list[str], asked: Asked) -> None:
    asked.command = "link show"


def _read_delete(words: list[str], asked: Asked) -> None:
    _read_name(words, asked)
    if asked.name is None:
        raise Usage("the name of a port is missing", asked.command)


def _read_exec(words: list[str], asked: Asked) -> None:
    _read_delete(words, asked)
    if not asked.argv:
        raise Usage("the command is missing: exec PORT -- COMMAND", asked.command)


def _read_hotplug(words: list[str], asked: Asked) -> None:
    _read_delete(words, asked)
    if "qmp" not in asked.options:
        raise Usage("--qmp PATH is missing", asked.command)


def _read_set(words: list[str], asked: Asked) -> None:
    rest = words[1:] if words[:1] == ["dev"] and len(words) > 1 else words
    if not rest:
        raise Usage("the name of a port or a switch is missing", asked.command)
    asked.name = rest.pop(0)
    _read_keys(rest, asked, ("type",))
    if asked.mode is None and asked.flag is None:
        raise Usage("nothing to set: say mode MODE, or bridge, private or vepa", asked.command)


def _read_add(words: list[str], asked: Asked) -> None:
    _read_keys(list(words), asked, PORT_KEYS)
    kinds = TYPES[asked.type]
    if asked.port.setdefault("kind", kinds[0]) not in kinds:
        raise Usage(f"kind {asked.port['kind']}: type {asked.type} has {', '.join(kinds)}", asked.command)
    if asked.port["kind"] == "netns":
        del asked.port["kind"]
    for key, example in (("master", "link MASTER"), ("name", "name NAME")):
        if key not in asked.port:
            raise Usage(f"{example} is missing", asked.command)


def _read_keys(words: list[str], asked: Asked, known: tuple[str, ...]) -> None:
    """Keywords in any order. A word that is none names the port."""
    seen = set()
    while words:
        word = words.pop(0)
        key = "name" if word == "dev" and "name" in known else word
        if key in (*Flag, "mode"):
            _read_mode(key, words, asked)
            continue
        if key not in known:
            if "name" not in known or "name" in seen:
                raise Usage(f"{word}: not understood", asked.command)
            words.insert(0, word)
            key = "name"
        if key in seen and key not in REPEATED:
            raise Usage(f"{key} is said twice", asked.command)
        seen.add(key)
        _read_key(key, _next(words, key, asked), asked)
    if "type" not in seen:
        raise Usage("type ipvlan is missing", asked.command)


def _read_key(key: str, value: str, asked: Asked) -> None:
    if key == "type":
        if value not in TYPES:
            raise Usage(f"type {value}: ipvsw makes {' and '.join(TYPES)} only", asked.command)
        asked.type = value
    elif key in REPEATED:
        asked.port.setdefault(REPEATED[key], []).append(_number_or_name(value) if key == "allow" else value)
    elif key == "learn":
        if value not in SWITCHED:
            raise Usage(f"learn {value}: say on or off", asked.command)
        asked.port[key] = value == "on"
    elif key in ("mtu", "queues", "max_learned"):
        if not re.fullmatch(r"[0-9]{1,9}", value, re.ASCII):
            raise Usage(f"{key} {value}: not a number", asked.command)
        asked.port[key] = int(value)
    elif key in ("owner", "group"):
        asked.port[key] = _number_or_name(value)
    elif key == "netns":
        asked.port["netns"] = _netns(value)
    else:
        asked.port["master" if key == "link" else key] = value


def _read_mode(word: str, words: list[str], asked: Asked) -> None:
    if word == "mode":
        value = _next(words, "mode", asked)
        if value not in list(Mode):
            raise Usage(f"mode {value}: not one of {', '.join(Mode)}", asked.command)
        if asked.mode is not None:
            raise Usage("mode is said twice", asked.command)
        asked.mode = value
    elif asked.flag is not None:
        raise Usage(f"{word}: the flag is {asked.flag} already", asked.command)
    else:
        asked.flag = word


def _next(words: list[str], key: str, asked: Asked) -> str:
    if not words:
        raise Usage(f"{key}: a word is missing after it", asked.command)
    return words.pop(0)


def _number_or_name(word: str) -> str | int:
    return int(word) if re.fullmatch(r"[0-9]{1,10}", word, re.ASCII) else word


def _netns(word: str) -> str:
    """ip's rule: a namespace of that name, otherwise a process's number."""
    if word.isascii() and word.isdigit() and not os.path.exists(f"/run/netns/{word}"):
        return f"pid:{word}"
    return word


def _read_shell(words: list[str], asked: Asked) -> None:
    if not words or words[0] not in SHELLS:
        raise Usage("say bash or zsh", asked.command)
    asked.name = words[0]
    _read_nothing(words[1:], asked)


_READERS = {
    "show": _read_name,
    "stats": _read_name,
    "address": _read_address,
    "lease": _read_address,
    "link": _read_bare_link,
    "link show": _read_name,
    "link add": _read_add,
    "link set": _read_set,
    "link delete": _read_delete,
    "exec": _read_exec,
    "attach": _read_hotplug,
    "detach": _read_hotplug,
    "reload": _read_nothing,
    "completion": _read_shell,
}
