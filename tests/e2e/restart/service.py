"""What systemd does with the service, under traffic: started, restarted, killed, frozen, stopped. It runs this itself.

    scripts/systemd python3 -m tests.e2e.restart.service [--rate 2000] [--packaged]

With the standard library alone: where a package is tried there is nothing else. Without `--packaged` the daemon and
its unit are this checkout's. Prints figures; the exit status is 1 if anything is not as it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support import leftovers
from tests.support.outage import LinkEvents, Numbered
from tests.support.patience import LIMIT, until
from tests.support.running import ROOT, port, switch, toml, words
from tests.support.topology import WIRE4, Lab, exec_in, port4, run
from tests.support.traffic import Stream

UNIT = "ipvswd.service"
UNITS = Path("/run/systemd/system")
CONFIG, SOCKET, LOG = Path("/etc/ipvsw.toml"), Path("/run/ipvsw/api.sock"), Path("/run/ipvswd.log")
BY_HAND = "10.1.77.7"
WATCHDOG = 3  # seconds


def systemctl(*arguments: str) -> str:
    return run("systemctl", "--no-pager", *arguments)


def shown(name: str) -> str:
    return systemctl("show", "--value", "--property", name, UNIT).strip()


def main_pid() -> int:
    return int(shown("MainPID"))


def drop_in(name: str, *lines: str) -> None:
    directory = UNITS / f"{UNIT}.d"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.conf").write_text("\n".join(["[Service]", *lines]) + "\n")
    systemctl("daemon-reload")


def install_checkout() -> None:
    """The unit of contrib, with this checkout's daemon. Home directories may have its Python."""
    text = (ROOT / "contrib" / "ipvswd.service").read_text()
    daemon = shlex.join([sys.executable, "-m", "ipvsw.daemon.main"])
    UNITS.mkdir(parents=True, exist_ok=True)
    (UNITS / UNIT).write_text(text.replace("/usr/local/bin/ipvswd", daemon))
    drop_in("checkout", f"WorkingDirectory={ROOT}", "ProtectHome=no")


class Trial:
    """`cli` are the words that `ipvsw` begins with; `rate` is of each flow, datagrams a second."""

    def __init__(self, lab: Lab, cli: Sequence[str], rate: int) -> None:
        self.lab, self.cli, self.rate = lab, cli, rate

    def wait(self) -> None:
        def is_up() -> bool:
            try:
                switches = json.loads(run(*self.cli, "--json", "show"))
            except AssertionError:  # the API does not answer yet
                return False
            ports = [one for each in switches for one in each["ports"]]
            return len(ports) == len(self.lab.ports) and all(one["state"] == "up" for one in ports)

        until(is_up, "the ports are up", every=0.1)

    @contextlib.contextmanager
    def traffic(self, what: str) -> Iterator[list[Numbered]]:
        """Flows while something is done, after which all of them go on: nothing is seen of it but time."""
        first, second = self.lab.ports
        with (
            LinkEvents(self.lab, first) as events,
            Stream(first, second, port4(2)) as stream,
            Numbered(first, second, port4(2), self.rate) as between,
            Numbered(first, self.lab.wire, WIRE4, self.rate) as outwards,
            Numbered(self.lab.wire, second, port4(2), self.rate) as inwards,
            subprocess.Popen(
                exec_in(first, "ping", "-q", "-i", "0.01", "-w", str(2 * int(LIMIT)), port4(2)),
                stdout=subprocess.PIPE,
                text=True,
            ) as ping,
        ):
            flows = [between, outwards, inwards]
            yield flows
            self.wait()
            for flow in flows:
                flow.goes_on()
            stream.flows()
            ping.send_signal(signal.SIGINT)
            answer = re.search(r"(\d+) packets transmitted, (\d+) received", ping.communicate()[0])
            disturbed = events.disturbances()
        assert answer is not None
        lost = ", ".join(f"{flow.lost} of {flow.sent}" for flow in flows)
        print(
            f"{what}: gap {max(flow.gap for flow in flows):.3f} s; lost {lost} (port to port, to the wire, from it) and"
            f" {int(answer[1]) - int(answer[2])} of {answer[1]} pings; link events {len(disturbed)}; stream alive",
            flush=True,
        )
        assert not disturbed, disturbed
        assert all(flow.doubled <= 1 for flow in flows), "a frame was doubled"
        assert self.lab.link(first, "ipvl1") is not None
        self.lab.reachable(self.lab.wire, BY_HAND)

    def killed(self, what: str, number: int) -> None:
        """By a signal; systemd starts it again."""
        before, pid = int(shown("NRestarts")), main_pid()
        with self.traffic(what):
            os.kill(pid, number)
            until(lambda: int(shown("NRestarts")) > before, "systemd starts it again", every=0.05)
        assert main_pid() != pid

    def run(self) -> None:
        before = leftovers.network(self.lab)
        systemctl("start", UNIT)
        self.wait()
        self.lab.ip(self.lab.ports[0], "addr", "add", f"{BY_HAND}/16", "dev", "ipvl1")
        self.lab.reachable(self.lab.wire, BY_HAND)
        index = self.lab.links(self.lab.ports[0])
        with self.traffic("restart") as flows:
            systemctl("restart", UNIT)
        assert [(flow.lost, flow.doubled) for flow in flows] == [(0, 0)] * len(flows)
        with self.traffic("reload") as flows:
            systemctl("reload", UNIT)
        assert [(flow.lost, flow.doubled) for flow in flows] == [(0, 0)] * len(flows)
        self.killed("kill -9", signal.SIGKILL)
        drop_in("watchdog", f"WatchdogSec={WATCHDOG}")
        systemctl("restart", UNIT)
        self.wait()
        self.killed("watchdog", signal.SIGSTOP)
        assert [one["ifindex"] for one in self.lab.links(self.lab.ports[0])] == [one["ifindex"] for one in index]
        systemctl("stop", UNIT)
        until(lambda: leftovers.network(self.lab) == before, "the network is as it was", every=0.1)
        assert shown("NFileDescriptorStore") == "0"
        print("stop: nothing is left", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="service")
    parser.add_argument("--rate", type=int, default=2000)
    parser.add_argument("--packaged", action="store_true")
    arguments = parser.parse_args()
    cli = ["ipvsw"] if arguments.packaged else words("IPVSW", "ipvsw.cli")
    if not arguments.packaged:
        install_checkout()
    with Lab(2) as lab:
        ports = [port(f"ipvl{k}", netns, [f"{port4(k)}/16"]) for k, netns in enumerate(lab.ports, 1)]
        CONFIG.write_text(toml(SOCKET, [switch("m0", lab.host, ports)]))
        drop_in("log", f"StandardOutput=append:{LOG}")
        try:
            Trial(lab, cli, arguments.rate).run()
        except Exception:
            print(run("systemctl", "--no-pager", "--full", "status", UNIT, check=False), LOG.read_text(), flush=True)
            raise
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
