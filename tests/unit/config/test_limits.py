"""Limits as an operator writes them."""

from __future__ import annotations

import pytest

from ipvsw.config.limits import read_broadcast, read_packets, read_rate
from ipvsw.config.values import ConfigError
from ipvsw.model import DEFAULT_BROADCAST, UNLIMITED, Limit


@pytest.mark.parametrize(
    ("word", "text", "rx", "tx"),
    [
        ("1gbit", "1gbit", 10**9, 10**9),
        ("1000mbit", "1gbit", 10**9, 10**9),
        ("1Gbit", "1gbit", 10**9, 10**9),
        ("2.5gbit", "2500mbit", 2_500_000_000, 2_500_000_000),
        ("64000", "64kbit", 64_000, 64_000),
        ("1001bit", "1001bit", 1001, 1001),
        ("1gbit/100mbit", "1gbit/100mbit", 10**9, 10**8),
        ("off/100mbit", "off/100mbit", 0, 10**8),
        ("1gbit/off", "1gbit/off", 10**9, 0),
        ("1tbit", "1tbit", 10**12, 10**12),
        ("off", "off", 0, 0),
        ("off/off", "off", 0, 0),
    ],
)
def test_a_rate(word: str, text: str, rx: int, tx: int) -> None:
    found = read_rate(word, "rate")
    assert found == Limit(text=text, rx=rx, tx=tx)
    assert read_rate(str(found), "rate") == found


@pytest.mark.parametrize(
    ("word", "text", "rx", "tx"),
    [
        ("200k", "200k", 200_000, 200_000),
        ("1m", "1m", 10**6, 10**6),
        ("1.5k", "1500", 1500, 1500),
        ("200k/s", "200k", 200_000, 200_000),
        ("200k/1", "200k/1", 200_000, 1),
        ("off/7/s", "off/7", 0, 7),
        ("off", "off", 0, 0),
    ],
)
def test_packets(word: str, text: str, rx: int, tx: int) -> None:
    found = read_packets(word, "packets")
    assert found == Limit(text=text, rx=rx, tx=tx)
    assert read_packets(str(found), "packets") == found


def test_broadcast_is_in_one_direction() -> None:
    assert read_broadcast("500/s", "broadcast") == read_broadcast("500", "broadcast") == DEFAULT_BROADCAST
    assert read_broadcast("2k/s", "broadcast") == Limit(text="2k/s", rx=2000)
    assert read_broadcast("off", "broadcast") == UNLIMITED
    with pytest.raises(ConfigError, match=r'^broadcast: "500/600" is not a number a second'):
        read_broadcast("500/600", "broadcast")


@pytest.mark.parametrize(
    ("word", "fault"),
    [
        ("1 gbit", r'"1 gbit" is not a rate such as "100mbit", nor "off"'),
        ("100mbps", r'"100mbps" is not a rate such as "100mbit", nor "off"'),
        ("-1mbit", r'"-1mbit" is not a rate'),
        ("1e9", r'"1e9" is not a rate'),
        ("gbit", r'"gbit" is not a rate'),
        ("1gbit/", r'"" is not a rate'),
        ("/1gbit", r'"" is not a rate'),
        ("999bit", r'"999bit" is not between 1kbit and 1tbit'),
        ("0", r'"0" is not between 1kbit and 1tbit'),
        ("2tbit", r'"2tbit" is not between 1kbit and 1tbit'),
        ("1gbit/2gbit/3gbit", r'"1gbit/2gbit/3gbit" is not one limit, nor two with a slash between them'),
        ("١gbit", r'"١gbit" is not a rate'),
        ("", "is empty"),
        (1000, "must be a string, not an integer"),
        (True, "must be a string, not a boolean"),
    ],
)
def test_what_is_no_rate(word: object, fault: str) -> None:
    with pytest.raises(ConfigError, match=f"^port.rate: {fault}"):
        read_rate(word, "port.rate")


@pytest.mark.parametrize("word", ["0", "1gbit", "2000m", "1kk", "k", "0.4"])
def test_what_is_no_number_of_packets(word: str) -> None:
    with pytest.raises(ConfigError, match=r"^packets: "):
        read_packets(word, "packets")
