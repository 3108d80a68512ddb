"""A service whose descriptors systemd stores: a restart keeps the ports, a stop removes them, a kill keeps them too."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.restart.test_kill import index
from tests.support import leftovers
from tests.support.outage import LinkEvents, Numbered
from tests.support.patience import LIMIT, until
from tests.support.programs.systemd import Systemd, control_groups
from tests.support.running import ROOT, Daemon, port, switch, words
from tests.support.topology import WIRE4, Lab, exec_in, port4
from tests.support.traffic import Stream

RATE = 300  # datagrams a second: those of several seconds have room, however long the machine takes
UNIT = f"ivtest-{uuid.uuid4().hex[:8]}.service"


class Service:
    """`ipvswd` as systemd runs it; `job` is what systemd does with the unit."""

    def __init__(self, lab: Lab, daemon: Daemon, directory: Path, group: Path) -> None:
        self.lab, self.daemon, self.directory, self.group = lab, daemon, directory, group
        self.job = "stop"
        self.systemd = Systemd(directory / "notify")
        threading.Thread(target=self.systemd.serve, daemon=True).start()
        self.systemctl = directory / "systemctl"
        self.systemctl.write_text(f"#!/bin/sh\ncat {directory}/jobs\n")
        self.systemctl.chmod(0o755)

    def start(self) -> None:
        command = [*words("IPVSWD", "ipvsw.daemon.main"), "--config", str(self.daemon.config)]
        started, environment, fds = self.systemd.start(exec_in(self.lab.home, *command))
        environment |= {"PATH": f"{self.directory}:{os.environ['PATH']}"}
        with self.daemon.log.open("ab") as log:
            self.daemon.process = subprocess.Popen(
                started, cwd=ROOT, env=os.environ | environment, pass_fds=fds, stdout=log, stderr=log
            )
        for fd in fds:
            os.close(fd)
        (self.group / "cgroup.procs").write_text(str(self.daemon.pid))
        self.daemon.wait()

    def end(self, job: str) -> None:
        """SIGTERM, as for that job."""
        (self.directory / "jobs").write_text(f"  7 other.service restart running\n 12 {UNIT} {job} running\n")
        process = self.daemon.process
        assert process is not None
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0, self.daemon.said()
        self.daemon.process = None


@pytest.fixture
def service(lab: Lab, tmp_path: Path) -> Iterator[Service]:
    group = Path(control_groups() or "/nowhere", UNIT)
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no control group can be made")
    ports = [port(f"ipvl{k}", netns, [f"{port4(k)}/16"]) for k, netns in enumerate(lab.ports, 1)]
    daemon = Daemon(switch("m0", lab.host, ports), home=lab.home, started=False)
    made = Service(lab, daemon, tmp_path, group)
    yield made
    daemon.close()
    made.systemd.close()
    until(lambda: not (group / "cgroup.procs").read_text(), "its processes are gone")
    group.rmdir()


def test_a_restart_keeps_the_ports_and_a_stop_removes_them(lab: Lab, service: Service) -> None:
    before = leftovers.network(lab)
    service.start()
    was = index(lab, lab.ports[0], "ipvl1")
    assert not service.daemon.keeper.exists()
    lab.reachable(lab.ports[0], port4(2))
    with (
        LinkEvents(lab, lab.ports[0]) as events,
        Stream(lab.ports[0], lab.ports[1], port4(2)) as stream,
        Numbered(lab.ports[0], lab.ports[1], port4(2), RATE) as between,
        Numbered(lab.ports[0], lab.wire, WIRE4, RATE) as outwards,
        Numbered(lab.wire, lab.ports[1], port4(2), RATE) as inwards,
    ):
        flows = between, outwards, inwards
        service.end("restart")
        service.start()
        for each in flows:
            each.goes_on()
        stream.flows()
        assert [(each.lost, each.doubled) for each in flows] == [(0, 0)] * 3
        service.daemon.kill()
        service.start()
        for each in flows:
            each.goes_on()
        stream.flows()
        assert events.disturbances() == []
    assert max(each.lost for each in flows) <= 1, "the killed daemon can have had one in its hands"
    assert index(lab, lab.ports[0], "ipvl1") == was
    service.end("stop")
    until(lambda: not service.systemd.stored, "nothing is stored")
    until(lambda: leftovers.network(lab) == before, "the network is as it was", every=0.1)
