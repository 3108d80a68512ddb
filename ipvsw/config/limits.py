"""Limits in the words of tc(8): "1gbit", "200k", "500/s"."""

from __future__ import annotations

import re
from collections.abc import Callable

from ipvsw.config.values import ConfigError, quoted, read_string
from ipvsw.model import UNLIMITED, Limit

RATE_MIN, RATE_MAX = 1_000, 10**12  # bits a second: 1kbit, 1tbit
COUNT_MIN, COUNT_MAX = 1, 10**9  # packets or frames a second
OFF = "off"

BITS = {"": 1, "bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9, "tbit": 10**12}
COUNTS = {"": 1, "k": 10**3, "m": 10**6}


def read_rate(value: object, place: str) -> Limit:
    """Bits a second, in each direction."""
    return _read_pair(value, place, _bits)


def read_packets(value: object, place: str) -> Limit:
    """Packets a second, in each direction."""
    return _read_pair(value, place, _count)


def read_broadcast(value: object, place: str) -> Limit:
    """Frames a second, from the port."""
    text, count = _count(read_string(value, place), place)
    return Limit(text=f"{text}/s", rx=count) if count else UNLIMITED


def _read_pair(value: object, place: str, read: Callable[[str, str], tuple[str, int]]) -> Limit:
    """One for both directions, or one for each: from the port, a slash, to the port."""
    words = read_string(value, place).split("/")
    if words[-1] == "s" and len(words) > 1:
        words.pop()
    if len(words) > 2:
        raise ConfigError(f"{place}: {quoted(str(value))} is not one limit, nor two with a slash between them")
    (rx_text, rx), (tx_text, tx) = (read(word, place) for word in (words[0], words[-1]))
    return Limit(text=rx_text if rx == tx else f"{rx_text}/{tx_text}", rx=rx, tx=tx)


def _bits(word: str, place: str) -> tuple[str, int]:
    return _number(word, place, BITS, RATE_MIN, RATE_MAX, 'a rate such as "100mbit"')


def _count(word: str, place: str) -> tuple[str, int]:
    return _number(word.removesuffix("/s"), place, COUNTS, COUNT_MIN, COUNT_MAX, 'a number a second such as "200k"')


def _number(word: str, place: str, units: dict[str, int], least: int, most: int, what: str) -> tuple[str, int]:
    """In the largest unit that divides it, and as a number; 0 for "off"."""
    if word.lower() == OFF:
        return OFF, 0
    found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([a-z]*)", word.lower(), re.ASCII)
    if not found or found[2] not in units:
        raise ConfigError(f'{place}: {quoted(word)} is not {what}, nor "{OFF}"')
    number = round(float(found[1]) * units[found[2]])
    if not least <= number <= most:
        raise ConfigError(f"{place}: {quoted(word)} is not between {_text(least, units)} and {_text(most, units)}")
    return _text(number, units), number


def _text(number: int, units: dict[str, int]) -> str:
    unit = max((unit for unit, worth in units.items() if number % worth == 0), key=lambda unit: (units[unit], unit))
    return f"{number // units[unit]}{unit}"
