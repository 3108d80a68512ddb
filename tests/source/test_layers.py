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

# Libraries (and dangerous parts of the standard one) that live in one file or folder.
OWNERS = {
    "aiohttp": ("daemon/api/", "web/"),
    "fcntl": "linux/",
    "prometheus_client": "daemon/metrics.py",
    "pyroute2": "linux/netlink/",
    "pytun": "linux/devices/",
    "qemu": "vmm/qmp.py",
    "rich": "cli/diagnose/top.py",
    "tomli_w": "config/write.py",
    "uvloop": "daemon/main.py",
}
WITHOUT_MODEL = {"client", "batch", "packets", "model"}
WITHOUT_STATUS = WITHOUT_MODEL | {"status"}
OPEN = {"model": WITHOUT_MODEL, "status": WITHOUT_STATUS, "outcomes": WITHOUT_STATUS | {"outcomes"}}
"""What all others may import, and who may not."""


def rules() -> dict[str, set[str]]:
    """The arrows of ARCHITECTURE.md: folder -> the folders that it may import."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    block = text.split("Imports run downwards only", 1)[1].split("```")[1]
    allowed: dict[str, set[str]] = {}
    for arrow in block.strip().splitlines():
        left, right = arrow.split(" -> ")
        for folder in left.split(", "):
            allowed.setdefault(folder, set()).update(right.split(", "))
    return allowed


def may_import(folder: str) -> set[str]:
    return rules().get(folder, set()) | {name for name, without in OPEN.items() if folder not in without}


def sources(*suffixes: str) -> list[Path]:
    return sorted(path for suffix in suffixes for path in PACKAGE.rglob(f"*{suffix}"))


def folder_of(parts: tuple[str, ...]) -> str:
    """The first folder below the package, or the module there; below `datapath` the second."""
    return parts[1] if parts[0] == "datapath" else parts[0]


def folder(path: Path) -> str:
    return folder_of(path.relative_to(PACKAGE).with_suffix("").parts)


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


def folders_imported(path: Path) -> set[str]:
    """Folders of ours that a file imports, other than its own. The package itself (`__version__`, `DEFAULT_SOCKET`) is
    nobody's."""
    found = {folder_of(tuple(name.split(".")[1:])) for name in imports(path) if name.startswith("ipvsw.")}
    return {name for name in found if not name.startswith("__") and not name.isupper()} - {folder(path)}


FILES = [path for path in sources(".py", ".pyx", ".pxd") if folder(path) not in {"__init__", "__main__"}]


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_every_rule_is_about_a_folder() -> None:
    assert set(rules()) | {target for targets in rules().values() for target in targets} <= {*map(folder, FILES)}


def test_no_arrow_runs_upwards() -> None:
    order = list(rules())
    for above, targets in rules().items():
        assert all(order.index(target) > order.index(above) for target in targets if target in order)


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_imports_follow_the_rules(path: Path) -> None:
    assert folders_imported(path) <= may_import(folder(path))


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_imports_are_absolute(path: Path) -> None:
    assert not re.search(r"^\s*from\s+\.", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_libraries_stay_in_their_room(path: Path) -> None:
    place = str(path.relative_to(PACKAGE))
    strangers = {
        library
        for library, owner in OWNERS.items()
        if not place.startswith(owner) and any(name.split(".")[0] == library for name in imports(path))
    }
    assert not strangers


def test_one_file_commits_changes_of_the_data_plane() -> None:
    files = [
        path for path in sources(".py") if re.search(r"datapath\.commit\(|shim\.(set_|add|remove)", path.read_text())
    ]
    assert names(files) == ["ipvsw/changes.py"]


def test_hot_loop_knows_no_names_and_no_configuration() -> None:
    modules = {name.split(".")[0] for path in sources(".pyx", ".pxd") for name in imports(path)}
    assert modules <= {"ipvsw", "libc", "posix", "cpython", "cython", "ipaddress", "os", "sys", "threading"}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("ipvsw.cli", ["aiohttp", "asyncio", "pyroute2", "uvloop", "ipvsw._fast"]),
        ("ipvsw.client", ["aiohttp", "asyncio", "pyroute2", "uvloop", "ipvsw._fast"]),
        ("ipvsw.daemon.main", ["aiohttp", "prometheus_client", "pyroute2", "tomli_w"]),  # ports go on before
    ],
)
def test_what_starts_often_or_in_haste_starts_light(module: str, heavy: list[str]) -> None:
    program = f"import sys, {module}; print(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
