"""What the documents say is what the code has."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from ipvsw import __version__
from ipvsw._fast import OUTCOMES
from ipvsw.config.file import load
from ipvsw.model import Config, DaemonConfig, PortConfig, SwitchConfig

ROOT = Path(__file__).resolve().parents[2]


def section(title: str) -> str:
    text = (ROOT / "README.md").read_text()
    return re.split(r"^## ", text.split(f"\n## {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def first_column(title: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", section(title), re.MULTILINE)


def test_every_counter_is_explained() -> None:
    assert first_column("Counters") == list(OUTCOMES)


def test_every_configuration_key_is_explained() -> None:
    keys = [f"daemon.{name}" for name in DaemonConfig.__struct_fields__]
    keys += [f"switch[].{name}" for name in SwitchConfig.__struct_fields__ if name != "ports"]
    keys += [f"switch[].port[].{name}" for name in PortConfig.__struct_fields__]
    assert sorted(first_column("Configuration")) == sorted(keys)


def examples() -> list[str]:
    readme = re.findall(r"^```toml\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [*readme, (ROOT / "contrib" / "ipvsw.toml").read_text()]


@pytest.mark.parametrize("text", examples(), ids=["README.md", "contrib/ipvsw.toml"])
def test_examples_are_valid(text: str, tmp_path: Path) -> None:
    file = tmp_path / "ipvsw.toml"
    file.write_text(text)
    loaded = load(str(file))
    assert isinstance(loaded, Config) and loaded.switches[0].ports


def test_links_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_make_target_is_listed() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    inner = {"system", "test-packages", "bench-packages", "always"}
    assert set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE)) == phony - inner


def test_version_is_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"] == "ipvsw"
