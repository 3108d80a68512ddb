"""What holds for every test: each directory's helpers are its own."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def pytest_pycollect_makemodule(module_path: Path) -> None:
    """Forget other directories' modules before a test is imported: some have the same name, as `model`.

    Who imported them keeps them.
    """
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is None or name == "conftest":
            continue
        directory = Path(file).parent
        if directory != module_path.parent and directory != TESTS and TESTS in directory.parents:
            del sys.modules[name]
