#!/usr/bin/env python3
"""Replay the corpus against `ipvswd` and compare with what the kernel's driver did:

    python -m tests.conformance.run [MODE-FLAG ...]

Without arguments every pair in PAIRS. Prints each case that differs and "N of N cases agree";
exits 1 if any differs. Needs root, iproute2 and nftables. With `--links` the ports are devices of
the kernel module (`ip link add ... type ipvsw`), which must be loaded. `--corpus FILE --expected DIRECTORY`
takes other frames of the same kinds (see generate.py).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.conformance import compare as compared
from tests.conformance import rig
from tests.support import running
from tests.support.patience import LIMIT, until

HERE = Path(__file__).resolve().parent

PAIRS = tuple(f"{m}-{f}" for m in ("l2", "l3", "l3s") for f in ("bridge", "private", "vepa"))
BESIDES = 0.5  # s in which more than is wanted would have come
LOCK = Path(tempfile.gettempdir(), "ipvsw-conformance.lock")


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """The rig's namespaces have fixed names: one run at a time."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


Sightings = dict[str, list[dict[str, str]]]


def seen(pair: str, corpus: Path, wanted: Sightings, links: bool = False, device: str = "tap") -> Sightings:
    """What everybody in the rig received while `ipvswd` switched `corpus` in the given mode and flag. `wanted` is
    waited for, and what may come besides for a while."""

    def all_there(sightings: Sightings) -> bool:
        return all(compared.sightings(sightings[case]) == compared.sightings(one) for case, one in wanted.items())

    mode, flag = pair.split("-")
    with alone():
        try:
            rig.base()
            ports = [] if links else [running.port(name, rig.NETNS[name][0], device=device) for name in rig.PORTS]
            lan = running.switch("m0", rig.HOST, ports, mode=mode, flag=flag)
            with running.Daemon(lan) as daemon:
                daemon.wait(states=("up", "down"))
                if links:
                    rig.links()
                    until(lambda: len(daemon.show()[0]["ports"]) == len(rig.PORTS), "the links are ports", every=0.1)
                rig.addresses()
                until(lambda: has_addresses(daemon), "the addresses are known")
                sightings: Sightings = rig.replay(str(corpus), settle=BESIDES, until=all_there, limit=LIMIT)
        finally:
            rig.down()
    return sightings


def has_addresses(daemon: running.Daemon) -> bool:
    """Whether the switch has those that the rig gives to the ports."""
    ports = daemon.show()[0]["ports"]
    owned = {one["address"] for port in ports for one in port["addresses"] if one["state"] == "owned"}
    return owned >= {address.format(name[1]) for name in rig.PORTS for address in ("10.1.0.1{}", "fd00:1::1{}")}


def compare(
    pair: str,
    corpus: Path = HERE / "corpus.json",
    expected: Path = HERE / "expected",
    links: bool = False,
    device: str = "tap",
) -> tuple[bool, str]:
    """Whether every case agrees, and compare.py's words."""
    wanted = json.loads((expected / f"{pair}.json").read_text())
    sightings = seen(pair, corpus, compared.improved(wanted) if pair.startswith("l2-") else wanted, links, device)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(sightings, file)
        file.flush()
        done = subprocess.run(
            [sys.executable, str(HERE / "compare.py"), str(expected / f"{pair}.json"), file.name],
            capture_output=True,
            text=True,
        )
    return done.returncode == 0, done.stdout + done.stderr


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare ipvswd with the kernel's ipvlan, frame by frame.")
    parser.add_argument("pairs", nargs="*", metavar="MODE-FLAG", help=f"of {', '.join(PAIRS)} (default: all)")
    parser.add_argument("--corpus", type=Path, default=HERE / "corpus.json", help="other frames to replay")
    parser.add_argument("--expected", type=Path, default=HERE / "expected", help="directory of what to expect")
    parser.add_argument("--device", default="tap", help="of the ports, as in the configuration")
    parser.add_argument("--links", action="store_true", help="ports that the kernel module makes")
    arguments = parser.parse_args()
    for pair in arguments.pairs:
        if pair not in PAIRS:
            parser.error(f"{pair!r} is not one of {', '.join(PAIRS)}")
    differing = False
    for pair in arguments.pairs or PAIRS:
        agree, words = compare(pair, arguments.corpus, arguments.expected, arguments.links, arguments.device)
        print(f"{pair}\n{words}", end="", flush=True)
        differing |= not agree
    return int(differing)


if __name__ == "__main__":
    sys.exit(main())
