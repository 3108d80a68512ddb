"""`make upgrade`: from the daemon of another commit to this one's and back, by take-over and kill, under traffic.

    python -m tests.e2e.restart.upgrade [--from HEAD~1] [--rate 2000]

The other commit is laid out in build/upgrade, and built there where its native sources differ. Prints figures; the exit
status is 1 if anything is not as it should be.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support import leftovers
from tests.support.outage import LinkEvents, Numbered
from tests.support.patience import until
from tests.support.running import ROOT, Daemon, port, switch, take_over
from tests.support.topology import WIRE4, Lab, port4, run
from tests.support.traffic import Stream

NATIVE = ("setup.py", "ipvsw/_fast.pyx", "ipvsw/datapath", "kmod-shim/bpf")
BUILT = ("ipvsw/_fast.*.so", "ipvsw/ipvsw.bpf.o")
BY_HAND = "10.1.77.7"


def git(*words: str) -> str:
    return run("git", "-C", str(ROOT), *words).strip()


def lay_out(commit: str) -> Path:
    """A directory with that commit, ready to run."""
    tree = ROOT / "build" / "upgrade" / commit
    if not (tree / "ready").exists():
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir(parents=True)
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
        if subprocess.run(["git", "-C", str(ROOT), "diff", "--quiet", commit, "--", *NATIVE], check=False).returncode:
            build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
            subprocess.run(build, cwd=tree, check=True)
        else:
            for each in (path for pattern in BUILT for path in ROOT.glob(pattern)):
                shutil.copy(each, tree / "ipvsw")
        (tree / "ready").touch()
    return tree


def command(tree: Path) -> str:
    """What runs the daemon of a checkout."""
    program = f"import sys; sys.path.insert(0, {str(tree)!r}); from ipvsw.daemon.main import main; sys.exit(main())"
    return shlex.join([sys.executable, "-c", program])


class Trial:
    """Each step is one daemon after another; `flows` have numbered datagrams."""

    def __init__(self, lab: Lab, daemon: Daemon, trees: dict[str, Path]) -> None:
        self.lab = lab
        self.daemon = daemon
        self.trees = trees
        self.found: list[str] = []

    def run(self, flows: dict[str, Numbered], stream: Stream, events: Sequence[LinkEvents]) -> None:
        indices = self.indices()
        for kills, to in ((False, "new"), (False, "old"), (False, "new"), (True, "old"), (True, "new")):
            lost = {name: flow.lost for name, flow in flows.items()}
            os.environ["IPVSWD"] = command(self.trees[to])
            if kills:
                self.daemon.kill()
                self.daemon.start()
                self.daemon.wait()
            else:
                take_over(self.daemon)
            if f"{self.trees[to]}/ipvsw/_fast" not in Path(f"/proc/{self.daemon.pid}/maps").read_text():
                self.found.append(f"it is not the one of {to} that runs")
            for flow in flows.values():
                flow.goes_on()
            stream.flows()
            missing = {name: flow.lost - lost[name] for name, flow in flows.items()}
            words = ", ".join(f"{name} {count}" for name, count in missing.items())
            print(f"{'kill' if kills else 'take-over'} to {to}: lost {words}", flush=True)
            if not kills and any(missing.values()):
                self.found.append(f"frames were lost on the way to {to}")
            if self.indices() != indices:
                self.found.append(f"devices are others with {to}")
            if BY_HAND not in self.lab.ip(self.lab.ports[0], "addr", "show"):
                self.found.append(f"{BY_HAND} is gone with {to}")
        self.found += [line for each in events for line in each.disturbances()]

    def indices(self) -> list[dict[str, Any]]:
        links = [link for netns in self.lab.ports for link in self.lab.links(netns)]
        return [{key: link[key] for key in ("ifname", "ifindex", "address")} for link in links]


def main() -> int:
    parser = argparse.ArgumentParser(prog="upgrade")
    parser.add_argument("--from", dest="commit", default="HEAD~1")
    parser.add_argument("--rate", type=int, default=2000)
    arguments = parser.parse_args()
    commit = git("rev-parse", "--short", f"{arguments.commit}^{{commit}}")
    trees = {"old": lay_out(commit), "new": ROOT}
    print(f"from {git('log', '-1', '--format=%h of %as, %s', commit)}", flush=True)
    os.environ["IPVSWD"] = command(trees["old"])
    with Lab(2) as lab:
        before = leftovers.network(lab)
        ports = [port(f"ipvl{k}", netns, [f"{port4(k)}/16"]) for k, netns in enumerate(lab.ports, 1)]
        with Daemon(switch("m0", lab.host, ports), home=lab.home) as daemon:
            daemon.wait()
            lab.ip(lab.ports[0], "addr", "add", f"{BY_HAND}/16", "dev", "ipvl1")
            trial = Trial(lab, daemon, trees)
            with (
                LinkEvents(lab, lab.ports[0]) as first,
                LinkEvents(lab, lab.ports[1]) as second,
                Stream(lab.ports[0], lab.ports[1], port4(2)) as stream,
                Numbered(lab.ports[0], lab.ports[1], port4(2), rate=arguments.rate) as between,
                Numbered(lab.wire, lab.ports[0], port4(1), rate=arguments.rate) as inwards,
                Numbered(lab.ports[1], lab.wire, WIRE4, rate=arguments.rate) as outwards,
            ):
                flows = {"port to port": between, "from the wire": inwards, "to the wire": outwards}
                trial.run(flows, stream, (first, second))
            trial.found += [f"{name}: {flow.doubled} doubled" for name, flow in flows.items() if flow.doubled]
            if "Traceback" in daemon.said():
                trial.found.append(daemon.said())
        until(lambda: leftovers.network(lab) == before, "the network is as it was", every=0.1)
    print("\n".join([*trial.found, f"{len(trial.found)} errors"]))
    return 1 if trial.found else 0


if __name__ == "__main__":
    raise SystemExit(main())
