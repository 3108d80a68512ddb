"""What the tests of exported routes share: the routes in the kernel's table, and what happens to routes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.patience import until
from tests.support.topology import Lab, exec_in, run

TABLE = "118"


def kernel_routes(netns: str, table: str = TABLE) -> list[dict[str, Any]]:
    """Both families'. A table that nobody has used yet is empty."""
    found: list[dict[str, Any]] = []
    for family in ("-4", "-6"):
        text = run("ip", "-n", netns, family, "-N", "-j", "route", "show", "table", table, check=False)
        found += json.loads(text) if text.strip().endswith("]") else []
    return found


def exported(lab: Lab) -> set[str]:
    """The destinations of the routes that are exported on the lab's host."""
    return {one["dst"] for one in kernel_routes(lab.host) if one["protocol"] == "118"}


def until_exported(lab: Lab, *destinations: str) -> None:
    until(lambda: exported(lab) == {*destinations}, f"{destinations} are exported", every=0.02)


PROBE = "192.0.2.255"  # of a route that tells whether the monitor listens


class Removals:
    """Routes that were removed in a namespace, as `ip monitor` tells."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self) -> list[str]:
        lines = self._path.read_text().splitlines()
        return [line for line in lines if line.startswith("Deleted ") and PROBE not in line]


@contextmanager
def removals(netns: str, path: Path) -> Iterator[Removals]:
    """`path`: a file for what the monitor says."""
    with path.open("ab") as file:  # it begins anew when the file is emptied
        words = ["stdbuf", "-oL", "ip", "monitor", "route"]
        monitor = subprocess.Popen(exec_in(netns, *words), stdout=file)
    try:

        def listens() -> bool:
            for verb in ("add", "del"):
                run("ip", "-n", netns, "route", verb, "blackhole", PROBE, "table", "999")
            return PROBE in path.read_text()

        until(listens, "the monitor listens", every=0.02)
        path.write_text("")
        yield Removals(path)
    finally:
        monitor.kill()
        monitor.wait()
