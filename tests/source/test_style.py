"""The sources themselves: linters as tests, and rules that no linter knows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NATIVE = sorted([*ROOT.glob("ipvsw/*.pyx"), *ROOT.glob("ipvsw/datapath/**/*.pxd"), *ROOT.glob("tests/native/*.pyx")])
FAST = ROOT / "ipvsw" / "_fast.pyx"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """A tool of the virtual environment, with that environment's bin first on the PATH."""
    bin_directory = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_directory}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def tracked_files() -> list[Path]:
    """Text files under version control or about to be; all of them where there is no repository."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if not {".venv", "build", ".git"} & set(path.parts)]
    return [path for path in found if path.is_file() and b"\0" not in path.read_bytes()[:4096]]


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "--quiet", "."),
        ("ruff", "format", "--check", "--quiet", "."),
        ("mypy", "--no-error-summary"),
        ("cython-lint", "ipvsw", "tests"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_linter_is_content(command: tuple[str, ...]) -> None:
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: path.name)
def test_native_code_never_takes_the_gil(path: Path) -> None:
    """Cython accepts it without a warning, inside the hot loop too."""
    assert not re.findall(r"^.*\bwith\s+gil\b.*$", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: path.name)
def test_what_is_cimported_is_used(path: Path) -> None:
    """cython-lint looks at .pyx files alone."""
    cimport = re.compile(r"^from \S+ cimport (?:\(([^)]*)\)|(.*))$", re.MULTILINE)
    text = path.read_text()
    names = {name.split()[-1] for found in cimport.findall(text) for name in "".join(found).strip(" \n,").split(",")}
    code = re.sub(r'"""[\s\S]*?"""|#.*', "", cimport.sub("", text))
    assert names - set(re.findall(r"\w+", code)) == set()


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: path.name)
def test_nogil_functions_cannot_raise_unseen(path: Path) -> None:
    """Without `noexcept` Cython asks after each call whether an exception is set, and takes the GIL for that."""
    text = re.sub(r"\\\n\s*", " ", path.read_text())
    heads = re.findall(r"^[ \t]*cdef[^\n(]*\([^)]*\)[^\n]*\bnogil\b[^\n]*:", text, re.MULTILINE)
    careless = [head for head in heads if not re.search(r"\bnoexcept\b|\bexcept\s+-?\d", head)]
    assert not careless


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: path.name)
def test_native_code_has_no_deprecated_parts(path: Path) -> None:
    assert not re.findall(r"^\s*(?:DEF|IF|include)\s.*$", path.read_text(), re.MULTILINE)


def test_translation_hints_at_no_hidden_cost(tmp_path: Path) -> None:
    """A "performance hint" is no warning for Cython; here it is an error."""
    done = run(sys.executable, "-m", "cython", "-3", str(FAST), "-o", str(tmp_path / "fast.c"))
    assert done.returncode == 0, done.stderr
    assert "performance hint" not in done.stdout + done.stderr


def test_sources_name_no_machine_and_no_registry() -> None:
    forbidden = re.compile(
        r"(?<![\w.$])/(?:work/|root/\.|home/\w+/|Users/)"  # directories of one machine
        r"|\b(?:test\.)?pypi\.(?:org|python\.org)|\bpythonhosted\.org|--(?:extra-)?index-url|\bfind-links"
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked_files()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if forbidden.search(line)
    ]
    assert not found


def test_nothing_is_left_to_do() -> None:
    """What is unfinished is an error or absent, never a note in the code."""
    marks = re.compile(r"\b(?:TODO|FIXME|XXX)\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked_files()
        if path.suffix in {".py", ".pyi", ".pyx", ".pxd", ".c", ".h"} and path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert not found


def test_licences_are_where_they_belong() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert "GNU GENERAL PUBLIC LICENSE" in (ROOT / "kmod-shim" / "LICENSE").read_text()
    for program in (ROOT / "kmod-shim").rglob("*.bpf.c"):
        assert "SPDX-License-Identifier: GPL-2.0" in program.read_text().splitlines()[0]
