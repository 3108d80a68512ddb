"""The words of `ipvsw link add` and `link set`: those of the configuration's keys, in any order, as ip takes them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ipvsw.cli.command import Asked, Usage
from ipvsw.config.keys import SWITCH, Key
from ipvsw.config.port_keys import CHANGE, MACHINES, PORT
from ipvsw.model import Flag, Kind, MacSource, Mode, Who

if TYPE_CHECKING:
    from ipvsw.cli.complete import Names

TYPES: dict[str, tuple[Kind, ...]] = {"ipvlan": (Kind.NETNS,), "ipvtap": MACHINES}
"""iproute2's types of link -> kinds of port; the first one unless another is given."""
KEYS = {key.word or key.name: key for key in (*(key for key in SWITCH if key.name == "master"), *PORT)}
"""The keys that `link add` takes with a word after them. `type`, `mode` and the flags come besides."""


CHANGES = {key.word or key.name: key for key in CHANGE}
"""Those that `link set` takes."""

QUEUES = ("numtxqueues", "numrxqueues")
"""ip's words for `queues`: a port has as many of both."""


def read_add(words: list[str], asked: Asked) -> None:
    link_type = _read_keys(list(words), asked, KEYS)
    _check_type(link_type, asked)
    kinds = TYPES[link_type]
    if asked.port.setdefault("kind", str(kinds[0])) not in kinds:
        raise Usage(f"kind {asked.port['kind']}: type {link_type} has {', '.join(kinds)}", asked.command)
    if asked.port["kind"] == Kind.NETNS:
        del asked.port["kind"]
    for word, key in KEYS.items():
        if key.required and key.name not in asked.port:
            raise Usage(f"{word} {key.operand} is missing", asked.command)


def read_set(words: list[str], asked: Asked) -> None:
    rest = words[1:] if words[:1] == ["dev"] and len(words) > 1 else list(words)
    if not rest:
        raise Usage("the name of a port, a switch or a master is missing", asked.command)
    asked.name = rest.pop(0)
    link_type = _read_keys(rest, asked, CHANGES)
    if asked.port and (link_type or asked.mode or asked.flag):
        raise Usage(f"{next(iter(asked.port))} is a port's, mode and flag are the switch's", asked.command)
    if asked.port:
        return
    _check_type(link_type, asked)
    if asked.mode is None and asked.flag is None:
        raise Usage("nothing to set: say mode MODE, or bridge, private or vepa", asked.command)


def _read_keys(words: list[str], asked: Asked, known: Mapping[str, Key]) -> str:
    """Keywords in any order; returns the type, "" if there is none. A word that is none names the port."""
    seen = set()
    link_type = ""
    while words:
        word = words.pop(0)
        if word == "mode" or word in list(Flag):
            _read_mode(word, words, asked)
            continue
        if word in QUEUES and "queues" in known:
            asked.port["queues"] = max(_count(word, words, asked), asked.port.get("queues", 1))
            continue
        if word == "dev" and "name" in known:
            word = "name"
        if word not in known and word != "type":
            if "name" not in known or "name" in seen:
                raise Usage(f"{word}: not understood", asked.command)
            words.insert(0, word)
            word = "name"
        if word in seen and not (word in known and known[word].is_list):
            raise Usage(f"{word} is given twice", asked.command)
        seen.add(word)
        value = _next(words, word, asked)
        if word == "type":
            link_type = value
        else:
            _read_key(known[word], value, asked)
    return link_type


def _check_type(link_type: str, asked: Asked) -> None:
    if not link_type:
        raise Usage("type ipvlan is missing", asked.command)
    if link_type not in TYPES:
        raise Usage(f"type {link_type}: ipvsw makes {' and '.join(TYPES)} only", asked.command)


def _count(word: str, words: list[str], asked: Asked) -> int:
    value = _next(words, word, asked)
    try:
        return _number(value)
    except ValueError as error:
        raise Usage(f"{word} {value}: {error}", asked.command) from None


def _read_key(key: Key, word: str, asked: Asked) -> None:
    try:
        value = _FROM_WORD.get(key.name, _BY_TYPE.get(key.type, str))(word)
    except ValueError as error:
        raise Usage(f"{key.word or key.name} {word}: {error}", asked.command) from None
    if key.is_list:
        asked.port.setdefault(key.name, []).append(value)
    else:
        asked.port[key.name] = value


def _read_mode(word: str, words: list[str], asked: Asked) -> None:
    if word == "mode":
        value = _next(words, "mode", asked)
        if value not in list(Mode):
            raise Usage(f"mode {value}: not one of {', '.join(Mode)}", asked.command)
        if asked.mode is not None:
            raise Usage("mode is given twice", asked.command)
        asked.mode = value
    elif asked.flag is not None:
        raise Usage(f"{word}: the flag is {asked.flag} already", asked.command)
    else:
        asked.flag = word


def _next(words: list[str], key: str, asked: Asked) -> str:
    if not words:
        raise Usage(f"{key}: a word is missing after it", asked.command)
    return words.pop(0)


# ---------------------------------------------------------------------------- one word -> the API's JSON


def _number(word: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", word, re.ASCII):
        raise ValueError("not a number")
    return int(word)


def _switched(word: str) -> bool:
    if word not in ("on", "off"):
        raise ValueError("say on or off")
    return word == "on"


def _who(word: str) -> str | int:
    return int(word) if re.fullmatch(r"[0-9]{1,10}", word, re.ASCII) else word


def _netns(word: str) -> str:
    """ip's rule: a namespace of that name, otherwise a process's number."""
    if word.isascii() and word.isdigit() and not os.path.exists(f"/run/netns/{word}"):
        return f"pid:{word}"
    return word


_BY_TYPE: dict[Any, Callable[[str], object]] = {int: _number, bool: _switched, Who: _who, tuple[Who, ...]: _who}
_FROM_WORD: dict[str, Callable[[str], object]] = {"netns": _netns}


# ---------------------------------------------------------------------------- completion


def complete_add(words: list[str], names: Names) -> Iterable[str]:
    return _complete(words, KEYS, {"link": names.devices, "netns": names.namespaces})


def complete_set(words: list[str]) -> Iterable[str]:
    """What may follow the name."""
    return _complete([word for word in words if word != "dev"][1:], CHANGES, {})


def _complete(
    words: list[str], known: Mapping[str, Key], values: Mapping[str, Callable[[], Iterable[str]]]
) -> Iterable[str]:
    """The keywords that are left, or the values of the last one."""
    given = set()
    waiting = None  # the keyword whose value comes next
    for word in words:
        if waiting is not None:
            waiting = None
        elif word in known or word in ("type", "mode"):
            waiting = word
            given.add(word)
        else:
            given.add("flag" if word in list(Flag) else word)
    if waiting is not None:
        return values[waiting]() if waiting in values else _choices(waiting, known)
    flags = () if "flag" in given else tuple(Flag)
    return [
        *(word for word in (*known, "type", "mode") if word not in given or (word in known and known[word].is_list)),
        *flags,
    ]


def _choices(word: str, known: Mapping[str, Key]) -> Iterable[str]:
    if word == "type":
        return TYPES
    if word == "mode":
        return Mode
    if word == "kind":
        return TYPES["ipvtap"]
    if word == "mac":
        return MacSource
    kind = known[word].type
    if kind is bool:
        return ("on", "off")
    return kind if isinstance(kind, type(Mode)) else ()
