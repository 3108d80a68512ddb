"""In a guest: the cases of one lab, and a line of JSON for each as soon as it has ended."""

from __future__ import annotations

import json
import sys

from tests.field.contest import run
from tests.field.labs import LABS


def main() -> None:
    (name,) = sys.argv[1:]
    for ended in run(LABS[name].groups):
        print(json.dumps(ended), flush=True)


if __name__ == "__main__":
    main()
