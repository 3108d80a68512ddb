"""Who may import whom: the rules stand in ARCHITECTURE.md, the facts in the sources."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ipvsw"

# Libraries (and dangerous parts of the standard one) that live in one room.
OWNERS = {
    "aiohttp": {"api"},
    "fcntl": {"devices", "namespaces"},
    "pyroute2": {"netlink"},
    "pytun": {"devices"},
    "qemu": {"hotplug"},
    "uvloop": {"daemon"},
}
ELSEWHERE = {"standard library", "libc", "msgspec"}


def rules() -> dict[str, set[str]]:
    """The arrows of ARCHITECTURE.md: room -> the rooms that it may import."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    block = text.split("Who may import whom", 1)[1].split("```")[1]
    allowed: dict[str, set[str]] = {}
    for arrow in re.split(r"\n|\s{3,}", block.strip()):
        left, right = arrow.split(" -> ")
        targets = set(re.split(r", | and ", right)) - ELSEWHERE
        for room in left.split(", "):
            allowed.setdefault(room, set()).update(targets)
    return allowed


def sources(*suffixes: str) -> list[Path]:
    return sorted(path for suffix in suffixes for path in PACKAGE.rglob(f"*{suffix}"))


def room(path: Path) -> str:
    """The module, or for a package's file the package: ipvsw/devices/tap.py is in `devices`."""
    return path.relative_to(PACKAGE).parts[0].split(".")[0]


def python_imports(path: Path) -> Iterator[str]:
    """Absolute names of what a Python file imports, `ipvsw.netlink.handle` for `from .handle import Handle`."""
    package = ["ipvsw", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module or "").split(".")] if node.module else base
            if module == ["ipvsw"]:
                yield from (f"ipvsw.{alias.name}" for alias in node.names)
            else:
                yield ".".join(module)


def cython_imports(path: Path) -> Iterator[str]:
    for module in re.findall(r"^\s*from\s+(\S+)\s+c?import\b", path.read_text(), re.MULTILINE):
        yield f"ipvsw{module}" if module.startswith(".") else module
    yield from re.findall(r"^\s*c?import\s+(\S+)", path.read_text(), re.MULTILINE)


def imports(path: Path) -> set[str]:
    return set(python_imports(path) if path.suffix == ".py" else cython_imports(path))


def rooms_imported(path: Path) -> set[str]:
    """Rooms of ours that a file imports, other than its own. The package itself (`__version__`) is nobody's."""
    found = {name.split(".")[1] for name in imports(path) if name.startswith("ipvsw.")}
    return {name for name in found if not name.startswith("__")} - {room(path)}


FILES = [path for path in sources(".py", ".pyx", ".pxd") if room(path) not in {"__init__", "__main__"}]


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_every_room_has_a_rule() -> None:
    assert {room(path) for path in FILES} <= set(rules())


def test_every_rule_has_a_room() -> None:
    assert set(rules()) <= {room(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_imports_follow_the_rules(path: Path) -> None:
    assert rooms_imported(path) <= rules().get(room(path), set())


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_libraries_stay_in_their_room(path: Path) -> None:
    strangers = {
        library
        for library, owners in OWNERS.items()
        if room(path) not in owners and any(name.split(".")[0] == library for name in imports(path))
    }
    assert not strangers


def test_hot_loop_knows_no_names_and_no_configuration() -> None:
    modules = {name.split(".")[0] for path in sources(".pyx", ".pxd") for name in imports(path)}
    assert modules <= {"ipvsw", "libc", "posix", "cpython", "cython", "ipaddress", "os", "sys", "threading"}


@pytest.mark.parametrize("module", ["ipvsw.cli", "ipvsw.client"])
def test_command_line_starts_light(module: str) -> None:
    heavy = ["aiohttp", "asyncio", "pyroute2", "uvloop", "ipvsw._fast"]
    program = f"import sys, {module}; print(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
