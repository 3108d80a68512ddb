#!/usr/bin/env python3
"""ipvsw beside what else there is on this machine, in one run and by turns: run.py [--rounds N] [ROW...]

Prints a table and writes it, as Markdown, JSON and a picture, to a directory. README.md says what is measured and
how. Needs root, iproute2, a C compiler and iperf3; what can't be had is left out with its reason.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from tests.bench import options
from tests.bench.measuring import quiet, report, turns
from tests.bench.measuring.rows import STAGES, chosen


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def tell(stage: str, text: str) -> None:
    say(f"{stage}: {text}")


def arguments_given() -> argparse.Namespace:
    description = "ipvsw beside what else there is, in one run and by turns."
    parser = options.parser(description, 7, "measurements of each figure", "the results")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="T1, or M5 for all M5-..., or a pattern (default: all)")
    parser.add_argument("--out", type=Path, metavar="DIRECTORY", help="write bench.md, .json and .png there")
    parser.add_argument("--list", action="store_true", help="print the rows and end")
    arguments = parser.parse_args()
    try:
        arguments.rows = chosen(arguments.rows)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def main() -> int:
    arguments = arguments_given()
    if arguments.list:
        for row in arguments.rows:
            print(f"{row.id:<14} {row.what}{f', beside {row.beside}' if row.beside else ''}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is taken down
    taken, start, machine, commit = turns.Taken(), time.monotonic(), report.machine(), report.commit()
    for name in STAGES:
        if wanted := [row for row in arguments.rows if row.stage == name]:
            say(f"{name}: building")
            turns.stage(
                wanted, arguments.rounds, arguments.seconds, taken, lambda what, name=name: say(f"{name}: {what}")
            )
    circumstances = report.Circumstances(
        machine=machine,
        commit=commit,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        took=time.monotonic() - start,
        measurements=taken.number,
        repeated=taken.repeated,
        disturbed=taken.disturbed,
        foreign=quiet.FOREIGN,
    )
    results = [turns.result(row, taken) for row in arguments.rows]
    print(report.markdown(results, circumstances))
    if arguments.out:
        report.write(results, circumstances, arguments.out)
    if arguments.keep:
        report.keep(results, circumstances, arguments.keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
