"""One scenario: it ends with exit status 0 and its figures as JSON, or with what went wrong."""

from __future__ import annotations

import json
import sys

from tests.vm.module import addresses, devices, traffic
from tests.vm.module.kernel import Module

SCENARIOS = {
    "traffic": traffic.traffic,
    "restart": traffic.restart,
    "going": devices.going,
    "semantics": devices.semantics,
    "attributes": devices.attributes,
    "bond": devices.bond,
    "cycles": devices.cycles,
    "duplicates": addresses.duplicates,
    "race": addresses.race,
}


def main() -> None:
    path, *names = sys.argv[1:]
    figures = {}
    for name in names:
        with Module(path) as module:
            figures[name] = SCENARIOS[name](module)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
