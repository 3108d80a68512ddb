"""A configuration file that is read again and again: ports whose text is the same as before are not read anew.

Nearly all of a large file are its ports, and tomllib is written in Python: of 100,000 addresses it takes a quarter of a
second, and the model's values another. So the text is divided at the headers of ports, and each port's lines are a TOML
document of their own. Where that can't be relied on, and wherever there is a mistake, the file is read as a whole.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

from ipvsw.config.file import parse, read_contents, read_document
from ipvsw.config.values import ConfigError
from ipvsw.model import Config, PortConfig

PORT = "[[switch.port]]"
_HEADER = re.compile(r"^[ \t]*\[\[switch\.port\]\][ \t]*(?:#.*)?$", re.MULTILINE)
_BRACKET = re.compile(r"^[ \t]*\[", re.MULTILINE)  # a header may begin there
_MARK = ""  # the key that stands for a port's lines

Digest = bytes


class ConfigFile:
    """One file. `load` may be called in any thread, but not by two at a time."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._known: dict[Digest, PortConfig] = {}  # the ports of the last time, by their text

    def load(self) -> Config:
        """Errors: ConfigError, also when the file can't be read."""
        return self.parse(read_contents(self._path))

    def parse(self, text: str) -> Config:
        """Errors: ConfigError."""
        try:
            return self._parse_parts(text)
        except (_Whole, ConfigError, ValueError, RecursionError):
            return parse(text)  # which names the place of a mistake

    def _parse_parts(self, text: str) -> Config:
        """Errors: _Whole, ConfigError, ValueError, RecursionError."""
        if '"""' in text or "'''" in text:
            raise _Whole  # a header may be part of a string
        rest, parts = _divide(text)
        document = tomllib.loads(rest)
        digests, found = [], 0
        for ports in _port_lists(document):
            for at, port in enumerate(ports):
                if not isinstance(port, dict) or _MARK not in port:
                    digests.append(b"")
                    continue
                if found == len(parts) or port[_MARK] != found:
                    raise _Whole  # the file has such a key itself
                part = parts[found]
                digest = blake2b(part.encode(), digest_size=16).digest()
                ports[at] = self._known.get(digest) or tomllib.loads(part)
                digests.append(digest)
                found += 1
        if found != len(parts):
            raise _Whole
        config = read_document(document)
        read = (port for switch in config.switches for port in switch.ports)
        self._known = dict(zip(digests, read, strict=True))
        return config


class _Whole(Exception):
    """The text can't be divided."""


def _divide(text: str) -> tuple[str, list[str]]:
    """The text with a number in the place of each port's lines, and these. A port that another table follows, or that
    has a line with a bracket, keeps its lines."""
    first, *ports = _HEADER.split(text)
    rest, parts = [first], list[str]()
    for lines in ports:
        if _BRACKET.search(lines):
            rest.append(lines)
        else:
            rest.append(f'\n"{_MARK}" = {len(parts)}\n')
            parts.append(lines)
    return PORT.join(rest), parts


def _port_lists(document: dict[str, Any]) -> Iterator[list[Any]]:
    switches = document.get("switch")
    for switch in switches if isinstance(switches, list) else ():
        ports = switch.get("port") if isinstance(switch, dict) else None
        if isinstance(ports, list):
            yield ports
