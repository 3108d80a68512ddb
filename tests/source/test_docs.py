"""What the documents say is what the code has."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from ipvsw import __version__
from ipvsw._fast import OUTCOMES
from ipvsw.config.file import load
from ipvsw.model import Config, DaemonConfig, PortConfig, SwitchConfig

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path for folder in (".", "docs", "kmod-shim", "tests/bench") for path in (ROOT / folder).glob("*.md")
) + sorted((ROOT / "docs").glob("*/*.md"))
COUNTERS = (ROOT / "docs/reference/counters.md").read_text()
CONFIGURATION = (ROOT / "docs/reference/configuration.md").read_text()


def first_column(table: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)


def key_table(name: str) -> str:
    return CONFIGURATION.split(f"<!-- keys: {name} -->")[1].split("<!-- end -->")[0]


def test_every_counter_is_explained() -> None:
    outcomes = COUNTERS.split("<!-- outcomes -->")[1].split("<!-- end -->")[0]
    assert first_column(outcomes) == list(OUTCOMES)


@pytest.mark.parametrize(
    ("table", "struct"), [("daemon", DaemonConfig), ("switch", SwitchConfig), ("port", PortConfig)]
)
def test_every_configuration_key_is_explained(table: str, struct: type[msgspec.Struct]) -> None:
    keys = [name for name in struct.__struct_fields__ if name != "ports"]
    assert sorted(first_column(key_table(table))) == sorted(keys)


def examples() -> list[tuple[str, str]]:
    """Every whole configuration in the documents, and where it stands."""
    found = [("contrib/ipvsw.toml", (ROOT / "contrib/ipvsw.toml").read_text())]
    for document in DOCUMENTS:
        for text in re.findall(r"^```toml\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL):
            if "[[switch]]" in text:
                found.append((str(document.relative_to(ROOT)), text))
    return found


@pytest.mark.parametrize(("place", "text"), examples())
def test_examples_are_valid(place: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "ipvsw.toml"
    file.write_text(text)
    loaded = load(str(file))
    assert isinstance(loaded, Config) and loaded.switches[0].ports, place


def test_the_readme_has_an_example() -> None:
    assert "README.md" in [place for place, _ in examples()]


def anchors(document: Path) -> set[str]:
    """The names by which a link finds the document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", document.read_text()):
        target = document.parent / path if path else document
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_the_functions_on_a_frames_way_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text().split("## A frame's way", 1)[1]
    chains = next(block for block in text.split("```") if " > " in block)
    named = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b(?!\(|[./])", chains))
    sources = "\n".join(path.read_text() for path in (ROOT / "ipvsw/datapath").rglob("*.pxd"))
    assert named - set(re.findall(r"^cdef inline .*?(\w+)\(", sources, re.MULTILINE)) == set()
    assert len(named) > 30


def test_every_document_is_reached_from_the_readme() -> None:
    reached, left = set(), [ROOT / "README.md"]
    while left:
        document = left.pop()
        if document in reached or document.suffix != ".md":
            continue
        reached.add(document)
        paths = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
        left += [(document.parent / path).resolve() for path in paths]
    assert set(DOCUMENTS) <= reached


def test_every_make_target_is_listed() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    inner = {"system", "test-packages", "bench-packages", "always"}
    assert set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)) == phony - inner


def test_version_is_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"] == "ipvsw"
