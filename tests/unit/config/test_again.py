"""A file that is read again says what it says when it is read as a whole, mistakes included."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ipvsw.config.again import ConfigFile
from ipvsw.config.file import parse
from ipvsw.config.values import ConfigError
from ipvsw.model import Config
from tests.support.effort import calls
from tests.unit.config.broken_configs import BROKEN

HEAD = '[[switch]]\nname = "lan"\nmaster = "m0"\n'
SWITCHES = f"""
[daemon]
workers = 2
{HEAD}
[[switch.port]]  # one
name = "a"
netns = "n1"
addresses = [
    "10.0.0.1/24",  # [[switch.port]]
    "10.0.0.2/24",
]
  [[switch.port]]
name = "b"
addresses = [
["10.0.0.3/24"]
]
[[switch.port]]
name = "c"
mode = "l2"
[[switch]]
master = "m1"
[[switch.port]]
name = '[[switch.port]]'
"""
LINES = [
    "[daemon]", "[[switch]]", 'master = "m0"', 'master = "m1"', "[switch]", "[[switch.port]]", "[[switch.port]]",
    " [[switch.port]] # again", "[[switch.port]]\r", "[switch.port]", "[[ switch . port ]]", 'name = "a"', 'name = "b"',
    "name = '''", "'''", 'name = """', '"""', 'netns = "n1"', "addresses = [", '"10.0.0.1/24",', '"10.0.0.2/24"', "]",
    "[", "mtu = 1400", '"" = 0', '"" = 1', "workers = 1", "# nothing", "", "x", 'addresses = ["10.0.0.1/24"]',
]  # fmt: skip


def outcome(text: str, file: ConfigFile | None = None) -> Config | str:
    try:
        return file.parse(text) if file else parse(text)
    except ConfigError as error:
        return str(error)


def known() -> ConfigFile:
    """A file of which something is known."""
    file = ConfigFile("")
    file.parse(HEAD + '[[switch.port]]\nname = "a"\n[[switch.port]]\nname = "b"\n[[switch.port]]\nname = "c"\n')
    return file


@pytest.mark.parametrize(("text", "line"), BROKEN, ids=[line[:60] for _, line in BROKEN])
def test_a_mistake_is_named_as_ever(text: str, line: str) -> None:
    assert outcome(text, known()) == line


@pytest.mark.parametrize("without", range(SWITCHES.count("\n")))
def test_a_file_with_everything_but_a_line(without: int) -> None:
    lines = SWITCHES.splitlines()
    text, file = "\n".join(lines[:without] + lines[without + 1 :]), known()
    for _ in range(2):
        assert outcome(text, file) == outcome(text)


@given(st.lists(st.sampled_from(LINES), max_size=12), st.booleans())
@example(["[[switch.port]]\r", '"" = 0'], True)
@example(["[[switch.port]]\r", '"" = "a"', "[[switch.port]]", 'name = "a"'], True)
def test_lines_in_any_order(lines: list[str], headed: bool) -> None:
    file, shuffled = known(), random.Random(1).sample(lines, len(lines))
    for some in (lines, lines, shuffled, lines):
        text = "\n".join([HEAD if headed else "", *some, ""])
        assert outcome(text, file) == outcome(text)


def test_a_port_whose_text_is_the_same_is_the_same_object_and_costs_nothing() -> None:
    def text(mtu: int) -> str:
        addresses = [f'"10.{k // 62500}.{k // 250 % 250}.{k % 250 + 1}/8"' for k in range(2000)]
        ports = (
            f"[[switch.port]]\nname = 'p{p}'\naddresses = [{','.join(addresses[p * 100 : p * 100 + 100])}]\n"
            for p in range(20)
        )
        return f"{HEAD}{''.join(ports)}mtu = {mtu}\n"

    file, configs = ConfigFile(""), list[Config]()
    first, again = (calls(lambda mtu=mtu: configs.append(file.parse(text(mtu)))) for mtu in (1400, 1300))
    assert again < first / 3
    old, new = (config.switches[0].ports for config in configs)
    assert [one is other for one, other in zip(old, new, strict=True)] == [True] * 19 + [False]
    assert configs[1] == parse(text(1300))
